"""The binary convolution beside its formula in float64, and BinaryConv2d beside torch's layer."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from adderize import AdderizeError, BinaryConv2d
from adderize.functional import binary_conv2d
from adderize.ops.reference.binary import signs

CASES: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "3x3 padded": ((2, 5, 9, 7), (6, 5, 3, 3), {"padding": 1}),
    "1x1": ((3, 8, 5, 5), (4, 8, 1, 1), {}),
    "1x1 stride 2": ((2, 4, 9, 9), (8, 4, 1, 1), {"stride": 2}),
    "unequal": ((2, 4, 9, 11), (8, 4, 3, 2), {"stride": (2, 1), "padding": (1, 2)}),
    "dilated": ((1, 3, 13, 12), (5, 3, 3, 3), {"dilation": (2, 3), "padding": (2, 3)}),
    "groups": ((2, 6, 8, 8), (9, 2, 3, 3), {"groups": 3, "padding": 1}),
    "depthwise": ((2, 7, 8, 9), (7, 1, 3, 3), {"groups": 7, "padding": 1}),
    "padding beyond the image": ((1, 2, 2, 2), (3, 2, 3, 3), {"padding": 3}),
    "empty batch": ((0, 3, 6, 6), (4, 3, 3, 3), {}),
}


def oracle(
    x: Tensor, w: Tensor, grad: Tensor, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Output and gradients, tap by tap: every value is written out from the papers' formulas."""
    (sh, sw), (ph, pw), (dh, dw) = (
        (v, v) if isinstance(v, int) else v for v in (stride, padding, dilation)
    )
    x, w, grad = x.double(), w.double(), grad.double()
    binary_x = F.pad(torch.ones_like(x) - 2 * (x < 0), (pw, pw, ph, ph))
    filters = torch.stack([(1 - 2.0 * (f < 0)) * f.abs().sum() / f.numel() for f in w])
    output, dx, dweight = torch.zeros_like(grad), torch.zeros_like(binary_x), torch.zeros_like(w)
    (out_channels, per_group, kh, kw), (_, _, rows, columns) = w.shape, grad.shape
    for c in range(out_channels):
        first = c // (out_channels // groups) * per_group
        for k in range(per_group):
            for i in range(kh):
                for j in range(kw):
                    top, left = i * dh, j * dw
                    ys = slice(top, top + (rows - 1) * sh + 1, sh)
                    xs = slice(left, left + (columns - 1) * sw + 1, sw)
                    output[:, c] += binary_x[:, first + k, ys, xs] * filters[c, k, i, j]
                    dx[:, first + k, ys, xs] += grad[:, c] * filters[c, k, i, j]
                    dweight[c, k, i, j] = (grad[:, c] * binary_x[:, first + k, ys, xs]).sum()
    dx = dx[:, :, ph : dx.shape[2] - ph, pw : dx.shape[3] - pw]
    return output, torch.where((x >= -1) & (x <= 1), dx, 0.0), dweight


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients(
    case: str, memory_format: torch.memory_format, dtype: torch.dtype
) -> None:
    input_shape, weight_shape, arguments = CASES[case]
    x = torch.randn(input_shape, dtype=dtype) * 1.5
    x = x.masked_fill(torch.rand(input_shape) < 0.2, 0).to(memory_format=memory_format)
    x, w = x.requires_grad_(), torch.randn(weight_shape, dtype=dtype).requires_grad_()
    output = binary_conv2d(x, w, **arguments)
    grad = torch.randn(output.shape, dtype=dtype)
    output.backward(grad)
    expected = oracle(x.detach(), w.detach(), grad, **arguments)
    for actual, value in zip((output, x.grad, w.grad), expected, strict=True):
        assert actual is not None and actual.dtype == dtype
        torch.testing.assert_close(actual.double(), value, rtol=1e-5, atol=1e-4)


def test_gradients_end_beyond_one_and_include_it() -> None:
    x = torch.tensor([-1.001, -1.0, 0.0, 1.0, 1.001]).view(5, 1, 1, 1).requires_grad_()
    w = torch.tensor([-3.0]).view(1, 1, 1, 1).requires_grad_()
    output = binary_conv2d(x, w)
    assert output.flatten().tolist() == [3.0, 3.0, -3.0, -3.0, -3.0]
    output.sum().backward()
    assert x.grad is not None and w.grad is not None
    assert x.grad.flatten().tolist() == [0.0, -3.0, -3.0, -3.0, 0.0]
    # DoReFa's filters are not clipped: -3 has a gradient.
    assert w.grad.item() == -1 - 1 + 1 + 1 + 1


