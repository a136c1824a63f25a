"""`adderize plan`: the table and its other forms."""

from __future__ import annotations

import csv
import json

import pytest

from adderize.cli import main


def test_table(capsys):
    assert main(["plan", "resnet18"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["layer", "kind", "shape", "decision", "reason", "norm", "method"]
    assert "stem: reads the input" in lines[1]
    assert "layer1.0.bn1" in lines[2]
    assert lines[-1] == (
        "19 to convert, 2 kept; 0 norms to insert; filters rescaled to deviation 8"
    )


def test_json(capsys):
    assert main(["plan", "timm:resnet10t", "--format", "json", "--include", "layer1.*"]) == 0
    result = json.loads(capsys.readouterr().out)
    converted = [layer["name"] for layer in result["layers"] if layer["decision"] == "convert"]
    assert converted == ["layer1.0.conv1", "layer1.0.conv2"]
    assert result["options"]["include"] == ["layer1.*"]
    assert result["layers"][0]["shape"] == [24, 3, 3, 3]


def test_csv(capsys):
    assert main(["plan", "vgg11", "--format", "csv", "--exclude", "features.3"]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert len(rows) == 11
    assert rows[1]["reason"] == "left out by pattern"
    assert rows[2]["norm"] == "inserted"


def test_markdown_of_a_callable(capsys):
    assert main(["plan", "torchvision.models:squeezenet1_1", "--format", "md"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "| --- | --- | --- | --- | --- | --- | --- |"
    assert len(lines) == 2 + 26


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["resnet19"], "resnet19"),
        (["timm:resnet19"], "resnet19"),
        (["torchvision.models:nothing"], "nothing"),
        (["resnet18", "--include", "layer9*"], "layer9"),
        (["."], "unknown model '.'"),
    ],
)
def test_mistakes(capsys, arguments, words):
    assert main(["plan", *arguments]) == 1
    captured = capsys.readouterr()
    assert not captured.out
    assert captured.err.startswith("adderize: ")
    assert words in captured.err
    assert len(captured.err.splitlines()) == 1


def test_a_binary_network(capsys):
    assert main(["plan", "resnet18", "--layers", "bnn"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split()[-2:] == ["inserted", "fx"]
    assert lines[-1] == "19 to convert, 2 kept; 19 norms to insert"


def test_options_that_a_binary_network_lacks(capsys):
    assert main(["plan", "resnet18", "--layers", "bnn", "--linear"]) == 1
    assert "linear is True, but binary layers have no such option" in capsys.readouterr().err


def test_remarks_are_those_of_the_built_network(capsys):
    """timm's mixers start their classifier at zero, which a network without storage cannot tell."""
    command = ["plan", "timm:mixer_s32_224", "--linear"]
    assert main(command) == 0
    remark = capsys.readouterr().out.splitlines()[-1]
    assert remark.startswith("head.weight starts at zero")
    assert main([*command, "--format", "md"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"- {remark}"
    assert main([*command, "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["remarks"] == [remark]


def test_a_folder_of_the_name_of_an_architecture(capsys, tmp_path, monkeypatch):
    (tmp_path / "resnet18").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "resnet18"]) == 0
    assert "19 to convert" in capsys.readouterr().out
