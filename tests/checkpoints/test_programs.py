"""Folders of integer networks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from adderize import AdderizeError, adderize, load_model, recalibrate, save_model
from adderize.checkpoints.programs import described, program_from
from adderize.integer import IntegerNetwork, to_integer
from adderize.models import lenet5_bn, resnet20
from adderize.quantize import quantize

Change = Callable[[dict[str, Any]], object]


def lowered(model: nn.Module, size: tuple[int, ...]) -> IntegerNetwork:
    x = torch.randn(4, *size)
    quantized = quantize(recalibrate(model, [x]).eval(), [x])
    statistics = {"mean": (0.1,) * size[0], "std": (0.3,) * size[0]}
    return to_integer(quantized, input_size=size, **statistics)


@pytest.fixture(scope="module")
def network() -> IntegerNetwork:
    return lowered(adderize(lenet5_bn(), linear=True), (1, 32, 32))


@pytest.mark.parametrize("build", [lenet5_bn, resnet20])
def test_an_integer_network_is_saved_and_loaded(
    tmp_path: Path, build: Callable[[], nn.Module]
) -> None:
    size = (1, 32, 32) if build is lenet5_bn else (3, 32, 32)
    network = lowered(adderize(build(), stem=build is lenet5_bn), size)
    save_model(network, tmp_path)
    loaded = load_model(tmp_path)
    raw = torch.randint(0, 256, (4, *size)).byte()
    assert torch.equal(loaded(raw), network(raw))
    assert torch.equal(loaded.reference(raw), network(raw))
    assert torch.equal(loaded.logits(raw), network.logits(raw))
    assert loaded.report == network.report and loaded.input_size == network.input_size
    assert loaded.program.mean == network.program.mean
    save_model(loaded, tmp_path / "again")
    for file in ("adderize.json", "model.safetensors"):
        assert (tmp_path / file).read_bytes() == (tmp_path / "again" / file).read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {
        "README.md", "adderize.json", "model.safetensors", "again",
    }  # fmt: skip


def test_models_and_folders_are_not_confused(tmp_path: Path, network: IntegerNetwork) -> None:
    save_model(network, tmp_path / "integers")
    save_model(adderize(lenet5_bn()), tmp_path / "floats")
    with pytest.raises(AdderizeError, match=r"load_model\(folder\) takes no model"):
        load_model(lenet5_bn(), tmp_path / "integers")
    with pytest.raises(AdderizeError, match=r"takes the model that the weights belong to"):
        load_model(tmp_path / "floats")
    with pytest.raises(AdderizeError, match=r"expected a torch\.nn\.Module"):
        load_model(tmp_path, tmp_path)  # type: ignore[call-overload]
    with pytest.raises(AdderizeError, match="got no folder"):
        load_model(lenet5_bn())  # type: ignore[call-overload]
    with pytest.raises(AdderizeError, match=r"has no adderize\.json"):
        load_model(tmp_path / "nothing")


def steps(content: dict[str, Any]) -> Any:
    return content["instructions"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(version=1), r"of version 1; this version of adderize reads 2"),
        (lambda c: c.pop("slots"), "damaged: KeyError"),
        (lambda c: c.update(mean="x"), "damaged: ValueError"),
        (lambda c: c.update(mean=0.5), "damaged: TypeError"),
        (lambda c: steps(c)["conv2"].update(kind=["conv"]), r"conv2 is of the kind \['conv'\]"),
        (lambda c: c.update(mean=[0.1, 0.2]), "expected channels"),
        (lambda c: c.update(report={}), "report of the shifts is damaged"),
        (lambda c: c.update(output=99), "the output is slot 99 of"),
        (lambda c: c.update(input=True), "the input is slot True"),
        (lambda c: steps(c)["conv2"].update(kind="conv"), "conv conv2: an unknown kind"),
        (lambda c: steps(c)["conv2"].update(inputs=[-1]), "conv2: an operand is slot -1"),
        (lambda c: steps(c)["conv2"].update(inputs=[8]), "reads slot 8 before that is written"),
        (lambda c: steps(c)["conv2"].update(inputs=[]), "0 inputs; expected 1 to 2"),
        (lambda c: steps(c)["conv2"].update(output=1), "writes slot 1 again"),
        (lambda c: steps(c)["conv2"]["tensors"].remove("bias"), r"reads the tensors conv2\.bias"),
        (lambda c: steps(c)["conv2"]["tensors"].append("pad"), r"tensors conv2\.pad are missing"),
        (lambda c: steps(c)["conv2"]["settings"].pop("groups"), "missing or unknown: groups"),
        (lambda c: steps(c)["conv2"]["settings"].update(fraction=40), "fraction is 40"),
        (lambda c: steps(c)["conv2"]["settings"].update(low=9, high=3), "low is 9, above high"),
        (lambda c: steps(c)["conv2"]["settings"].update(high=300), "do not fit the bytes"),
        (lambda c: steps(c)["conv2"]["settings"].update(stride=[2, 2]), "its settings and inputs"),
        (lambda c: steps(c)["conv2"]["settings"].update(groups=5), "divided into 5 groups"),
        (lambda c: steps(c)["flatten"]["settings"].update(offset=1), "beyond the 400 values"),
        (lambda c: steps(c)["fc2"]["settings"].update(high=2**31 - 1), "which 32 bits do not hold"),
        (lambda c: steps(c)["fc3"]["settings"].update(least=1), "least is 1, which it cannot be"),
        (lambda c: c["slots"][4].update(dtype="float32"), "expected sizes, and uint8 or int32"),
        (lambda c: c["slots"][4].update(shape=[16, -1, 10]), "expected sizes, and uint8 or int32"),
        (lambda c: c["slots"].append({"shape": [1], "dtype": "uint8"}), r"writes the slots \[10\]"),
    ],
)  # fmt: skip
def test_wrong_programs_are_refused(
    tmp_path: Path, network: IntegerNetwork, change: Change, message: str
) -> None:
    save_model(network, tmp_path)
    file = tmp_path / "adderize.json"
    manifest = json.loads(file.read_text())
    change(manifest["program"])
    file.write_text(json.dumps(manifest))
    with pytest.raises(AdderizeError, match=message):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("conv2.weight", lambda w: w.int(), "weight is torch.int32; expected torch.uint8"),
        ("conv2.weight", lambda w: w[:, :5], r"input has 6 channels"),
        ("conv2.weight", lambda w: w[:15].contiguous(), r"expected \(any, 15\)"),
        ("conv2.bias", lambda b: b[:3], r"bias has shape \(3,\); expected \(16\)"),
        ("conv2.shifts", lambda s: s + 60, r"shifts lie outside 0\.\.31"),
        ("conv2.shifts", lambda s: s[:2].contiguous(), "signs are otherwise"),
        ("conv2.signs", lambda s: s * 2, r"signs outside -1\.\.1"),
        ("conv1.pad", lambda p: p.repeat(2), r"pad has shape \(2,\)"),
        ("fc2.weight", lambda w: w[:, 1:].contiguous(), r"weight has shape \(84, 119\)"),
        ("fc2.shifts", lambda s: torch.full_like(s, 20), "which 32 bits do not hold"),
        ("fc3.shifts", lambda s: torch.full_like(s, 31), "which 32 bits do not hold"),
        ("fc3.shifts", lambda s: s - 60, r"shifts lie outside -?\d+\.\.31"),
    ],
)  # fmt: skip
def test_wrong_tensors_are_refused(
    network: IntegerNetwork, name: str, wrong: Callable[[Tensor], Tensor], message: str
) -> None:
    content, tensors = described(network.program)
    content = json.loads(json.dumps(content))
    with pytest.raises(AdderizeError, match=message):
        IntegerNetwork(program_from(content, tensors | {name: wrong(tensors[name])}))


def test_truncated_and_foreign_files_are_refused(tmp_path: Path, network: IntegerNetwork) -> None:
    save_model(network, tmp_path)
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(AdderizeError, match=r"model\.safetensors is damaged"):
        load_model(tmp_path)
    save_model(network, tmp_path)
    tensors = load_file(weights)
    save_file({**tensors, "more": torch.zeros(3)}, weights)
    with pytest.raises(AdderizeError, match="not of one save"):
        load_model(tmp_path)
    manifest = tmp_path / "adderize.json"
    manifest.write_text(manifest.read_text()[:500])
    with pytest.raises(AdderizeError, match=r"adderize\.json is damaged"):
        load_model(tmp_path)
