"""The sweep over torchvision and timm, families on photographs, vgg11 with and without norms."""

from __future__ import annotations

import json

import pytest
import torch

from adderize.models.by_name import build
from tests.dataflow.test_agreement import described, flows_of
from tests.zoo import families, norms_matter, sweep

FEW = ["resnet18", "googlenet", "timm:tf_efficientnet_b0", "timm:vit_tiny_patch16_224"]


def test_a_few_models():
    records = [sweep.examine(name) for name in FEW]
    assert [record["outcome"] for record in records] == [
        "converted",
        "converted",
        "converted",
        "nothing to convert",
    ], records
    assert [record.get("layers") for record in records] == [19, 58, 48, None]
    table = sweep.summary(records)
    assert "3  converted\n" in table
    assert "0  failed\n" in table


def test_a_model_that_fails_is_reported():
    record = sweep.examine("timm:no_such_model")
    assert record["outcome"] == "failed"
    assert "no_such_model" in sweep.summary([record])


def test_a_second_sweep_continues_the_first(tmp_path, monkeypatch):
    output = tmp_path / "zoo.jsonl"
    monkeypatch.setattr(sweep, "names", lambda: ["alexnet", "resnet18"])
    first = sweep.sweep(output, "alex*")
    monkeypatch.setattr(sweep, "build", lambda name: pytest.fail("built again"))
    assert sweep.sweep(output, "alex*") == first
    assert [json.loads(line)["name"] for line in output.read_text().splitlines()] == ["alexnet"]


def test_a_second_sweep_takes_failed_models_again(tmp_path, monkeypatch):
    output = tmp_path / "zoo.jsonl"
    output.write_text(json.dumps({"name": "alexnet", "outcome": "failed", "reason": "?"}) + "\n")
    monkeypatch.setattr(sweep, "names", lambda: ["alexnet"])
    assert sweep.sweep(output)[0]["outcome"] == "converted"


def test_a_model_that_is_not_restored_fails(monkeypatch):
    monkeypatch.setattr(sweep, "restore", lambda model: model)
    assert sweep.examine("alexnet")["reason"] == "AssertionError: restore left another model"


def _agree(name: str) -> None:
    model = build(name, **families.OPTIONS.get(name, {})).to("meta")
    side = families.NETWORKS[name]
    symbolic, recorded = flows_of(model, torch.empty(2, 3, side, side))
    assert described(model, symbolic) == described(model, recorded)


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "timm:skresnet18"])
def test_both_ways_of_tracing_agree(name):
    _agree(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", families.NETWORKS)
def test_both_ways_of_tracing_agree_on_every_family(name):
    _agree(name)


@pytest.mark.slow
def test_every_classification_model(tmp_path):
    records = sweep.sweep(tmp_path / "zoo.jsonl", jobs=2)
    assert not [record for record in records if record["outcome"] == "failed"]


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize("name", families.NETWORKS)
def test_a_family_learns_on_photographs(name, data_folder):
    outcome = families.examine(name, data_folder / "imagenet-sample")
    assert outcome.problem() is None, outcome


@pytest.mark.slow
@pytest.mark.shared
def test_vgg_learns_with_norms_and_not_without(data_folder):
    accuracies = {v: norms_matter.examine(v, str(data_folder)) for v in ("insert", "ignore")}
    assert accuracies["insert"] > 0.8
    assert accuracies["ignore"] < 0.2