def test_signs_of_zero_and_of_no_number() -> None:
    values = torch.tensor([0.0, -0.0, 1e-45, -1e-45, float("inf"), -float("inf")])
    assert signs(values).tolist() == [1, 1, 1, -1, 1, -1]
    assert signs(torch.tensor(float("nan"))).isnan()
    x = torch.ones(1, 1, 3, 3)
    x[0, 0, 0, 0] = float("nan")
    assert binary_conv2d(x, torch.ones(1, 1, 2, 2)).isnan().sum() == 1


@pytest.mark.filterwarnings("ignore:.*even kernel lengths:UserWarning")
@pytest.mark.parametrize("kernel", [(3, 3), (2, 4), (4, 1)])
def test_same_padding_comes_after_the_signs(kernel: tuple[int, int]) -> None:
    x, w = torch.randn(2, 3, 7, 8), torch.randn(5, 3, *kernel)
    scales = w.abs().mean((1, 2, 3)).view(-1, 1, 1)
    expected = F.conv2d(x.sign(), w.sign(), padding="same") * scales
    torch.testing.assert_close(binary_conv2d(x, w, padding="same"), expected)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [1, (2, 1), "same"])
def test_padding_modes(mode: Any, padding: Any) -> None:
    layer = BinaryConv2d(3, 5, (3, 4), padding=padding, padding_mode=mode)
    conv = nn.Conv2d(3, 5, (3, 4), padding=padding, padding_mode=mode)
    scales = layer.weight.detach().abs().mean((1, 2, 3), keepdim=True)
    conv.load_state_dict({"weight": layer.weight.sign() * scales, "bias": layer.bias})
    x = torch.randn(2, 3, 8, 9)
    torch.testing.assert_close(layer(x), conv(x.sign()))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "padding": 1, "bias": False},
        {"padding": "same", "dilation": 2},
        {"groups": 2, "padding": (1, 0)},
    ],
)
def test_constructor_attributes_and_state_dict_are_a_convolutions(options: Any) -> None:
    torch.manual_seed(0)
    binary = BinaryConv2d(4, 6, 3, **options)
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, **options)
    for name in nn.Conv2d.__constants__:
        assert getattr(binary, name) == getattr(conv, name), name
    for (key, ours), (other, theirs) in zip(
        binary.state_dict().items(), conv.state_dict().items(), strict=True
    ):
        assert key == other and torch.equal(ours, theirs)
    assert repr(binary) == repr(conv).replace("Conv2d", "BinaryConv2d")
    assert not isinstance(binary, nn.Conv2d)
    x = torch.randn(2, 4, 9, 9)
    assert binary(x).shape == conv(x).shape
    assert binary(x[0]).shape == conv(x[0]).shape


def test_signature_is_torchs() -> None:
    ours, theirs = (inspect.signature(kind).parameters for kind in (BinaryConv2d, nn.Conv2d))
    assert {n: p.default for n, p in ours.items()} == {n: p.default for n, p in theirs.items()}


def test_the_norm_comes_before_the_signs() -> None:
    layer, x = BinaryConv2d(3, 5, 3), torch.rand(4, 3, 6, 6)
    layer.norm = nn.BatchNorm2d(3)
    centred = F.batch_norm(x, None, None, training=True)
    expected = binary_conv2d(centred, layer.weight, layer.bias)
    torch.testing.assert_close(layer(x), expected)
    assert "norm.weight" in layer.state_dict()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_the_signs_of_tiny_filters(dtype: torch.dtype) -> None:
    layer, x = BinaryConv2d(8, 4, 3, bias=False), torch.randn(2, 8, 6, 6)
    with torch.no_grad():
        layer.weight[0] = -1e-30
        layer.weight[0, 0] = 1.0
    reference = layer(x)
    with torch.autocast("cpu", dtype):
        output = layer(x)
        output.float().square().mean().backward()
    assert output.dtype == dtype
    torch.testing.assert_close(output.float(), reference, rtol=0.02, atol=0.02)
    assert layer.weight.grad is not None and layer.weight.grad.dtype == torch.float32
    assert bool(layer.weight.grad.isfinite().all())


def test_opcheck() -> None:
    x, w = torch.randn(2, 4, 6, 6, requires_grad=True), torch.randn(6, 2, 3, 3, requires_grad=True)
    channels_last = x.detach().to(memory_format=torch.channels_last).requires_grad_()
    for input in (x, channels_last):
        arguments = (input, w, [2, 1], [1, 1], [1, 1], 2)
        torch.library.opcheck(torch.ops.adderize.binary_conv2d.default, arguments)


