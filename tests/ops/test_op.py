"""The op itself, on whichever backend serves the CPU: values, gradients, tracing, dtypes."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from adderize import AdderConv2d, AdderizeError
from adderize.ops import choice, reference
from adderize.ops.geometry import Geometry
from adderize.ops.gradients import GRADIENTS
from tests import oracle

adder_conv2d = torch.ops.adderize.adder_conv2d


def _arguments(**changes: Any) -> dict[str, Any]:
    arguments = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}
    return {**arguments, **changes}


GRID = {
    "3x3 padded": ((2, 5, 9, 7), (6, 5, 3, 3), _arguments(padding=(1, 1))),
    "1x1": ((3, 8, 5, 5), (4, 8, 1, 1), _arguments()),
    "stride 2": ((2, 4, 11, 10), (8, 4, 3, 3), _arguments(stride=(2, 2), padding=(1, 1))),
    "1x1 stride 2": ((2, 4, 9, 9), (8, 4, 1, 1), _arguments(stride=(2, 2))),
    "stride 3 of 2x2": ((1, 3, 11, 11), (2, 3, 2, 2), _arguments(stride=(3, 3))),
    "unequal": ((2, 4, 9, 11), (8, 4, 3, 2), _arguments(stride=(2, 1), padding=(1, 2))),
    "dilated": ((1, 3, 13, 12), (5, 3, 3, 3), _arguments(dilation=(2, 3), padding=(2, 3))),
    "groups": ((2, 6, 8, 8), (9, 2, 3, 3), _arguments(groups=3, padding=(1, 1))),
    "depthwise": ((2, 7, 8, 9), (7, 1, 3, 3), _arguments(groups=7, padding=(1, 1))),
    "depthwise multiplier": ((2, 5, 8, 9), (10, 1, 5, 3), _arguments(groups=5)),
    "7x7 stride 2": ((1, 3, 17, 17), (16, 3, 7, 7), _arguments(stride=(2, 2), padding=(3, 3))),
    "1x5": ((2, 17, 6, 9), (33, 17, 1, 5), _arguments(padding=(0, 2))),
    "whole image": ((4, 6, 5, 5), (10, 6, 5, 5), _arguments()),
    "padding beyond the image": ((1, 2, 2, 2), (3, 2, 3, 3), _arguments(padding=(3, 3))),
    "stride beyond the image": ((2, 3, 5, 4), (4, 3, 3, 3), _arguments(stride=(2**40, 2**40))),
    "empty batch": ((0, 3, 6, 6), (4, 3, 3, 3), _arguments()),
}


def _run(
    x: Tensor, w: Tensor, arguments: dict[str, Any], gradient: str
) -> tuple[oracle.Expected, oracle.Expected]:
    x, w = x.detach().requires_grad_(), w.detach().requires_grad_()
    output = adder_conv2d(x, w, *arguments.values(), gradient)
    grad = torch.randn(output.shape, dtype=output.dtype)
    output.backward(grad)
    assert x.grad is not None and w.grad is not None
    expected = oracle.adder_conv2d(x.detach(), w.detach(), grad, gradient=gradient, **arguments)
    return oracle.Expected(output.detach(), x.grad, w.grad), expected


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize("case", GRID)
def test_values_and_gradients(
    case: str, offset: float, gradient: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADDERIZE_BACKEND", backend)
    input_shape, weight_shape, arguments = GRID[case]
    x, w = torch.randn(input_shape) + offset, torch.randn(weight_shape)
    for actual, expected in zip(*_run(x, w, arguments, gradient), strict=True):
        assert actual.shape == expected.shape
        assert oracle.relative_error(actual, expected) < 1e-5


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("case", GRID)
def test_float64(case: str, gradient: str) -> None:
    input_shape, weight_shape, arguments = GRID[case]
    x, w = torch.randn(input_shape).double(), torch.randn(weight_shape).double()
    for actual, expected in zip(*_run(x, w, arguments, gradient), strict=True):
        assert actual.dtype == torch.float64
        assert oracle.relative_error(actual, expected) < 1e-12


def test_offset_of_one_channel_only() -> None:
    x, w = torch.randn(4, 3, 8, 8), torch.randn(5, 3, 3, 3)
    x[:, 1] += 1000
    for actual, expected in zip(*_run(x, w, _arguments(padding=(1, 1)), "full"), strict=True):
        assert oracle.relative_error(actual, expected) < 1e-5


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("of_input", "of_filter"), [(1000, 0), (0, 1000), (1000, 1000), (-30, 70)])
def test_filter_gradient_behind_a_batch_norm_at_an_offset(
    of_input: float, of_filter: float, memory_format: torch.memory_format
) -> None:
    """The norm makes the gradient sum to zero: the filter gradient must not drown in rounding."""
    x = (torch.randn(8, 3, 32, 32) + of_input).to(memory_format=memory_format).requires_grad_()
    w = (torch.randn(4, 3, 3, 3) + of_filter).requires_grad_()
    output = adder_conv2d(x, w, [1, 1], [0, 0], [1, 1], 1, "full")
    grad = torch.randn(output.shape)
    grad -= grad.mean((0, 2, 3), keepdim=True)
    output.backward(grad)
    expected = oracle.adder_conv2d(x.detach(), w.detach(), grad)
    assert oracle.relative_error(w.grad, expected.weight_gradient) < 1e-5


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_centre_is_found_where_a_regular_sample_misses_it(
    memory_format: torch.memory_format,
) -> None:
    """Column 0 is zero and the gradient with it; a sample of every 32nd pixel sees nothing else."""
    x = torch.randn(32, 3, 32, 32) + 1000
    x[..., 0] = 0
    x = x.to(memory_format=memory_format).requires_grad_()
    w = torch.randn(4, 3, 1, 1, requires_grad=True)
    output = adder_conv2d(x, w, [1, 1], [0, 0], [1, 1], 1, "full")
    grad = torch.randn(output.shape)
    grad[..., 0] = 0
    grad[..., 1:] -= grad[..., 1:].mean((0, 2, 3), keepdim=True)
    output.backward(grad)
    expected = oracle.adder_conv2d(x.detach(), w.detach(), grad)
    assert oracle.relative_error(w.grad, expected.weight_gradient) < 3e-5


@pytest.mark.parametrize("of_input", [0, 1000])
@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("input_last", [False, True])
@pytest.mark.parametrize("filter_last", [False, True])
def test_real_strides_are_those_of_the_fake(
    of_input: float, gradient: str, input_last: bool, filter_last: bool
) -> None:
    formats = {False: torch.contiguous_format, True: torch.channels_last}
    x = (torch.randn(2, 8, 6, 6) + of_input).to(memory_format=formats[input_last])
    w = torch.randn(4, 8, 3, 3).to(memory_format=formats[filter_last])
    arguments = ([1, 1], [1, 1], [1, 1], 1, gradient)
    grad = adder_conv2d(x, w, *arguments)
    fake_x, fake_w = x.to("meta"), w.to("meta")
    fake_grad = adder_conv2d(fake_x, fake_w, *arguments)
    assert grad.stride() == fake_grad.stride()
    for op in (
        torch.ops.adderize.adder_conv2d_input_gradient,
        torch.ops.adderize.adder_conv2d_weight_gradient,
    ):
        real, fake = op(grad, x, w, *arguments), op(fake_grad, fake_x, fake_w, *arguments)
        assert real.stride() == fake.stride()


@pytest.mark.parametrize("filters", [(1, 3, 2, 2), (4, 3, 5, 5), (4, 3, 2, 2)], ids=str)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_outputs_take_operations_in_place(
    filters: tuple[int, ...], memory_format: torch.memory_format
) -> None:
    """torch refuses them on a view that an op has made, as of one channel or a single pixel."""
    x = torch.randn(2, 3, 5, 5).to(memory_format=memory_format)
    w = torch.randn(filters, requires_grad=True)
    output = adder_conv2d(x, w, [1, 1], [0, 0], [1, 1], 1, "full")
    output.neg_().sum().backward()
    expected = oracle.adder_conv2d(x, w.detach(), -torch.ones_like(output))
    assert oracle.relative_error(w.grad, expected.weight_gradient) < 3e-5


def test_gradients_of_another_dtype_shape_or_device_are_refused() -> None:
    x, w = torch.randn(2, 3, 6, 6), torch.randn(4, 3, 3, 3)
    arguments = ([1, 1], [0, 0], [1, 1], 1, "full")
    grad = adder_conv2d(x, w, *arguments)
    wrong = {
        "float64": grad.double(),
        "bfloat16": grad.bfloat16(),
        "meta": grad.to("meta"),
        r"\(2, 4, 4, 3\)": grad[..., 1:],
    }
    for op in (
        torch.ops.adderize.adder_conv2d_input_gradient,
        torch.ops.adderize.adder_conv2d_weight_gradient,
    ):
        for message, other in wrong.items():
            if message != "meta":
                with pytest.raises(AdderizeError, match=message):
                    op(other, x, w, *arguments)
            else:
                with pytest.raises((AdderizeError, RuntimeError), match="meta"):
                    op(other, x, w, *arguments)


def test_default_dtype_and_device_do_not_reach_the_kernels() -> None:
    x, w = torch.randn(2, 3, 6, 6) + 1000, torch.randn(4, 3, 3, 3)
    arguments = ([1, 1], [1, 1], [1, 1], 1, "full")
    grad = torch.randn(2, 4, 6, 6)

    def results() -> list[Tensor]:
        ops = torch.ops.adderize
        return [
            ops.adder_conv2d(x, w, *arguments),
            ops.adder_conv2d_input_gradient(grad, x, w, *arguments),
            ops.adder_conv2d_weight_gradient(grad, x, w, *arguments),
        ]

    expected = results()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            actual = results()
    finally:
        torch.set_default_dtype(torch.float32)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("layout", ["channels_last", "transposed", "sliced", "expanded"])
def test_memory_layouts(layout: str) -> None:
    x, w = torch.randn(2, 6, 9, 8), torch.randn(4, 6, 3, 3)
    variants = {
        "channels_last": lambda: (
            x.to(memory_format=torch.channels_last),
            w.to(memory_format=torch.channels_last),
        ),
        "transposed": lambda: (x.transpose(2, 3), w.transpose(2, 3)),
        "sliced": lambda: (torch.randn(2, 12, 9, 16)[:, ::2, :, 1::2], w),
        "expanded": lambda: (x[:1].expand(3, -1, -1, -1), w[:, :1].expand(-1, 6, -1, -1)),
    }
    x, w = variants[layout]()
    for actual, expected in zip(*_run(x, w, _arguments(padding=(1, 1)), "full"), strict=True):
        assert oracle.relative_error(actual, expected) < 1e-5


def test_channels_last_in_gives_channels_last_out() -> None:
    x = torch.randn(2, 6, 9, 8).to(memory_format=torch.channels_last).requires_grad_()
    w = torch.randn(4, 6, 3, 3, requires_grad=True)
    output = adder_conv2d(x, w, [1, 1], [0, 0], [1, 1], 1, "full")
    assert output.is_contiguous(memory_format=torch.channels_last)
    output.sum().backward()
    assert x.grad is not None and x.grad.is_contiguous(memory_format=torch.channels_last)
    assert w.grad is not None and w.grad.is_contiguous()
    assert adder_conv2d(x.contiguous(), w, [1, 1], [0, 0], [1, 1], 1, "full").is_contiguous()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_operands_accumulate_in_float32(dtype: torch.dtype) -> None:
    x, w = torch.randn(2, 64, 8, 8).to(dtype), torch.randn(4, 64, 3, 3).to(dtype)
    actual, expected = _run(x, w, _arguments(padding=(1, 1)), "full")
    assert actual.output.dtype == torch.float32
    assert actual.input_gradient.dtype == actual.weight_gradient.dtype == dtype
    assert oracle.relative_error(actual.output, expected.output) < 1e-5
    step = torch.finfo(dtype).eps
    assert oracle.relative_error(actual.weight_gradient, expected.weight_gradient) < step


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["input", "weight"])
def test_nan_and_infinity_propagate(value: float, where: str) -> None:
    x, w = torch.randn(2, 20, 6, 6), torch.randn(18, 20, 3, 3)
    (x if where == "input" else w)[1, 3, 1, 1] = value
    results = _run(x, w, _arguments(padding=(1, 1)), "full")
    for actual, expected in zip(*results, strict=True):
        finite = expected.isfinite()
        assert torch.equal(actual.isfinite(), finite)
        scale = expected[finite].abs().max()
        assert ((actual - expected)[finite].abs().max() / scale) < 1e-5
    assert torch.equal(results[0].output.isnan(), results[1].output.isnan())
    assert not results[0].output.isfinite().all()


def test_filter_gradient_is_skipped_where_frozen() -> None:
    x, w = torch.randn(1, 3, 6, 6, requires_grad=True), torch.randn(4, 3, 3, 3)
    adder_conv2d(x, w, [1, 1], [0, 0], [1, 1], 1, "full").sum().backward()
    assert x.grad is not None and w.grad is None


@pytest.mark.parametrize("case", ["3x3 padded", "unequal", "depthwise", "groups"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("gradient", ["sign", "sign_input"])
def test_opcheck(case: str, memory_format: torch.memory_format, gradient: str) -> None:
    input_shape, weight_shape, arguments = GRID[case]
    x = torch.randn(input_shape).to(memory_format=memory_format).requires_grad_()
    w = torch.randn(weight_shape).to(memory_format=memory_format).requires_grad_()
    torch.library.opcheck(adder_conv2d, (x, w, *arguments.values(), "full"))
    x, w = x.detach(), w.detach()
    grad = torch.randn_like(adder_conv2d(x, w, *arguments.values(), "full"))
    for op in (
        torch.ops.adderize.adder_conv2d_input_gradient,
        torch.ops.adderize.adder_conv2d_weight_gradient,
    ):
        torch.library.opcheck(op, (grad, x, w, *arguments.values(), gradient))


class Small(nn.Module):
    def __init__(self, gradient: str = "full") -> None:
        super().__init__()
        self.first = AdderConv2d(3, 8, 3, padding=1, gradient=gradient)
        self.norm = nn.BatchNorm2d(8)
        self.second = AdderConv2d(8, 4, 3, stride=2, padding="valid", gradient=gradient)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.norm(self.first(x)).relu()).mean((2, 3))


@pytest.mark.parametrize("gradient", ["full", "sign_input"])
def test_compile_fullgraph_gives_the_same_outputs_and_gradients(gradient: str) -> None:
    model, x = Small(gradient), torch.randn(2, 3, 9, 9)
    expected = model(x)
    expected.square().sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    compiled = torch.compile(model, fullgraph=True)
    output = compiled(x)
    output.square().sum().backward()
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)
    scale = max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-3, atol=1e-5 * scale)


def test_export_with_dynamic_batch_survives_saving() -> None:
    model, x = Small("sign_input").eval(), torch.randn(2, 3, 9, 9)
    dynamic = ({0: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(model, (x,), dynamic_shapes=dynamic)
    targets = [str(node.target) for node in program.graph.nodes]
    assert targets.count("adderize.adder_conv2d.default") == 2
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    loaded = torch.export.load(buffer).module()
    batch = torch.randn(5, 3, 9, 9)
    torch.testing.assert_close(loaded(batch), model(batch))


def test_fx_sees_one_node_a_layer() -> None:
    model, x = Small().eval(), torch.randn(2, 3, 9, 9)
    traced = torch.fx.symbolic_trace(model)
    names = [getattr(node.target, "__name__", "") for node in traced.graph.nodes]
    assert names.count("adder_conv2d") == 2
    torch.testing.assert_close(traced(x), model(x))


def test_meta_tensors_give_shape_and_strides() -> None:
    x = torch.empty(2, 3, 9, 9, device="meta").to(memory_format=torch.channels_last)
    output = AdderConv2d(3, 8, 3, device="meta")(x)
    assert output.shape == (2, 8, 7, 7)
    assert output.is_contiguous(memory_format=torch.channels_last)


def test_cpu_autocast_computes_in_float32() -> None:
    layer, x = AdderConv2d(3, 8, 3), torch.randn(2, 3, 9, 9)
    half = x.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = layer(half)
    assert output.dtype == torch.float32
    torch.testing.assert_close(output, layer(half.float()))
    output.sum().backward()
    assert layer.weight.grad.dtype == torch.float32


def test_autocast_leaves_float64_alone() -> None:
    layer = AdderConv2d(3, 8, 3).double()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(torch.randn(1, 3, 5, 5).double()).dtype == torch.float64


def test_flop_counter_counts_two_operations_a_pair() -> None:
    layer, x = AdderConv2d(4, 8, 3, padding=1, groups=2, bias=False), torch.randn(2, 4, 6, 6)
    with FlopCounterMode(display=False) as counter:
        layer(x)
    pairs = 2 * 6 * 6 * 8 * (2 * 3 * 3)
    assert counter.get_total_flops() == 2 * pairs


def test_no_double_backward() -> None:
    x = torch.randn(1, 2, 5, 5, requires_grad=True)
    w = torch.randn(3, 2, 3, 3, requires_grad=True)
    output = adder_conv2d(x, w, [1, 1], [0, 0], [1, 1], 1, "full")
    (gradient,) = torch.autograd.grad(output.sum(), x, create_graph=True)
    with pytest.raises(AdderizeError, match="second derivative"):
        gradient.sum().backward()


def _peak_bytes(function: Any) -> int:
    """Largest amount of memory alive at once beyond the start, by the allocator's own records."""
    with torch.profiler.profile(profile_memory=True) as profile:
        function()
    alive = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            alive += event.nbytes()
            peak = max(peak, alive)
    return peak


