"""The page in a browser: no message on its console, and tables that sort."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from adderize.reporting import report
from tests.reporting.networks import Hostile, images, settled_lenet

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium (Debian package chromium)"),
]
# Clicks on each header of each table twice, and leaves what the columns are then.
CLICKS = """
<script>
const found = [];
for (const table of document.querySelectorAll("table")) {
  for (const title of table.querySelectorAll("th [role=button]")) {
    const column = title.parentElement.cellIndex;
    const read = () => [...table.tBodies[0].rows].map((row) => row.cells[column]);
    const values = () => read().map((cell) => cell.dataset.value ?? null);
    const texts = () => read().map((cell) => cell.textContent);
    const numeric = title.parentElement.classList.contains("number");
    title.click();
    const first = [values(), texts(), title.parentElement.ariaSort];
    title.dispatchEvent(new KeyboardEvent("keydown", { key: "Enter" }));
    found.push([numeric, first, [values(), texts(), title.parentElement.ariaSort]]);
  }
}
const width = document.documentElement.scrollWidth;
const result = { found, width, window: document.documentElement.clientWidth };
document.body.insertAdjacentHTML("beforeend", "<pre id=result></pre>");
document.getElementById("result").textContent = JSON.stringify(result);
</script>
</body>
"""


def opened(text: str, folder: Path, *more: str) -> tuple[dict[str, object], list[str]]:
    """What the clicks leave, and the lines of the console."""
    (folder / "page.html").write_text(text.replace("</body>", CLICKS))
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr", "--dump-dom", *more,
        (folder / "page.html").as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    left = re.search('<pre id="result">(.*?)</pre>', done.stdout, re.S)
    assert left is not None, done.stderr
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(html.unescape(left[1])), console


def test_tables_sort_without_a_message(tmp_path: Path) -> None:
    result, console = opened(report(settled_lenet(), images()).to_html(), tmp_path)
    assert console == []
    assert isinstance(result["found"], list) and len(result["found"]) > 30
    for numeric, *orders in result["found"]:
        assert [order for _, _, order in orders] == (
            ["descending", "ascending"] if numeric else ["ascending", "descending"]
        )
        for values, texts, order in orders:
            if numeric:
                given = [float(value) for value in values if value is not None]
                assert values[len(given) :] == [None] * (len(values) - len(given))
                assert given == sorted(given, reverse=order == "descending")
            elif all(text.isalpha() for text in texts):
                assert texts == sorted(texts, reverse=order == "descending")


def test_a_phone_shows_hostile_names_without_scrolling_the_page(tmp_path: Path) -> None:
    text = report(Hostile(), name="x" * 200, input_size=(3, 8, 8)).to_html()
    result, console = opened(text, tmp_path, "--window-size=390,800")
    assert console == [] and result["width"] == result["window"] <= 500
