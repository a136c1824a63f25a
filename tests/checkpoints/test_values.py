"""Extra state, and whatever else a state dict holds beside tensors: exactly back, or refused."""

from __future__ import annotations

import enum
import json
import math
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from adderize import AdderizeError, adderize, load_model, save_model
from adderize.checkpoints.named import start_from


class Scaler(nn.Module):
    """Keeps an extra state."""

    def __init__(self, extra: Any) -> None:
        super().__init__()
        self.extra = extra

    def forward(self, x: Tensor) -> Tensor:
        return x

    def get_extra_state(self) -> Any:
        return self.extra

    def set_extra_state(self, state: Any) -> None:
        self.extra = state


def network(extra: Any) -> nn.Sequential:
    return nn.Sequential(
        Scaler(extra), nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)
    )


def same(found: Any, expected: Any) -> bool:
    if type(found) is not type(expected):
        return False
    if isinstance(expected, Tensor):
        return found.dtype == expected.dtype and torch.equal(found, expected)
    if isinstance(expected, (list, tuple)):
        return len(found) == len(expected) and all(map(same, found, expected))
    if isinstance(expected, dict):
        return [*found] == [*expected] and all(same(found[key], expected[key]) for key in expected)
    both_nan = isinstance(expected, float) and math.isnan(expected) and math.isnan(found)
    return both_nan or bool(found == expected)


VALUES: dict[str, Any] = {
    "tensor": torch.tensor([1.5]),
    "another shape": torch.arange(6).view(2, 3),
    "none": None,
    "string": "fp8",
    "numbers": [1, 2.5, True, 10**30, -0.1, math.inf, math.nan],
    "dict": {"version": 3, "amax": 2.5, 7: "seven", None: [], 1.5: {}},
    "tuple": (1, (2, [3, ()])),
    "ordered": OrderedDict(b=1, a=2),
    "history": {"amax": [torch.tensor(2.0), torch.zeros(0)], "mask": torch.tensor([True, False])},
    "views": (torch.arange(8.0)[::2], torch.arange(6.0).view(2, 3).t()),
    "looks encoded": {"tensor": "x", "dict": [["a", 1]]},
}


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("name", VALUES)
def test_extra_state_comes_back(name: str, device: str, tmp_path: Path) -> None:
    saved = adderize(network(VALUES[name]))
    save_model(saved, tmp_path)
    with torch.device(device):
        fresh = network("fresh")
    loaded = load_model(fresh, tmp_path)
    assert same(loaded[0].extra, VALUES[name])
    assert torch.equal(loaded[2].weight, saved[2].weight)


class Level(enum.IntEnum):
    HIGH = 1


def _cycle() -> list[Any]:
    items: list[Any] = [1]
    items.append(items)
    return items


@pytest.mark.parametrize(
    ("extra", "found"),
    [
        (object(), "object"),
        ({"scale": np.float64(1.0)}, "float64"),
        ([np.zeros(2)], "ndarray"),
        ({1, 2}, "set"),
        (b"pickled", "bytes"),
        (1 + 2j, "complex"),
        (Level.HIGH, "Level"),
        ({(1, 2): 3}, "dict"),
        (torch.float8_e4m3fn, "dtype"),
        (_cycle(), "itself"),
    ],
    ids=lambda value: str(type(value).__name__),
)
def test_other_extra_state_is_refused_by_name(extra: Any, found: str, tmp_path: Path) -> None:
    save_model(network(1), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(AdderizeError, match=rf"^0\._extra_state.*{found}"):
        save_model(network(extra), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_network_without_the_extra_state(tmp_path: Path) -> None:
    save_model(network({"a": 1}), tmp_path)
    plain = network(0)
    plain[0] = nn.Identity()
    with pytest.raises(AdderizeError, match=r"the model lacks 0\._extra_state"):
        load_model(plain, tmp_path)
    save_model(plain, tmp_path)
    with pytest.raises(AdderizeError, match=r"they lack 0\._extra_state"):
        load_model(network(0), tmp_path)


def test_extra_state_that_the_module_does_not_take(tmp_path: Path) -> None:
    save_model(network({"a": 1}), tmp_path)
    fresh = network(0)

    def refuse(state: Any) -> None:
        raise KeyError("b")

    fresh[0].set_extra_state = refuse  # type: ignore[method-assign]
    with pytest.raises(AdderizeError, match="do not belong to this model: 'b'"):
        load_model(fresh, tmp_path)


def test_shared_modules_and_hooks(tmp_path: Path) -> None:
    """A module under two names, and a hook that adds an entry of its own."""

    def add(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
        state[prefix + "recipe"] = {"epochs": 3}

    def take(module: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        module.recipe = state.pop(prefix + "recipe")

    def build(extra: Any) -> nn.Sequential:
        model = network(extra)
        model.append(model[0])
        model.register_state_dict_post_hook(add)
        model.register_load_state_dict_pre_hook(take)
        return model

    save_model(build({"a": 1}), tmp_path)
    loaded = load_model(build(0), tmp_path)
    assert loaded[0].extra == loaded[5].extra == {"a": 1}
    assert loaded.recipe == {"epochs": 3}


@pytest.mark.parametrize("content", [{"tensor": "nowhere"}, {"dict": 3}, {"object": []}, {}])
def test_a_damaged_value(content: Any, tmp_path: Path) -> None:
    save_model(network([torch.ones(1)]), tmp_path)
    manifest = json.loads((tmp_path / "adderize.json").read_text())
    manifest["values"]["0._extra_state"] = content
    (tmp_path / "adderize.json").write_text(json.dumps(manifest))
    with pytest.raises(AdderizeError, match=r"adderize\.json is damaged"):
        load_model(network(0), tmp_path)


def test_extra_state_in_a_file_of_torch(tmp_path: Path) -> None:
    saved = network({"a": 1})
    torch.save(saved.state_dict(), tmp_path / "a.pth")
    loaded = start_from(network(0), "-", str(tmp_path / "a.pth"))
    assert loaded[0].extra == {"a": 1}
    assert torch.equal(loaded[2].weight, saved[2].weight)
