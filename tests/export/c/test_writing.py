"""Folders of C: what they hold, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from adderize import AdderConv2d, AdderizeError
from adderize.export import export_c
from adderize.export.c.check import compare_on_host
from adderize.export.c.network import Network
from adderize.export.c.tools import (
    as_logits,
    as_pixels,
    build_for_host,
    host_compiler,
    run_on_host,
)
from adderize.export.c.work import work_of
from adderize.formulas import Operations
from adderize.integer import IntegerNetwork, to_integer
from tests.export.c.random_networks import random_network
from tests.integer.networks import GREY, eight_bit, images
from tests.test_whole_files import killed_at


def test_the_same_network_gives_the_same_bytes(tmp_path: Path) -> None:
    network, images = random_network(1)
    for folder in ("first", "second"):
        export_c(network, tmp_path / folder, name="net", examples=images)
    names = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert names == [
        "adderize_layers.c", "adderize_layers.h", "net.c", "net.h", "net.mk", "net_filters.c",
        "net_filters.h", "net_report.json", "net_report.txt", "net_test.c",
    ]  # fmt: skip
    for name in names:
        first, second = (tmp_path / folder / name for folder in ("first", "second"))
        assert first.read_bytes() == second.read_bytes()


def test_an_interrupted_export_has_no_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (old, images), (new, _) = random_network(1), random_network(2)
    export_c(old, tmp_path, name="net", examples=images)
    with killed_at(5, monkeypatch):
        export_c(new, tmp_path, name="net")
    assert not (tmp_path / "net.h").exists()
    for file in ("net.c", "net_test.c"):
        assert '#include "net.h"' in (tmp_path / file).read_text()


@pytest.mark.parametrize("name", ["gcc", "clang"])
def test_the_makefile_builds_and_runs_the_examples(name: str, tmp_path: Path) -> None:
    if shutil.which(name) is None or shutil.which("make") is None:
        pytest.skip(f"no {name} or no make")
    network, images = random_network(2)
    export_c(network, tmp_path, name="net", examples=images[:2])
    make = ["make", "--silent", "-f", "net.mk", f"CC={name} -Werror"]
    done = subprocess.run(make, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr
    assert "2 of 2 examples as expected" in done.stdout
    test = tmp_path / "net_test.c"
    expected = test.read_text().rindex("expected[")
    first = re.compile(r"(-?\d+),")
    changed = first.sub(lambda match: f"{int(match[1]) + 1},", test.read_text()[expected:], count=1)
    test.write_text(test.read_text()[:expected] + changed)
    done = subprocess.run(make, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0 and "1 of 2 examples as expected" in done.stdout


def test_the_report_names_what_an_inference_costs(tmp_path: Path) -> None:
    network, _ = random_network(0)
    report = export_c(network, tmp_path, name="net")
    written = json.loads((tmp_path / "net_report.json").read_text())
    assert written == report.to_dict() | {"cores": []}
    assert written["multiplications"] == 0 and written["additions"] > 0
    assert str(report) == (tmp_path / "net_report.txt").read_text().rstrip("\n")
    assert f"#define net_arena_size {report.arena}\n" in (tmp_path / "net.h").read_text()


def test_what_has_no_form_is_named_before_a_file_is_written(tmp_path: Path) -> None:
    network, _ = random_network(0)
    first, *others = network.program.instructions
    odd = replace(first, kind="softmax", layer="attention")
    network.program = replace(network.program, instructions=(odd, *others))
    with pytest.raises(AdderizeError, match="attention: softmax has no form in C"):
        export_c(network, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "2net"}, "the name is '2net'; expected letters"),
        ({"name": "while"}, "the name is 'while'"),
        ({"name": "a b"}, "the name is 'a b'"),
        ({"name": "adderize_net"}, "nor one that begins with adderize_"),
        ({"name": "stdint"}, "the name is 'stdint'; .* a header of its library"),
        ({"examples": torch.zeros(3)}, r"the examples are \(3,\)"),
        ({"examples": torch.zeros(0, 1, 5, 5)}, r"expected images, uint8 \(N, C, H, W\)"),
        ({"examples": torch.zeros(1, 2, 5, 5)}, "expected the raw bytes"),
        ({"examples": [1]}, "the examples are list"),
    ],
)
def test_wrong_arguments_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    network, _ = random_network(0)
    with pytest.raises(AdderizeError, match=message):
        export_c(network, tmp_path / "new", **change)
    assert not (tmp_path / "new").exists()


def test_other_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AdderizeError, match=r"got a Linear; expected an integer network"):
        export_c(torch.nn.Linear(1, 1), tmp_path)  # type: ignore[arg-type]


def test_a_failing_compiler_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    network, images = random_network(0)
    export_c(network, tmp_path, name="net")
    monkeypatch.setenv("CC", "false")
    with pytest.raises(AdderizeError, match=r"false .* failed \(1\)"):
        compare_on_host(network, tmp_path, "net", images)


IN_PLACE = """
#include <stdio.h>
#include "net.h"
int main(void) {
  static int32_t logits[net_output_size];
  if (fread(net_image(), 1, net_input_size, stdin) != net_input_size) return 1;
  net_run(net_image(), logits);
  return fwrite(logits, sizeof *logits, net_output_size, stdout) != net_output_size;
}
"""


class Named(nn.Module):
    """Layers one behind the other, with names of one's own."""

    def __init__(self, **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.children():
            x = layer(x)
        return x


def lowered(model: nn.Module) -> IntegerNetwork:
    quantized = eight_bit(model, images(8, (1, 6, 6)), GREY)
    return to_integer(quantized, input_size=(1, 6, 6), **GREY)


def test_names_of_layers_do_no_harm(compiler: str, tmp_path: Path) -> None:
    """The first two had constants of one name, those of the second; the others did not compile."""
    names = ("conv", "norm", "conv_epilogue", "adderize", "a */ b", "größe /*")
    layers = (
        AdderConv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 5, 1), AdderConv2d(5, 4, 3),
        nn.BatchNorm2d(4), nn.Flatten(),
    )  # fmt: skip
    network = lowered(Named(**dict(zip(names, layers, strict=True))))
    export_c(network, tmp_path, name="net")
    flags = ("-O1", "-Werror")
    program = build_for_host(
        network.program, tmp_path, "net", tmp_path / "host", compiler=compiler, flags=flags
    )
    batch = images(4, (1, 6, 6))
    assert torch.equal(run_on_host(program, batch), network(batch).flatten(1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"settings": {"stride": (2**15, 1)}},
            r"it has stride rows: 32768; expected at most 32767",
        ),
        ({"settings": {"padding": (2**15, 0, 0, 0)}}, r"it has left: 32768"),
        ({"tensors": {"weight": torch.zeros(2**15, 4, 1, 1).byte()}}, r"it has filters: 32768"),
    ],
)
def test_what_16_bits_do_not_hold_is_refused(change: dict[str, Any], message: str) -> None:
    """C compiled with a warning, and ran on without an end."""
    program = lowered(nn.Sequential(AdderConv2d(1, 3, 1), nn.BatchNorm2d(3), nn.Flatten())).program
    position, step = next(
        item for item in enumerate(program.instructions) if item[1].kind == "adder_conv"
    )
    changed = replace(step, **{key: {**getattr(step, key), **new} for key, new in change.items()})
    steps = (*program.instructions[:position], changed, *program.instructions[position + 1 :])
    with pytest.raises(AdderizeError, match=message):
        Network.of(replace(program, instructions=steps))