def test_everything_that_traces_sees_one_node() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), BinaryConv2d(3, 4, 3, padding=1), nn.ReLU()).eval()
    model[1].norm = nn.BatchNorm2d(3).eval()
    x = torch.randn(2, 3, 8, 8)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    traced = torch.fx.symbolic_trace(model)
    exported = torch.export.export(model, (x,))
    for twin in (compiled, traced, exported.module()):
        torch.testing.assert_close(twin(x), model(x))
    assert [n.target for n in traced.graph.nodes].count(binary_conv2d) == 1
    names = [str(node.target) for node in exported.graph.nodes]
    assert names.count("adderize.binary_conv2d.default") == 1


def test_compiled_gradients_are_the_eager_ones() -> None:
    layer, x = BinaryConv2d(3, 4, 3, padding=1), torch.randn(2, 3, 8, 8)
    gradients = []
    for step in (layer, torch.compile(layer, fullgraph=True, backend="aot_eager")):
        layer.zero_grad()
        step(x).square().sum().backward()
        gradients.append([p.grad.clone() for p in layer.parameters() if p.grad is not None])
    for eager, compiled in zip(*gradients, strict=True):
        torch.testing.assert_close(compiled, eager)


def test_layers_pickle_copy_and_move() -> None:
    layer, x = BinaryConv2d(2, 3, 3), torch.randn(1, 2, 5, 5)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), layer(x))
    assert layer.double()(x.double()).dtype == torch.float64
    assert BinaryConv2d(2, 3, 3, device="meta")(x.to("meta")).shape == (1, 3, 3, 3)


def test_flop_counter() -> None:
    layer, x = BinaryConv2d(4, 6, 3, bias=False), torch.randn(2, 4, 8, 8, requires_grad=True)
    pairs = 2 * 6 * 6 * 6 * 4 * 9
    with FlopCounterMode(display=False) as counter:
        output = layer(x)
    # An addition for each pair and a scaling for each output; the XNORs are no FLOPs.
    assert counter.get_total_flops() == pairs + output.numel()
    with FlopCounterMode(display=False) as counter:
        output.sum().backward()
    assert counter.get_total_flops() == 2 * 2 * pairs


X, W = torch.ones(1, 4, 5, 5), torch.ones(6, 4, 3, 3)
WRONG: dict[str, tuple[tuple[Any, ...], dict[str, Any], str]] = {
    "channels": ((X[:, :3], W), {}, "input has 3 channels"),
    "groups": ((X, W), {"groups": 4}, "cannot be divided into 4 groups"),
    "groups type": ((X, W), {"groups": 1.0}, "groups is 1.0"),
    "stride": ((X, W), {"stride": 0}, "stride is"),
    "padding": ((X, W), {"padding": -1}, "padding is"),
    "padding word": ((X, W), {"padding": "full"}, "'valid' or 'same'"),
    "same with stride": ((X, W), {"padding": "same", "stride": 2}, "cannot have the input's size"),
    "too small": ((X[:, :, :2], W), {}, "smaller"),
    "dimensions": ((X[0, 0], W), {}, "expected"),
    "dimensions of filters": ((X, W[0]), {}, "expected"),
    "bias": ((X, W, torch.ones(5)), {}, "bias has shape"),
    "half filters": ((X.half(), W.half()), {}, "autocast"),
    "integers": ((X.long(), W), {}, "floating-point"),
    "unlike dtypes": ((X.double(), W), {}, "cast the input"),
    "array": ((X.numpy(), W), {}, "dense torch.Tensor"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_calls(case: str) -> None:
    arguments, options, message = WRONG[case]
    with pytest.raises(AdderizeError, match=message):
        binary_conv2d(*arguments, **options)


def test_half_precision_layers_are_refused_at_once() -> None:
    with pytest.raises(AdderizeError, match="mixed precision"):
        BinaryConv2d(2, 3, 3, dtype=torch.bfloat16)


def test_second_derivatives_raise() -> None:
    x = torch.randn(1, 2, 5, 5, requires_grad=True)
    output = BinaryConv2d(2, 3, 3)(x).square().sum()
    (gradient,) = torch.autograd.grad(output, x, create_graph=True)
    with pytest.raises(AdderizeError, match="second derivative"):
        gradient.sum().backward()
