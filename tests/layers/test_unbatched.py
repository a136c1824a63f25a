"""Single images and rows, which the norm inside a layer does not take by itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from adderize import AdderConv2d, AdderizeError, AdderLinear, BinaryConv2d, adderize, binarize
from adderize.layers import AdderConv2dSame

NORMS = {
    "batch": nn.BatchNorm2d,
    "instance": nn.InstanceNorm2d,
    "group": lambda channels: nn.GroupNorm(2, channels),
    # As many rows as channels: an image would pass for a batch.
    "group of one image's rows": lambda channels: nn.GroupNorm(1, channels),
}
LAYERS = {"adder": AdderConv2d, "same": AdderConv2dSame, "binary": BinaryConv2d}


def _layer(kind: str, norm: str) -> nn.Module:
    layer = LAYERS[kind](4, 6, 3, padding=1)
    layer.norm = NORMS[norm](4 if kind == "binary" else 6)
    for parameter in layer.norm.parameters():
        nn.init.normal_(parameter)
    return layer


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", LAYERS)
def test_an_image_is_a_batch_of_one(kind: str, norm: str, training: bool) -> None:
    layer, image = _layer(kind, norm).train(training), torch.randn(4, 6, 6)
    expected = layer(image[None])[0]
    traced = torch.fx.symbolic_trace(layer)
    assert expected.shape == (6, 6, 6)
    torch.testing.assert_close(layer(image), expected)
    torch.testing.assert_close(traced(image), expected)
    torch.testing.assert_close(traced(image[None])[0], expected)


@pytest.mark.parametrize("convert", [adderize, binarize])
@pytest.mark.parametrize("training", [True, False])
def test_converted_networks(convert: object, training: bool) -> None:
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 3)]
    net = convert(nn.Sequential(*layers)).train(training)  # type: ignore[operator]
    assert net[2].norm is not None
    image = torch.randn(3, 16, 16)
    torch.testing.assert_close(net(image), net(image[None])[0])


def test_rows_of_any_number_of_dimensions() -> None:
    net = adderize(nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 2)), linear=True)
    assert isinstance(net[1], AdderLinear) and net[1].norm is not None
    net.eval()
    rows = torch.randn(2, 3, 6)
    expected = net(rows.flatten(0, 1))
    torch.testing.assert_close(net(rows), expected.unflatten(0, (2, 3)))
    torch.testing.assert_close(net(rows[0, 0]), expected[0])


@pytest.mark.parametrize("shape", [(6,), (1, 6), (1, 1, 6)])
def test_one_row_while_a_batch_norm_trains_is_refused(shape: tuple[int, ...]) -> None:
    layer = AdderLinear(6, 5)
    layer.norm = nn.BatchNorm1d(5)
    with pytest.raises(AdderizeError, match=r"AdderLinear\(in_features=6.*model\.eval\(\)"):
        layer(torch.randn(shape))
    layer.norm = nn.LayerNorm(5)
    assert layer(torch.randn(shape)).shape == (*shape[:-1], 5)


def test_one_pixel_while_a_batch_norm_trains_is_refused() -> None:
    for layer in (_layer("adder", "batch"), _layer("binary", "batch")):
        layer.padding = 0
        with pytest.raises(AdderizeError, match=r"Conv2d\(4, 6.*larger batch"):
            layer(torch.randn(1, 4, 1, 1) if isinstance(layer, BinaryConv2d) else
                  torch.randn(4, 3, 3))  # fmt: skip


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("rows_last", [False, True])
def test_an_image_of_any_strides_gives_what_view_takes(kind: str, rows_last: bool) -> None:
    """As a convolution does; images of PIL and NumPy have their channels last."""
    image: Tensor = torch.randn(6, 6, 4).permute(2, 0, 1) if rows_last else torch.randn(4, 6, 6)
    layer = LAYERS[kind](4, 6, 3, padding=1)
    assert layer(image).view(-1).shape == nn.Conv2d(4, 6, 3, padding=1)(image).view(-1).shape