LINKED = """
#include <cstdio>
#include "one.h"
#include "two.h"
static unsigned char image[one_input_size + two_input_size];
static int32_t first[one_output_size], second[two_output_size];
int main() {
  if (fread(image, 1, sizeof image, stdin) != sizeof image) return 1;
  one_run(image, first);
  two_run(image + one_input_size, second);
  one_run(image, first);
  fwrite(first, 4, one_output_size, stdout);
  return fwrite(second, 4, two_output_size, stdout) != two_output_size;
}
"""


def test_two_networks_in_a_program_of_cpp(compiler: str, tmp_path: Path) -> None:
    cpp = shutil.which("c++")
    if cpp is None:
        pytest.skip("no C++ compiler")
    networks = {name: random_network(seed) for name, seed in (("one", 0), ("two", 4))}
    for name, (network, _) in networks.items():
        export_c(network, tmp_path, name=name)
    (tmp_path / "main.cpp").write_text(LINKED)
    sources = ["adderize_layers.c", "one.c", "one_filters.c", "two.c", "two_filters.c"]
    run = partial(subprocess.run, cwd=tmp_path, check=True)
    run([compiler, "-std=c99", "-Wall", "-Werror", "-c", *sources])
    objects = [source.replace(".c", ".o") for source in sources]
    run([cpp, "-Wall", "-Wextra", "-Wpedantic", "-Werror", "main.cpp", *objects, "-o", "main"])
    pixels = b"".join(as_pixels(batch[:1]).numpy().tobytes() for _, batch in networks.values())
    done = run([tmp_path / "main"], input=pixels, capture_output=True)
    expected = [network(batch[:1]).flatten() for network, batch in networks.values()]
    assert torch.equal(as_logits(done.stdout, 1).flatten(), torch.cat(expected))


