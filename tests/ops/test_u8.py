"""The op on bytes, to the bit, against a sum over the taps in int64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from adderize import AdderizeError
from adderize.ops.bytes import pack, unpack

adder_conv2d_u8 = torch.ops.adderize.adder_conv2d_u8
adder_conv2d_u8_packed = torch.ops.adderize.adder_conv2d_u8_packed


def _bytes(*shape: int, low: int = 0, high: int = 255) -> Tensor:
    return torch.randint(low, high + 1, shape, dtype=torch.uint8)


def _arguments(filters: int, **changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "scale": torch.randn(filters) * 0.05,
        "shift": torch.randn(filters) * 50 + 128,
        "residual": None,
        "residual_scale": 0.0,
        "zero_point": 0,
        "stride": (1, 1),
        "padding": (0, 0),
        "dilation": (1, 1),
        "groups": 1,
        "low": 0.0,
        "high": 255.0,
        "float_output": False,
    }
    return {**arguments, **changes}


def _distances(
    x: Tensor,
    w: Tensor,
    zero_point: int,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> Tensor:
    filters, channels, kh, kw = w.shape
    (top, left), (down, across) = padding, stride
    padded = F.pad(x.long(), (left, left, top, top), value=zero_point)
    height, width = (
        (padded.shape[2 + i] - dilation[i] * (w.shape[2 + i] - 1) - 1) // stride[i] + 1
        for i in (0, 1)
    )
    total = torch.zeros(x.shape[0], filters, height, width, dtype=torch.int64)
    for y in range(kh):
        for z in range(kw):
            rows = padded[:, :, y * dilation[0] :: down][:, :, :height]
            seen = rows[..., z * dilation[1] :: across][..., :width]
            for c in range(filters):
                first = c // (filters // groups) * channels
                tap = w[c, :, y, z].long().view(-1, 1, 1)
                total[:, c] += (seen[:, first : first + channels] - tap).abs().sum(1)
    return total


def _expected(x: Tensor, w: Tensor, a: dict[str, Any]) -> Tensor:
    geometry = (a["stride"], a["padding"], a["dilation"], a["groups"])
    distances = _distances(x, w, a["zero_point"], *geometry)
    v = distances.float() * a["scale"].view(-1, 1, 1) + a["shift"].view(-1, 1, 1)
    if a["residual"] is not None:
        v = v + a["residual"].float() * torch.tensor(a["residual_scale"])
    if a["float_output"]:
        return v.clamp(a["low"], a["high"])
    return v.round().clamp(a["low"], a["high"]).to(torch.uint8)


GRID = {
    "3x3 padded": ((2, 5, 9, 7), (6, 5, 3, 3), {"padding": (1, 1), "zero_point": 77}),
    "1x1": ((3, 8, 5, 5), (4, 8, 1, 1), {}),
    "unequal": (
        *((2, 4, 9, 11), (8, 4, 3, 2)),
        {"stride": (2, 1), "padding": (1, 2), "zero_point": 255},
    ),
    "dilated": ((1, 3, 13, 12), (5, 3, 3, 3), {"dilation": (2, 3), "padding": (2, 3)}),
    "groups": ((2, 6, 8, 8), (9, 2, 3, 3), {"groups": 3, "stride": (3, 3)}),
    "many channels": ((2, 64, 6, 13), (40, 64, 3, 3), {"padding": (1, 1), "zero_point": 128}),
    "67 channels": ((1, 67, 5, 29), (67, 67, 3, 3), {"padding": (1, 1), "stride": (2, 1)}),
    "7x7 of 3 channels": ((5, 3, 17, 19), (17, 3, 7, 7), {"stride": (2, 2), "padding": (3, 3)}),
    "unfolded and dilated": ((1, 3, 9, 14), (8, 3, 3, 3), {"dilation": (1, 2)}),
    "groups of whole blocks": ((2, 32, 6, 6), (16, 16, 3, 3), {"groups": 2}),
    "whole image": ((40, 9, 4, 4), (21, 9, 4, 4), {}),
    "one row of outputs": ((1, 10, 5, 60), (20, 10, 5, 5), {}),
    "1x1 stride 2": ((2, 16, 9, 9), (24, 16, 1, 1), {"stride": (2, 2)}),
    "grey": ((3, 1, 12, 12), (6, 1, 5, 5), {"zero_point": 9}),
    "wide depthwise": ((2, 130, 5, 11), (130, 1, 3, 3), {"groups": 130, "padding": (1, 1)}),
    "depthwise multiplier": ((1, 5, 8, 9), (15, 1, 5, 3), {"groups": 5, "dilation": (1, 2)}),
    "depthwise of 289 taps": ((1, 3, 17, 18), (3, 1, 17, 17), {"groups": 3}),
    "narrow groups": ((2, 52, 7, 9), (52, 4, 3, 3), {"groups": 13, "padding": (1, 1)}),
    "narrow groups, unequal": (
        *((2, 63, 9, 11), (90, 7, 3, 2)),
        {"groups": 9, "stride": (2, 1), "padding": (0, 2), "dilation": (1, 2), "zero_point": 200},
    ),
    "narrow groups of many filters": ((1, 15, 5, 6), (75, 3, 1, 3), {"groups": 5}),
    "narrow groups of one filter": ((2, 40, 6, 9), (5, 8, 3, 3), {"groups": 5}),
    "narrow groups of 288 terms": ((1, 16, 7, 7), (10, 8, 6, 6), {"groups": 2}),
    "groups of a full block": ((1, 24, 6, 9), (24, 8, 3, 3), {"groups": 3}),
    "padding beyond the image": ((1, 2, 2, 2), (3, 2, 3, 3), {"padding": (3, 3)}),
    "stride beyond the image": ((2, 3, 5, 4), (4, 3, 3, 3), {"stride": (2**40, 2**40)}),
    "depthwise": ((2, 7, 8, 9), (7, 1, 3, 3), {"groups": 7, "padding": (1, 1), "zero_point": 3}),
    "empty batch": ((0, 3, 6, 6), (4, 3, 3, 3), {}),
}


@pytest.mark.parametrize("case", GRID)
def test_equals_the_sum_over_the_taps(case: str, cpu: str) -> None:
    input_shape, weight_shape, changes = GRID[case]
    x, w = _bytes(*input_shape), _bytes(*weight_shape)
    arguments = _arguments(weight_shape[0], **changes)
    output = adder_conv2d_u8(x.to(memory_format=torch.channels_last), w, **arguments)
    assert output.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(output, _expected(x, w, arguments))
    packed = pack(w, arguments["groups"])
    assert torch.equal(unpack(packed, w.shape, arguments["groups"]), w)
    residual = {"residual": _bytes(*output.shape), "residual_scale": 0.37}
    bounds = {"float_output": True, "low": 0.0, "high": float("inf")}
    for more in (residual, bounds, {**residual, **bounds}, {"low": 3.0, "high": 99.0}):
        arguments = {**_arguments(weight_shape[0], **changes), **more}
        output = adder_conv2d_u8_packed(x, packed, [*w.shape], **arguments)
        assert torch.equal(output, _expected(x, w, arguments))


@pytest.mark.parametrize("x_value", [0, 255])
@pytest.mark.parametrize("w_value", [0, 255])
def test_extreme_values(x_value: int, w_value: int, cpu: str) -> None:
    x = torch.full((2, 24, 6, 6), x_value, dtype=torch.uint8)
    w = torch.full((9, 24, 5, 5), w_value, dtype=torch.uint8)
    plain = {"scale": torch.ones(9), "shift": torch.zeros(9), "float_output": True, "high": 1e9}
    arguments = _arguments(9, padding=(2, 2), zero_point=255 - x_value, **plain)
    assert torch.equal(adder_conv2d_u8(x, w, **arguments), _expected(x, w, arguments))


@pytest.mark.parametrize(
    "case", ["many channels", "whole image", "wide depthwise", "narrow groups"]
)
def test_threads_change_nothing(case: str) -> None:
    input_shape, weight_shape, changes = GRID[case]
    x, w = _bytes(*input_shape), _bytes(*weight_shape)
    arguments, before = _arguments(weight_shape[0], **changes), torch.get_num_threads()
    expected = _expected(x, w, arguments)
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            assert torch.equal(adder_conv2d_u8(x, w, **arguments), expected)
    finally:
        torch.set_num_threads(before)


def test_halves_are_rounded_to_even() -> None:
    x, w = torch.arange(8, dtype=torch.uint8).view(8, 1, 1, 1), torch.zeros(1, 1, 1, 1).byte()
    arguments = _arguments(1, scale=torch.tensor([0.5]), shift=torch.zeros(1))
    assert adder_conv2d_u8(x, w, **arguments).flatten().tolist() == [0, 0, 1, 2, 2, 2, 3, 4]


@pytest.mark.parametrize("channels", [65_793, 100_000])
def test_sums_of_the_longest_filters(channels: int, cpu: str) -> None:
    x, w = torch.full((1, channels, 1, 1), 255, dtype=torch.uint8), _bytes(3, channels, 1, 1)
    w[0] = 0
    arguments = _arguments(3, scale=torch.ones(3), shift=torch.zeros(3), float_output=True)
    arguments |= {"high": float("inf")}
    output = adder_conv2d_u8(x, w, **arguments)
    assert output[0, 0, 0, 0] == torch.tensor(255 * channels).float()
    assert torch.equal(output, _expected(x, w, arguments))


BAD = {
    "input: found dtype torch.float32": {"input": torch.zeros(1, 3, 5, 5)},
    "the filters: found dtype torch.int8": {"weight": torch.zeros(4, 3, 3, 3, dtype=torch.int8)},
    "input has 2 channels": {"input": _bytes(1, 2, 5, 5)},
    "scale: found dtype torch.float64": {"scale": torch.ones(4).double()},
    r"shift: found dtype torch.float32 and shape \(3,\)": {"shift": torch.ones(3)},
    "residual: found dtype torch.float32": {"residual": torch.zeros(1, 4, 3, 3)},
    "residual: found shape": {"residual": _bytes(1, 4, 5, 5)},
    "zero_point is 256": {"zero_point": 256},
    "low is 9.0 and high 3.0; expected": {"low": 9.0, "high": 3.0},
    "low is nan": {"low": float("nan"), "float_output": True},
    "low is 0.5": {"low": 0.5},
    "high 256": {"high": 256.0},
    "stride is": {"stride": (0, 1)},
    "is smaller than the filter": {"dilation": (9, 9)},
    "cannot be divided into 3 groups": {"groups": 3, "weight": _bytes(4, 1, 3, 3)},
}


def test_packed_filters_of_another_size() -> None:
    x, w = _bytes(1, 3, 5, 5), _bytes(4, 3, 3, 3)
    with pytest.raises(AdderizeError, match=r"filters of shape \(4, 3, 3, 3\) in 1 groups"):
        adder_conv2d_u8_packed(x, pack(w, 1)[1:], [*w.shape], **_arguments(4))


@pytest.mark.parametrize("message", BAD)
def test_errors(message: str) -> None:
    good = {"input": _bytes(1, 3, 5, 5), "weight": _bytes(4, 3, 3, 3), **_arguments(4)}
    with pytest.raises(AdderizeError, match=message):
        adder_conv2d_u8(**{**good, **BAD[message]})


def test_flops_are_those_of_the_float_op() -> None:
    x, w = _bytes(2, 6, 7, 7), _bytes(4, 3, 3, 3)
    arguments = _arguments(4, groups=2, padding=(1, 1), stride=(2, 2))
    calls = (
        lambda: torch.ops.adderize.adder_conv2d(
            x.float(), w.float(), (2, 2), (1, 1), (1, 1), 2, "full"
        ),
        lambda: adder_conv2d_u8(x, w, **arguments),
        lambda: adder_conv2d_u8_packed(x, pack(w, 2), [*w.shape], **arguments),
    )
    totals = set()
    for call in calls:
        with FlopCounterMode(display=False) as counter:
            call()
        totals.add(counter.get_total_flops())
    assert len(totals) == 1 and min(totals) > 0


def test_tracing() -> None:
    x, w = _bytes(2, 6, 7, 7), _bytes(4, 3, 3, 3)
    values = tuple(_arguments(4, groups=2, padding=(1, 1), residual=_bytes(2, 4, 7, 7)).values())
    torch.library.opcheck(adder_conv2d_u8, (x, w, *values))
    torch.library.opcheck(adder_conv2d_u8_packed, (x, pack(w, 2), [*w.shape], *values))

    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            tensors = (w, *(value for value in values if isinstance(value, Tensor)))
            self.tensors = torch.nn.ParameterList(
                torch.nn.Parameter(tensor, requires_grad=False) for tensor in tensors
            )

        def forward(self, x: Tensor) -> Tensor:
            rest = iter(self.tensors)
            w = next(rest)
            given = [next(rest) if isinstance(value, Tensor) else value for value in values]
            y: Tensor = adder_conv2d_u8(x, w, *given)
            return y

    program = torch.export.export(Layer(), (x,))
    assert sum(node.op == "call_function" for node in program.graph.nodes) == 1
    assert torch.equal(program.module()(x), Layer()(x))
