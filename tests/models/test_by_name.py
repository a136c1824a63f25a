"""Models by name, and the size of their input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from adderize import AdderizeError
from adderize.models.by_name import blank, build, input_size, options_from, own_input_size


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("squeezenet1_1", "SqueezeNet"),
        ("resnet20", "CifarResNet"),
        ("timm:resnet10t", "ResNet"),
        ("adderize.models:lenet5_bn", "LeNet5BN"),
    ],
)
def test_every_form_of_name_builds_with_options(name: str, kind: str) -> None:
    model = build(name, num_classes=7)
    assert type(model).__name__ == kind
    *_, last = model.parameters()
    assert last.shape[0] == 7


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet19", "resnet19"),
        ("timm:resnet19", "list_models"),
        ("no.such.module:model", "no.such.module"),
        ("adderize.models:resnet19", "resnet19"),
        ("torch:zeros", "cannot call"),
        ("math:pi", "expected"),
        ("builtins:dict", "dict"),
    ],
)
def test_wrong_names(name: str, message: str) -> None:
    with pytest.raises(AdderizeError, match=message):
        build(name)


@pytest.mark.parametrize("name", ["resnet18", "timm:resnet10t"])
@pytest.mark.parametrize("options", [{"num_classes": "many"}, {"depth": 3}])
def test_options_that_a_builder_does_not_take(name: str, options: dict[str, object]) -> None:
    (key,) = options
    with pytest.raises(AdderizeError, match=f"cannot build '{name}' with {key}="):
        build(name, **options)


def test_code_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, code in {
        "wrong_syntax": "def network(:",
        "exits": "raise SystemExit(0)",
        "fails_later": "def network(width=1):\n    raise RuntimeError('no\\nwidth')",
    }.items():
        (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(AdderizeError, match="the import of wrong_syntax fails: SyntaxError"):
        build("wrong_syntax:network")
    with pytest.raises(AdderizeError, match="the import of exits fails: SystemExit: 0"):
        build("exits:network")
    with pytest.raises(AdderizeError, match="'fails_later:network' fails: RuntimeError: no width"):
        build("fails_later:network", width=2)
    with pytest.raises(AdderizeError, match="cannot build 'resnet18' with num_classes=-3"):
        build("resnet18", num_classes=-3)
    with pytest.raises(AdderizeError, match="cannot find ':network'"):
        build(":network")


def test_modules_are_imported_with_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without storage is the model alone, and not what its module computes when it is imported."""
    code = "import torch\nWIDTH = int(torch.full((1,), 3.0).item())\n"
    code += "def network():\n    return torch.nn.Linear(WIDTH, 2)\n"
    (tmp_path / "computes_at_import.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    weight = blank("computes_at_import:network").get_parameter("weight")
    assert weight.is_meta and weight.shape == (2, 3)


def test_a_model_states_its_own_input_size() -> None:
    model = nn.Identity()
    assert own_input_size(model) is None
    model.input_size = 784
    assert own_input_size(model) is None
    model.input_size = (1, 28, 28)
    assert own_input_size(model) == (1, 28, 28)
    model.default_cfg = {"input_size": (3, 96, 96)}
    assert own_input_size(model) == (3, 96, 96)
    model.example_input_array = torch.zeros(2, 3, 64, 64)
    assert own_input_size(model) == (3, 64, 64)


@pytest.mark.parametrize(
    ("name", "options", "size"),
    [
        ("timm:resnet10t", {"in_chans": 1}, (1, 176, 176)),
        ("timm:vit_tiny_patch16_224", {"img_size": 64}, (3, 64, 64)),
        ("timm:vit_tiny_patch16_224", {"img_size": [64, 32], "in_chans": 4}, (4, 64, 32)),
    ],
)
def test_timms_statement_follows_the_options(
    name: str, options: dict[str, Any], size: tuple[int, ...]
) -> None:
    model = build(name, **options).eval()
    assert input_size(name, model) == size
    assert model(torch.zeros(1, *size)).shape == (1, 1000)
    published = build(name)
    assert own_input_size(published) not in (None, size)


def test_torchvision_states_it_with_the_weights() -> None:
    assert input_size("inception_v3", nn.Identity()) == (3, 299, 299)
    assert input_size("resnet50", nn.Identity()) == (3, 224, 224)


@pytest.mark.parametrize("name", ["nowhere", "torch.nn:Identity", "fcn_resnet50"])
def test_an_unstated_size_is_asked_for(name: str) -> None:
    with pytest.raises(AdderizeError, match="--input"):
        input_size(name, nn.Identity())


def test_options_are_numbers_words_and_lists() -> None:
    pairs = ["a=1e-3", "b=0.1", "c=2", "d=A", "e=[1, 2]", "f=true", "g=-2E4", "h=1e", "i='1e3'"]
    expected = {"a": 1e-3, "b": 0.1, "c": 2, "d": "A", "e": [1, 2], "f": True, "g": -2e4}
    found = options_from(pairs)
    assert found == {**expected, "h": "1e", "i": "1e3"}
    assert type(found["c"]) is int


def test_weights_that_timm_does_not_know() -> None:
    with pytest.raises(AdderizeError, match=r"cannot build 'resnet10t\.nope': Invalid pretrained"):
        build("timm:resnet10t.nope")