@pytest.mark.parametrize("seed", range(8))
def test_an_image_may_lie_among_the_activations(seed: int, tmp_path: Path) -> None:
    compiler = host_compiler()
    if compiler is None:
        pytest.skip("no C compiler")
    network, images = random_network(seed)
    export_c(network, tmp_path, name="net")
    header = (tmp_path / "net.h").read_text()
    if "net_image" not in header:
        return
    (tmp_path / "main.c").write_text(IN_PLACE)
    sources = [str(tmp_path / file) for file in
               ("main.c", "net.c", "net_filters.c", "adderize_layers.c")]  # fmt: skip
    program = str(tmp_path / "program")
    subprocess.run([compiler, "-std=c99", "-Werror", "-Wall", "-o", program, *sources], check=True)
    for image in images[:2]:
        pixels = as_pixels(image[None]).contiguous().numpy().tobytes()
        done = subprocess.run([program], input=pixels, capture_output=True, check=True)
        assert torch.equal(as_logits(done.stdout, 1).flatten(), network(image[None]).flatten())


def test_most_images_find_a_place(tmp_path: Path) -> None:
    found = 0
    for seed in range(8):
        network = random_network(seed)[0]
        export_c(network, tmp_path / str(seed), name="net")
        found += "net_image" in (tmp_path / str(seed) / "net.h").read_text()
    assert found >= 4


@pytest.mark.parametrize("lift", [0, 3])
@pytest.mark.parametrize("kind", ["shift_conv", "shift_linear"])
def test_what_lifts_the_inputs_of_kept_layers_is_counted(kind: str, lift: int) -> None:
    """By hand: a shift and an addition for each term, a shift for each value of each window."""
    programs = (random_network(seed)[0].program for seed in range(20))
    program, step = next(
        (program, step)
        for program in programs
        for step in program.instructions
        if step.kind == kind
    )
    outputs, filters = program.slots[step.output].numel, step.tensors["signs"].shape[1]
    seen = step.tensors["signs"][0, 0].numel() * cast(int, step.settings.get("groups", 1))
    terms = sum(map(abs, step.tensors["signs"].flatten().tolist()))
    additions = outputs // filters * terms
    shifts = additions + (outputs // filters * seen if lift else 0)
    shifted = {"shifts": torch.full_like(step.tensors["shifts"], lift)}
    changed = replace(step, tensors={**step.tensors, **shifted})
    found = work_of(replace(program, instructions=(changed,)))
    assert found == Operations(additions=additions, shifts=shifts)
