"""Layers under torch.jit.script and torch.jit.trace, for inference."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adderize import AdderConv2d, AdderLinear, BinaryConv2d, adderize, binarize
from adderize.layers import AdderConv2dSame

pytestmark = pytest.mark.filterwarnings("ignore:.*jit.*:FutureWarning")

KINDS = {"adder": AdderConv2d, "same": AdderConv2dSame, "binary": BinaryConv2d}
CHANGES: dict[str, dict[str, Any]] = {
    "as made": {},
    "stride": {"stride": 2},
    "pairs": {"stride": (2, 1), "padding": (0, 2), "dilation": (1, 2)},
    "same": {"padding": "same", "dilation": 3},
    "valid": {"padding": "valid"},
    "circular": {"padding_mode": "circular", "padding": (2, 1)},
    "reflect, same": {"padding_mode": "reflect", "padding": "same"},
    "no bias": {"bias": None},
    "norm": {"norm": nn.BatchNorm2d(4)},
    "double": {"weight": nn.Parameter(torch.randn(4, 4, 3, 2, dtype=torch.float64))},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", CHANGES)
def test_scripted_and_traced_layers(kind: str, change: str) -> None:
    layer = KINDS[kind](4, 4, (3, 2), padding=1)
    for name, value in CHANGES[change].items():
        setattr(layer, name, value)
    layer.eval()
    images = torch.randn(2, 4, 9, 8, dtype=layer.weight.dtype)
    scripted, traced = torch.jit.script(layer), torch.jit.trace(layer, images)
    torch.testing.assert_close(traced(images), layer(images))
    for input in (images, images[0]):
        torch.testing.assert_close(scripted(input), layer(input))


@pytest.mark.parametrize("norm", [None, nn.BatchNorm1d(3)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_layers(norm: nn.Module | None, bias: bool) -> None:
    layer = AdderLinear(4, 3, bias)
    layer.norm = norm
    scripted = torch.jit.script(layer.eval())
    for shape in ((4,), (2, 4), (2, 3, 4)):
        rows = torch.randn(shape)
        torch.testing.assert_close(scripted(rows), layer(rows))


def _saved_and_loaded(scripted: Any) -> Any:
    buffer = io.BytesIO()
    torch.jit.save(scripted, buffer)
    buffer.seek(0)
    return torch.jit.load(buffer)


@pytest.mark.parametrize("convert", [adderize, binarize])
def test_a_network_of_torchvision_saved_and_loaded(convert: Any) -> None:
    from torchvision.models import resnet18

    torch.manual_seed(0)
    model = convert(resnet18(num_classes=4)).eval()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    scripted = torch.jit.script(model)
    images = torch.randn(2, 3, 40, 40)
    expected = model(images)
    torch.testing.assert_close(_saved_and_loaded(scripted)(images), expected)
    # Scripting leaves the model as it was.
    assert list(scripted.state_dict()) == list(state)
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key])


def test_gradients_of_scripted_layers() -> None:
    layer = AdderConv2d(3, 4, 3)
    scripted, images = torch.jit.script(layer), torch.randn(2, 3, 6, 6)
    expected = torch.autograd.grad(layer(images).square().sum(), layer.weight)
    found = torch.autograd.grad(scripted(images).square().sum(), layer.weight)
    torch.testing.assert_close(found, expected)


class _Trained(nn.Module):
    """Scripted while it trains: the norm inside the layer follows the mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = AdderConv2d(3, 4, 3)
        self.layer.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.layer(x)
        return output


def test_norms_inside_follow_the_mode() -> None:
    model, images = _Trained(), torch.randn(4, 3, 6, 6)
    scripted = torch.jit.script(model)
    torch.testing.assert_close(scripted(images).mean((0, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(scripted.eval()(images), model.eval()(images))
