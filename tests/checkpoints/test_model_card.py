"""Model cards as the Hugging Face Hub's own library reads them."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest
import torch

from adderize import AdderizeError, adderize, binarize, load_model, recalibrate, save_model
from adderize.checkpoints import ModelCard
from adderize.integer import multiplication_free, to_integer
from adderize.models import lenet5_bn
from adderize.quantize import quantize


def read(folder: Path) -> huggingface_hub.ModelCard:
    card = huggingface_hub.ModelCard.load(folder / "README.md")
    # The Hub's own check, except that it asks the Hub.
    assert huggingface_hub.ModelCardData(**card.data.to_dict()).to_yaml()
    return card


def test_every_kind_of_network_says_what_it_is(tmp_path: Path) -> None:
    x = torch.randn(16, 1, 32, 32)
    adder = recalibrate(adderize(lenet5_bn(), stem=True, linear=True, init="normal"), [x]).eval()
    eight_bit = quantize(adder, [x])
    kinds = {
        "plain": (lenet5_bn(), []),
        "adder": (adder, ["adder-network"]),
        "binary": (binarize(lenet5_bn(), stem=True), ["binary-network"]),
        "bytes": (eight_bit, ["adder-network", "8-bit"]),
        "shifts": (multiplication_free(adder), ["adder-network", "multiplication-free"]),
        "integers": (
            to_integer(eight_bit, mean=(0.5,), std=(0.25,)),
            ["adder-network", "multiplication-free", "integer", "8-bit"],
        ),
    }
    for name, (model, tags) in kinds.items():
        save_model(model, tmp_path / name)
        card = read(tmp_path / name)
        assert card.data.library_name == "adderize"
        assert card.data.pipeline_tag == "image-classification"
        assert card.data.tags == ["adderize", *tags]
        assert "load_model(" in card.text and "hf://" in card.text
    assert "4 of its layers are adders" in read(tmp_path / "adder").text
    assert "8-bit integers" in read(tmp_path / "bytes").text


def test_base_model_and_metrics(tmp_path: Path) -> None:
    card = ModelCard(
        title="LeNet: as adders",
        base_model="me/lenet",
        dataset=("mnist", "MNIST"),
        metrics={"accuracy": 0.994},
        tags=["digits", "adderize"],
        text="My own words.",
    )
    save_model(adderize(lenet5_bn(), stem=True), tmp_path, card=card)
    found = read(tmp_path)
    assert found.data.base_model == "me/lenet"
    assert found.data.to_dict()["base_model_relation"] == "finetune"
    assert found.data.tags == ["adderize", "adder-network", "digits"]
    assert found.data.datasets == ["mnist"] and found.data.metrics == ["accuracy"]
    (result,) = found.data.eval_results or ()
    assert (result.metric_type, result.metric_value) == ("accuracy", 0.994)
    assert (result.dataset_type, result.dataset_name) == ("mnist", "MNIST")
    assert found.data.model_name == "LeNet: as adders"
    assert "# LeNet: as adders\n\nMy own words.\n" in found.content
    load_model(lenet5_bn(), tmp_path)


def test_somebodys_own_card_stays_unless_one_is_given(tmp_path: Path) -> None:
    model = adderize(lenet5_bn(), stem=True)
    save_model(model, tmp_path, card=ModelCard(dataset=("a", "a"), metrics={"accuracy": 0.5}))
    assert "0.5" in (tmp_path / "README.md").read_text()
    save_model(model, tmp_path)
    assert "0.5" not in (tmp_path / "README.md").read_text()
    (tmp_path / "README.md").write_text("mine")
    save_model(model, tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"
    (tmp_path / "README.md").write_bytes(b"\xff\xfe")
    save_model(model, tmp_path)
    assert (tmp_path / "README.md").read_bytes() == b"\xff\xfe"
    save_model(model, tmp_path, card=ModelCard(title="New"))
    assert "# New" in (tmp_path / "README.md").read_text()


def test_metrics_need_a_dataset() -> None:
    with pytest.raises(AdderizeError, match="no dataset"):
        ModelCard(metrics={"accuracy": 1.0})
