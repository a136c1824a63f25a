"""Quantized networks saved and loaded: the same outputs to the bit, or an error."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from adderize import AdderizeError, adderize, load_model, save_model
from adderize.quantize import byte_tensors, quantize, quantize_report
from adderize.quantize.qparams import dequantize_bytes
from adderize.quantize.record import quantization_of
from tests.quantize.networks import Branches, Residual, Untraceable, trained

X = torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(1))


class Enlarging(nn.Module):
    """An adder behind a nearest upsampling."""

    def __init__(self):
        super().__init__()
        self.first, self.second = (
            nn.Sequential(nn.Conv2d(c, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
            for c in (3, 4)
        )

    def forward(self, x):
        return self.second(F.interpolate(self.first(x), scale_factor=2))


def test_folders_whose_upsampling_was_in_floats_are_loaded(tmp_path, monkeypatch):
    """Bytes move through it now; then they were made behind it, in a grid of its name."""
    with monkeypatch.context() as patch:
        patch.setattr(byte_tensors, "is_repetition", lambda node: False)
        quantized = quantize(trained(Enlarging(), stem=True, head=True), [X])
        save_model(quantized, tmp_path)
    loaded = load_model(Enlarging(), tmp_path)
    assert "quantize_bytes(interpolate" in loaded.code.replace("_1", "")
    assert torch.equal(loaded(X), quantized(X))
    now = quantize(trained(Enlarging(), stem=True, head=True), [X])
    assert not [node for node in now.graph.nodes if node.target is dequantize_bytes]


@pytest.mark.parametrize("network", [Residual, Branches, Untraceable])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_fresh_network_becomes_the_saved_one(tmp_path, network, device):
    quantized = quantize(trained(network()), [X])
    save_model(quantized, tmp_path)
    with torch.device(device):
        fresh = network()
    loaded = load_model(fresh, tmp_path)
    assert torch.equal(loaded(X), quantized(X))
    assert str(quantize_report(loaded)) == str(quantize_report(quantized))
    assert not any(type(layer).__name__.startswith("Quant") for layer in fresh.modules())


def test_what_is_loaded_is_saved_as_it_was(tmp_path):
    save_model(quantize(trained(Residual()), [X], bits=6), tmp_path / "a")
    save_model(load_model(Residual(), tmp_path / "a"), tmp_path / "b")
    for name in ("adderize.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_folders_without_ranges_of_kept_inputs_load(tmp_path):
    """Those of earlier versions."""
    quantized = quantize(trained(Residual()), [X])
    save_model(quantized, tmp_path)
    kept_inputs = quantization_of(quantized).kept_inputs
    assert quantization_of(load_model(Residual(), tmp_path)).kept_inputs == kept_inputs
    manifest = json.loads((tmp_path / "adderize.json").read_text())
    del manifest["quantized"]["kept_inputs"]
    (tmp_path / "adderize.json").write_text(json.dumps(manifest))
    loaded = load_model(Residual(), tmp_path)
    assert quantization_of(loaded).kept_inputs == {}
    assert torch.equal(loaded(X), quantized(X))


def test_filters_are_saved_as_bytes(tmp_path):
    model = trained(Residual())
    save_model(model, tmp_path / "float")
    save_model(quantize(model, [X]), tmp_path / "bytes")
    sizes = [(tmp_path / n / "model.safetensors").stat().st_size for n in ("float", "bytes")]
    filters = sum(
        p.numel() for n, p in model.named_parameters() if p.dim() == 4 and "stem" not in n
    )
    assert sizes[0] - sizes[1] > 2.5 * filters
    state = quantize(model, [X]).state_dict()
    assert state["block.conv1.weight"].dtype == torch.uint8
    assert state["block.conv1.weight"].shape == model.block.conv1.weight.shape


def test_a_network_of_another_structure_is_refused(tmp_path):
    save_model(quantize(trained(Residual()), [X]), tmp_path)
    other = Residual()
    other.block.act = nn.Sigmoid()
    with pytest.raises(AdderizeError, match="built otherwise"):
        load_model(other, tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("grids", {}),
        ("grids", {"conv1": 3}),
        ("absorbed", 5),
        ("absorbed", {"stem": [["bn1"]]}),
        ("grids", {"x": {"scale": 0.5, "zero_point": 10**20, "bits": 8}}),
        ("report", {}),
        ("grids", None),
        ("kept_inputs", {"stem": [0.0]}),
        ("kept_inputs", {"stem": [1.0, 0.0]}),
    ],
)
def test_a_damaged_manifest_is_refused(tmp_path, key, value):
    save_model(quantize(trained(Residual()), [X]), tmp_path)
    file = tmp_path / "adderize.json"
    manifest = json.loads(file.read_text())
    manifest["quantized"][key] = value
    file.write_text(json.dumps(manifest))
    with pytest.raises(AdderizeError):
        load_model(Residual(), tmp_path)


def test_float_filters_do_not_load_into_integers():
    quantized = quantize(trained(Residual()), [X])
    state = quantized.state_dict()
    state["block.conv1.weight"] = state["block.conv1.weight"].float()
    with pytest.raises(RuntimeError, match=r"block\.conv1"):
        quantized.load_state_dict(state)


def test_norms_that_no_manifest_describes(tmp_path):
    model = trained(Residual())
    model.block.conv1.norm = nn.GroupNorm(2, 8)
    quantized = quantize(model, [X])
    assert "block.conv1 stays float32" in str(quantize_report(quantized))
    with pytest.raises(AdderizeError, match="norm"):
        save_model(quantized, tmp_path)


def test_a_quantized_network_is_not_converted_again():
    with pytest.raises(AdderizeError):
        adderize(quantize(trained(Residual()), [X]))


def test_a_state_dict_of_another_calibration_is_refused():
    model = trained(Residual())
    quantized, same, other = (quantize(model, [scale * X]) for scale in (1, 1, 2))
    same.load_state_dict(quantized.state_dict())
    assert torch.equal(same(X), quantized(X))
    with pytest.raises(AdderizeError, match="other scales"):
        other.load_state_dict(quantized.state_dict())
