"""Files of hexadecimal digits, read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from adderize import AdderizeError
from adderize.export import export_hex
from adderize.integer import IntegerNetwork
from tests.export.c.random_networks import random_network
from tests.test_whole_files import killed_at


def read_hex(folder: Path, entry: dict[str, Any]) -> Tensor:
    """The array of an entry of the contents, as it was written."""
    dtype = np.dtype(entry["dtype"])
    words = [int(line, 16) for line in (folder / entry["file"]).read_text().split()]
    values = np.array(words, f"<u{dtype.itemsize}").view(dtype)
    return torch.from_numpy(values.reshape(entry["shape"]))


def exported(seed: int, folder: Path) -> tuple[IntegerNetwork, Tensor]:
    network, images = random_network(seed)
    export_hex(network, folder, examples=images)
    return network, images


@pytest.mark.parametrize("seed", range(3))
def test_files_hold_all_constants_and_tensors(seed: int, tmp_path: Path) -> None:
    network, images = exported(seed, tmp_path)
    contents = json.loads((tmp_path / "contents.json").read_text())
    for step, written in zip(network.program.instructions, contents["instructions"], strict=True):
        assert (written["kind"], written["layer"]) == (step.kind, step.layer)
        assert written["tensors"].keys() == step.tensors.keys()
        for name, tensor in step.tensors.items():
            assert torch.equal(read_hex(tmp_path, written["tensors"][name]), tensor)
    slots = [read_hex(tmp_path, entry) for entry in contents["slots"]]
    assert torch.equal(slots[contents["input"]], images)
    assert torch.equal(slots[contents["output"]].int(), network(images))
    for step, layer in zip(network.program.instructions, network.layers, strict=True):
        assert torch.equal(layer(*(slots[slot] for slot in step.inputs)), slots[step.output])


def test_negative_numbers_are_two_s_complement(tmp_path: Path) -> None:
    exported(0, tmp_path)
    contents = json.loads((tmp_path / "contents.json").read_text())
    for step in contents["instructions"]:
        for entry in step["tensors"].values():
            words = (tmp_path / entry["file"]).read_text().split()
            digits = {"uint8": 2, "int8": 2, "int32": 8}[entry["dtype"]]
            assert {len(word) for word in words} == {digits}
    signs = [
        step["tensors"]["signs"]["file"]
        for step in contents["instructions"]
        if "signs" in step["tensors"]
    ]
    assert any("ff" in (tmp_path / file).read_text().split() for file in signs)


def test_an_interrupted_export_leaves_no_contents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported(0, tmp_path)
    with killed_at(5, monkeypatch):
        exported(1, tmp_path)
    assert not (tmp_path / "contents.json").exists()


def test_other_networks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AdderizeError, match="expected an integer network"):
        export_hex(torch.nn.Linear(1, 1), tmp_path, examples=torch.zeros(1))  # type: ignore[arg-type]