def test_reference_memory_is_bounded() -> None:
    batch = 64
    x, w = torch.randn(batch, 32, 64, 64), torch.randn(4, 32, 3, 3)
    grad = torch.randn(batch, 4, 64, 64)
    geometry = Geometry(padding=(1, 1))
    own = 4 * (2 * x.numel() + grad.numel()) + 4 * batch * 32 * 66 * 66 * 2
    for function in (
        lambda: reference.adder_conv2d(x, w, geometry),
        lambda: reference.adder_conv2d_input_gradient(grad, x, w, geometry, "full"),
        lambda: reference.adder_conv2d_weight_gradient(grad, x, w, geometry, "full"),
    ):
        assert 2**20 < _peak_bytes(function) < own + 256 * 2**20


def test_backend_is_chosen_by_device_and_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ADDERIZE_BACKEND", raising=False)
    assert choice.choose("cpu", torch.float64).name == "reference"
    assert choice.choose("xpu").name == "reference"
    monkeypatch.setenv("ADDERIZE_BACKEND", "reference")
    found = choice.choose("cpu")
    assert (found.name, found.reason) == ("reference", "forced by ADDERIZE_BACKEND")


def test_unknown_or_unfit_backend_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cuda", "triton"):
        monkeypatch.setenv("ADDERIZE_BACKEND", name)
        with pytest.raises(AdderizeError, match=name):
            choice.choose("cpu")
    monkeypatch.setenv("ADDERIZE_BACKEND", "native")
    with pytest.raises(AdderizeError, match="xpu"):
        choice.choose("xpu")


@pytest.mark.parametrize("required", ["1", "true", "ON"])
def test_required_native_kernels_that_are_missing(
    required: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ADDERIZE_BACKEND", raising=False)
    monkeypatch.setattr(choice.native, "available", lambda: (False, "no library was built"))
    monkeypatch.setenv("ADDERIZE_REQUIRE_NATIVE", required)
    with pytest.raises(AdderizeError, match="no library was built"):
        AdderConv2d(3, 8, 3)(torch.randn(1, 3, 5, 5))
    monkeypatch.setenv("ADDERIZE_REQUIRE_NATIVE", "0")
    choice._warn_of_slowness.cache_clear()
    with pytest.warns(UserWarning, match="slow reference: no library was built"):
        assert choice.choose("cpu").name == "reference"
