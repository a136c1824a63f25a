"""adder_conv2d and adder_linear: arguments, padding, wrong calls."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from adderize import AdderizeError
from adderize.functional import adder_conv2d, adder_linear
from adderize.ops.gradients import GRADIENTS
from tests import oracle


def test_bias_is_added_to_every_position() -> None:
    x, w, bias = torch.randn(2, 3, 6, 6), torch.randn(4, 3, 3, 3), torch.randn(4)
    expected = adder_conv2d(x, w) + bias.view(1, 4, 1, 1)
    torch.testing.assert_close(adder_conv2d(x, w, bias), expected)


def test_bias_gradient_is_the_sum_of_the_output_gradient() -> None:
    bias = torch.zeros(4, requires_grad=True)
    output = adder_conv2d(torch.randn(2, 3, 6, 6), torch.randn(4, 3, 3, 3), bias)
    grad = torch.randn_like(output)
    output.backward(grad)
    torch.testing.assert_close(bias.grad, grad.sum((0, 2, 3)))


def test_integers_pairs_and_single_element_tuples_mean_the_same() -> None:
    x, w = torch.randn(2, 3, 9, 9), torch.randn(4, 3, 3, 3)
    expected = adder_conv2d(x, w, None, (2, 2), (1, 1), (2, 2))
    assert torch.equal(adder_conv2d(x, w, None, 2, 1, 2), expected)
    assert torch.equal(adder_conv2d(x, w, None, (2,), [1], (2,)), expected)


def test_unbatched_input() -> None:
    x, w = torch.randn(3, 6, 6), torch.randn(4, 3, 3, 3)
    assert torch.equal(adder_conv2d(x, w, padding=1), adder_conv2d(x[None], w, padding=1)[0])


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("kernel", [(3, 3), (2, 5), (4, 4), (1, 2)])
@pytest.mark.parametrize("dilation", [1, 2])
def test_same_padding_pads_where_a_convolution_does(kernel: tuple[int, int], dilation: int) -> None:
    x, w = torch.randn(2, 3, 8, 9), torch.randn(4, 3, *kernel)
    totals = [dilation * (size - 1) for size in kernel]
    (top, bottom), (left, right) = ((total // 2, total - total // 2) for total in totals)
    padded = F.pad(x, (left, right, top, bottom))
    conv_same = F.conv2d(x, w, padding="same", dilation=dilation)
    torch.testing.assert_close(conv_same, F.conv2d(padded, w, dilation=dilation))
    expected = adder_conv2d(padded, w, dilation=dilation)
    torch.testing.assert_close(adder_conv2d(x, w, padding="same", dilation=dilation), expected)
    assert expected.shape[2:] == x.shape[2:]


def test_valid_padding() -> None:
    x, w = torch.randn(2, 3, 8, 9), torch.randn(4, 3, 3, 3)
    assert torch.equal(adder_conv2d(x, w, padding="valid"), adder_conv2d(x, w))


@pytest.mark.parametrize("shape", [(5, 7), (7,), (2, 3, 7), (0, 7)])
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_linear_values_and_gradients(shape: tuple[int, ...], gradient: str) -> None:
    x, w = torch.randn(shape, requires_grad=True), torch.randn(4, 7, requires_grad=True)
    bias = torch.randn(4)
    output = adder_linear(x, w, bias, gradient=gradient)
    grad = torch.randn_like(output)
    output.backward(grad)
    expected = oracle.adder_conv2d(
        x.detach().reshape(-1, 7, 1, 1),
        w.detach().view(4, 7, 1, 1),
        grad.reshape(-1, 4, 1, 1),
        gradient=gradient,
    )
    assert output.shape == (*shape[:-1], 4)
    flat = expected.output.view(-1, 4) + bias
    assert oracle.relative_error(output.detach().view(-1, 4), flat) < 1e-6
    assert x.grad is not None and w.grad is not None
    dx = expected.input_gradient.reshape(x.shape)
    assert oracle.relative_error(x.grad, dx) < 1e-6
    assert oracle.relative_error(w.grad, expected.weight_gradient.view(4, 7)) < 1e-6


def _x() -> Tensor:
    return torch.randn(2, 4, 8, 8)


def _w() -> Tensor:
    return torch.randn(6, 4, 3, 3)


WRONG_CALLS: dict[str, tuple[Callable[[], object], str]] = {
    "channels": (lambda: adder_conv2d(_x(), torch.randn(6, 3, 3, 3)), "4 channels"),
    "groups": (lambda: adder_conv2d(_x(), torch.randn(6, 1, 3, 3), groups=4), "4 groups"),
    "zero groups": (lambda: adder_conv2d(_x(), _w(), groups=0), "groups is 0"),
    "groups and channels": (lambda: adder_conv2d(_x(), _w(), groups=2), "expect 8"),
    "2-D input": (lambda: adder_conv2d(torch.randn(4, 8), _w()), r"\(N, Cin, H, W\)"),
    "5-D input": (lambda: adder_conv2d(torch.randn(1, 1, 4, 8, 8), _w()), r"\(N, Cin, H, W\)"),
    "3-D filters": (lambda: adder_conv2d(_x(), torch.randn(6, 4, 3)), "weight"),
    "no filters": (lambda: adder_conv2d(_x(), torch.randn(0, 4, 3, 3)), "empty"),
    "no taps": (lambda: adder_conv2d(_x(), torch.randn(6, 4, 0, 3)), "empty"),
    "bias length": (lambda: adder_conv2d(_x(), _w(), torch.randn(4)), r"expected \(6,\)"),
    "bias shape": (lambda: adder_conv2d(_x(), _w(), torch.randn(6, 1)), r"expected \(6,\)"),
    "zero stride": (lambda: adder_conv2d(_x(), _w(), stride=0), "stride"),
    "three strides": (lambda: adder_conv2d(_x(), _w(), stride=(1, 1, 1)), "stride"),
    "zero dilation": (lambda: adder_conv2d(_x(), _w(), dilation=0), "dilation"),
    "negative padding": (lambda: adder_conv2d(_x(), _w(), padding=-1), "padding"),
    "unknown padding": (lambda: adder_conv2d(_x(), _w(), padding="full"), "'full'"),
    "same with stride": (lambda: adder_conv2d(_x(), _w(), stride=2, padding="same"), "stride"),
    "image too small": (lambda: adder_conv2d(_x()[..., :2], _w()), "smaller"),
    "gradient": (lambda: adder_conv2d(_x(), _w(), gradient="none"), "'full', 'sign', 'sign_input'"),
    "integer input": (lambda: adder_conv2d(_x().int(), _w()), "floating"),
    "mixed dtypes": (lambda: adder_conv2d(_x().double(), _w()), "autocast"),
    "half input": (lambda: adder_conv2d(_x().half(), _w()), "autocast"),
    "half filters": (lambda: adder_conv2d(_x().half(), _w().half()), "bf16-mixed"),
    "bfloat16 filters": (lambda: adder_conv2d(_x().bfloat16(), _w().bfloat16()), "bf16-mixed"),
    "other device": (lambda: adder_conv2d(_x(), _w().to("meta")), "meta"),
    "fractional stride": (lambda: adder_conv2d(_x(), _w(), stride=1.5), "stride is 1.5"),
    "fractional pair": (lambda: adder_conv2d(_x(), _w(), dilation=(1.5, 1)), "dilation"),
    "text as stride": (lambda: adder_conv2d(_x(), _w(), stride="2"), "stride is '2'"),
    "no padding": (lambda: adder_conv2d(_x(), _w(), padding=None), "padding is None"),
    "fractional groups": (lambda: adder_conv2d(_x(), _w(), groups=1.0), "groups is 1.0"),
    "same with 3-D filters": (lambda: adder_conv2d(_x(), _w()[0], padding="same"), "Cout, Cin"),
    "bias elsewhere": (lambda: adder_conv2d(_x(), _w(), torch.randn(6).to("meta")), "on meta"),
    "sparse input": (lambda: adder_conv2d(_x().to_sparse(), _w()), "dense"),
    "numpy input": (lambda: adder_conv2d(_x().numpy(), _w()), "ndarray"),
    "empty image": (lambda: adder_conv2d(_x()[:, :, :0], _w(), padding=2), "no pixels"),
    "no features": (lambda: adder_linear(torch.randn(2, 0), torch.randn(3, 0)), "in_features"),
    "linear features": (lambda: adder_linear(torch.randn(2, 5), torch.randn(3, 4)), "in_features"),
    "linear filters": (lambda: adder_linear(torch.randn(2, 4), torch.randn(4)), "in_features"),
    "linear scalar": (lambda: adder_linear(torch.tensor(1.0), torch.randn(3, 4)), "in_features"),
    "linear half": (lambda: adder_linear(_x().half(), torch.randn(3, 8).half()), "bf16-mixed"),
}


@pytest.mark.parametrize("case", WRONG_CALLS)
def test_wrong_calls_raise_one_clear_error(case: str) -> None:
    call, message = WRONG_CALLS[case]
    with pytest.raises(AdderizeError, match=message):
        call()
