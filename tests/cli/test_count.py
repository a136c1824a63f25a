"""`adderize count` as a user meets it: stdout, stderr, exit codes, imports."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from adderize import adderize, save_model
from adderize.cli import main
from adderize.models import lenet5_bn
from tests import fresh

LENET = "adderize.models:lenet5_bn"
ON_LENET = ["count", LENET, "--input", "1,32,32"]


def output(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(argv) == 0
    return capsys.readouterr().out


def error(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(argv) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def test_resnet18_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    golden = (Path(__file__).parents[1] / "golden" / "resnet18.txt").read_text()
    assert output(capsys, "count", "resnet18") == golden.replace("ResNet,", "resnet18,", 1)


def test_json_on_stdout_and_notes_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["count", "adderize.models:lenet5_bn", "--input", "1,32,32",
                 "--format", "json", "--exclude", "*"]) == 0  # fmt: skip
    captured = capsys.readouterr()
    content = json.loads(captured.out)
    assert content["before"] == content["after"] and content["input_size"] == [1, 32, 32]
    assert captured.err.count("\n") == 1 and "no layer becomes an adder" in captured.err


def test_conversion_options(capsys: pytest.CaptureFixture[str]) -> None:
    text = output(
        capsys, *ON_LENET, "--format", "json", "--stem", "--head", "--linear", "--norm", "ignore"
    )
    content = json.loads(text)
    assert content["after"]["multiplications"] == 6_304
    assert content["after"]["additions"] == 2 * 416_520 + 6_304 + 214
    text = output(capsys, *ON_LENET, "--format", "json", "--include", "conv2")
    adders = [layer["name"] for layer in json.loads(text)["layers"] if layer["kind"] == "adder"]
    assert adders == ["conv2"]


def test_a_binary_network(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ("count", "adderize.models:vgg_small", "--input", "3,32,32")
    content = json.loads(output(capsys, *argv, "--format", "json", "--layers", "bnn"))
    assert content["after"]["xnors"] == 607_518_720 - 3 * 128 * 9 * 32 * 32
    assert content["before"]["xnors"] == 0
    kinds = {layer["kind"] for layer in content["layers"] if layer["after"]["xnors"]}
    assert kinds == {"binary"}
    assert "xnor after" in output(capsys, *argv, "--layers", "bnn", "--include", "features.3")
    assert "--linear has no binary form" in error(capsys, *argv, "--layers", "bnn", "--linear")


def test_selected_and_sorted_rows(capsys: pytest.CaptureFixture[str]) -> None:
    text = output(
        capsys, *ON_LENET, "--format", "csv", "--sort", "before.additions", "--only", "linear"
    )
    rows = list(csv.DictReader(text.splitlines()))
    assert [row["layer"] for row in rows] == ["fc1", "fc2", "fc3", "(network)"]
    assert (
        output(capsys, "count", "mobilenet_v2", "--depth", "1", "--format", "md").count("\n") < 20
    )


def test_cost_tables(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    table = tmp_path / "fpga.json"
    table.write_text(json.dumps({"unit": "cycles", "multiplications": 3, "additions": 1}))
    text = output(
        capsys, *ON_LENET, "--format", "json", "--energy", "int8", "--latency", str(table)
    )
    before = json.loads(text)["before"]
    assert before["latency_cycles"] == 3 * before["multiplications"] + before["additions"]
    assert before["energy_joule"] == pytest.approx(
        0.2e-12 * before["multiplications"] + 0.03e-12 * before["additions"]
    )


def test_without_multiplications_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    argv = (*ON_LENET, "--stem", "--head", "--linear", "--norm", "ignore", "--multiplication-free")
    content = json.loads(output(capsys, *argv, "--format", "json"))
    norms = 6_304
    assert content["after"]["multiplications"] == 0
    assert content["after"]["shifts"] == 3 * norms
    assert content["after"]["additions"] == 2 * 416_520 + 3 * norms + 214
    assert content["before"]["multiplications"] == 416_520 + norms
    assert "shift after" in output(capsys, *argv)


def test_counters_agree(capsys: pytest.CaptureFixture[str]) -> None:
    texts = [output(capsys, *ON_LENET, "--counter", counter) for counter in ("meta", "fvcore")]
    assert texts[0] == texts[1]


def test_files(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot, table = tmp_path / "stages.png", tmp_path / "table.md"
    assert main([*ON_LENET, "--plot", str(plot), "--format", "md", "-o", str(table)]) == 0
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("wrote") == 2
    assert plot.read_bytes().startswith(b"\x89PNG") and "| multiplications |" in table.read_text()


def test_timm_gives_its_own_input_size(capsys: pytest.CaptureFixture[str]) -> None:
    text = output(capsys, "count", "timm:tf_efficientnet_b1", "--format", "json")
    assert json.loads(text)["input_size"] == [3, 240, 240]


def test_torchvision_gives_its_own_input_size(capsys: pytest.CaptureFixture[str]) -> None:
    text = output(capsys, "count", "inception_v3", "--format", "json")
    assert json.loads(text)["input_size"] == [3, 299, 299]


def test_saved_model(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    save_model(adderize(lenet5_bn(), include="conv2"), tmp_path / "model")
    saved = ["count", str(tmp_path / "model"), "--input", "1,32,32", "--format", "json"]
    content = json.loads(output(capsys, *saved, "--arch", LENET))
    adders = [layer["name"] for layer in content["layers"] if layer["kind"] == "adder"]
    assert adders == ["conv2"]
    assert "--arch" in error(capsys, *saved)
    assert "no such layer" in error(capsys, *saved, "--arch", "resnet18")


def test_paper(capsys: pytest.CaptureFixture[str]) -> None:
    golden = (Path(__file__).parents[1] / "golden" / "paper.txt").read_text()
    assert output(capsys, "count", "--paper") == golden
    rows = json.loads(output(capsys, "count", "--paper", "--format", "json"))
    assert rows[9]["network"] == "ResNet-32"
    assert rows[9]["convention"]["multiplications"] == 69_124_736


@pytest.mark.parametrize(
    "argv, message",
    [
        (["nosuchnet"], "nosuchnet"),
        (["timm:nosuchnet"], "timm has no model"),
        (["resnt20"], "(similar: resnet20"),
        (["timm:resnet-18"], "(similar: timm:resnet18"),
        (["no/folder"], "no/folder does not exist; expected an architecture"),
        (["nofile.pth"], "nofile.pth does not exist; expected an architecture"),
        ([str(Path(__file__))], "test_count.py is a file; expected an architecture"),
        (["adderize.errors:nosuch"], "cannot find"),
        (["json:dumps"], "cannot call 'json:dumps'"),
        (["adderize.formulas:Operations"], "gave a Operations"),
        (["resnet18", "--input", "4,64,64"], "through conv1, Conv2d(3, 64"),
        (["resnet18", "--input", "64,64"], "cannot be traced"),
        (["resnet18", "--include", "nothing*"], "nothing*"),
        (["resnet18", "--only", "adders"], "there are: adder"),
        (["resnet18", "--sort", "speed"], "cannot sort by 'speed'"),
        (["resnet18", "--depth", "0"], "depth is 0"),
        (["resnet18", "--energy", "missing.json"], "no cost table missing.json"),
        (["fasterrcnn_resnet50_fpn", "--input", "3,64,64"], "cannot be traced"),
        (["resnet20", "--plot", "x.svg", "-o", "./x.svg"], "are both x.svg: give two files"),
        (["torchvision.models:alexnet"], "does not say how large its input is"),
    ],
)
def test_mistakes(capsys: pytest.CaptureFixture[str], argv: list[str], message: str) -> None:
    text = error(capsys, "count", *argv)
    assert message in text and text.startswith("adderize: ") and text.count("\n") == 1


@pytest.mark.parametrize(
    "argv",
    [[], ["resnet18", "--paper"], ["resnet18", "--input", "3,x,4"], ["resnet18", "--format", "x"]],
)
def test_wrong_usage(capsys: pytest.CaptureFixture[str], argv: list[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        main(["count", *argv])
    assert leaving.value.code == 2 and "usage: adderize count" in capsys.readouterr().err


@pytest.mark.parametrize("arch, absent", [("resnet18", {"timm"}), ("timm:resnet18", set())])
def test_what_is_imported(arch: str, absent: set[str]) -> None:
    code = (
        "import sys; from adderize.cli import main; "
        f"main(['count', {arch!r}]); assert not {absent | {'lightning', 'matplotlib'}!r}"
        " & set(sys.modules)"
    )
    result = fresh.run(code)
    assert result.returncode == 0, result.stderr


def test_without_multiplications(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["count", "resnet20", "--multiplication-free", "--format", "json"]) == 0
    after = json.loads(capsys.readouterr().out)["after"]
    assert after["multiplications"] == 0
    norms = 3 * (6 * 16 * 32**2 + 7 * 32 * 16**2 + 7 * 64 * 8**2)
    kept = 2 * (16 * 27 * 32**2 + 10 * 64)
    assert after["shifts"] == norms + kept + 3 * 64


def test_products_that_have_no_form_of_shifts_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["count", "timm:convnext_atto", "--multiplication-free"]) == 1
    assert "gelu" in capsys.readouterr().err
    assert main(["count", "resnet20", "--multiplication-free", "--layers", "bnn"]) == 1
    assert "binary" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--energy", "int8"], "--energy"),
        (["--depth", "1", "--stem"], "--depth and no --stem"),
        (["--no-depthwise"], "--no-depthwise"),
        (["--counter", "fvcore"], "--counter"),
    ],
)
def test_the_papers_table_takes_no_options_of_networks(
    capsys: pytest.CaptureFixture[str], options: list[str], named: str
) -> None:
    assert f"takes no {named}: " in error(capsys, "count", "--paper", *options)


def test_a_folder_without_a_network(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = error(capsys, "count", str(tmp_path))
    assert "is a folder without adderize.json" in text and "--arch" not in text
