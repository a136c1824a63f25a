"""Programs run in NumPy as they are documented: an oracle without code of the library."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adderize.integer import Instruction, Program

Array = NDArray[np.int64]


def run(program: Program, image: Any) -> Array:
    """The logits of one image (C, H, W); AssertionError where a sum leaves 32 bits."""
    slots: dict[int, Array] = {program.input: np.asarray(image, dtype=np.int64)}
    for step in program.instructions:
        output = program.slots[step.output]
        inputs = [slots[slot] for slot in step.inputs]
        result = _KINDS[step.kind](step, *inputs)
        if step.kind == "move":
            result = result.reshape(output.shape)
        assert result.shape == output.shape, (step.layer, result.shape, output.shape)
        low, high = (0, 255) if output.dtype == "uint8" else (-(2**31), 2**31 - 1)
        assert result.min() >= low and result.max() <= high, step.layer
        slots[step.output] = result
    return slots[program.output]


def _sum32(*terms: Array) -> Array:
    total = np.zeros_like(terms[0])
    for term in terms:
        total = total + term
        assert np.abs(total).max(initial=0) < 2**31
    return total


def _round(values: Array, drop: int) -> Array:
    return _sum32(values, np.full_like(values, 1 << drop >> 1)) >> drop if drop else values


def _tensor(step: Instruction, name: str) -> Array:
    return step.tensors[name].numpy().astype(np.int64)


def _epilogue(step: Instruction, sums: Array, other: Array | None, dim: int) -> Array:
    around = [1] * sums.ndim
    around[dim] = -1
    terms = [np.broadcast_to(_tensor(step, "bias").reshape(around), sums.shape)]
    for shift, sign in zip(_tensor(step, "shifts"), _tensor(step, "signs"), strict=True):
        terms.append((sums << shift.reshape(around)) * sign.reshape(around))
    if other is not None:
        pairs = zip(_tensor(step, "other_shifts"), _tensor(step, "other_signs"), strict=True)
        terms += [(other << shift) * sign for shift, sign in pairs]
    settings: Any = step.settings
    return np.clip(_sum32(*terms) >> settings["fraction"], settings["low"], settings["high"])


def _windows(step: Instruction, x: Array, kernel: tuple[int, ...]) -> tuple[Any, Any]:
    """Views of a padded image, one for each tap, and the output's rows and columns."""
    settings: Any = step.settings
    stride, dilation = settings["stride"], settings.get("dilation", (1, 1))
    size = [(x.shape[i + 1] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in range(2)]

    def at(row: int, column: int) -> Array:
        row, column = row * dilation[0], column * dilation[1]
        rows = slice(row, row + (size[0] - 1) * stride[0] + 1, stride[0])
        return x[:, rows, column : column + (size[1] - 1) * stride[1] + 1 : stride[1]]

    return {tap: at(*tap) for tap in itertools.product(*map(range, kernel))}, size


def _surround(step: Instruction, x: Array, value: Any) -> Array:
    left, right, top, bottom = step.settings["padding"]  # type: ignore[misc]
    pads = ((0, 0), (top, bottom), (left, right))
    mode = step.settings["padding_mode"]
    if mode == "constant":
        return np.stack([
            np.pad(plane, pads[1:], constant_values=int(fill))
            for plane, fill in zip(x, np.broadcast_to(value, len(x)), strict=True)
        ])  # fmt: skip
    names: Any = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}
    return np.pad(x, pads, mode=names[mode])


def _adder_conv(step: Instruction, x: Array, other: Array | None = None) -> Array:
    weight = _tensor(step, "weight")
    views, size = _windows(step, _surround(step, x, step.settings["zero"]), weight.shape[2:])
    return _epilogue(step, _conv(step, views, size, weight, np.subtract), other, 0)


def _conv(step: Instruction, views: Any, size: Any, weight: Array, combine: Any) -> Array:
    groups: Any = step.settings["groups"]
    outputs, fan = len(weight), weight.shape[1]
    sums = np.zeros((outputs, *size), dtype=np.int64)
    for c in range(outputs):
        first = c // (outputs // groups) * fan
        for (row, column), view in views.items():
            taps = combine(view[first : first + fan], weight[c, :, row, column][:, None, None])
            sums[c] += (np.abs(taps) if combine is np.subtract else taps).sum(0)
    return sums


def _adder_linear(step: Instruction, x: Array, other: Array | None = None) -> Array:
    sums = np.abs(x[..., None, :] - _tensor(step, "weight")).sum(-1)
    return _epilogue(step, sums, other, -1)


def _shift_conv(step: Instruction, x: Array) -> Array:
    x = _surround(step, x, _tensor(step, "pad"))
    views, size = _windows(step, x, step.tensors["shifts"].shape[3:])
    terms = zip(_tensor(step, "shifts"), _tensor(step, "signs"), strict=True)
    sums = [_conv(step, views, size, np.stack(term, -1), _shifted) for term in terms]
    bias = np.broadcast_to(_tensor(step, "bias")[:, None, None], sums[0].shape)
    return _sum32(bias, *sums)


def _shifted(x: Array, term: Array) -> Array:
    """Values shifted to the left or, by negative shifts, to the right, with signs."""
    shift, sign = term[..., 0], term[..., 1]
    assert np.abs(np.where(sign == 0, 0, x << shift.clip(0))).max(initial=0) < 2**31
    return np.where(shift < 0, x >> (-shift).clip(0), x << shift.clip(0)) * sign


def _shift_linear(step: Instruction, x: Array) -> Array:
    terms = zip(_tensor(step, "shifts"), _tensor(step, "signs"), strict=True)
    sums = [_shifted(x[..., None, :], np.stack(term, -1)).sum(-1) for term in terms]
    return _sum32(_tensor(step, "bias") + 0 * sums[0], *sums)


def _sum_pool(step: Instruction, x: Array) -> Array:
    settings: Any = step.settings
    rows, columns = settings["padding"]
    pads = ((0, 0), (rows, rows), (columns, columns))
    x = np.pad(_round(x, settings["drop"]), pads, constant_values=settings["pad"])
    return _sum32(*_windows(step, x, settings["kernel"])[0].values())


def _max_pool(step: Instruction, x: Array) -> Array:
    settings: Any = step.settings
    rows, columns = settings["padding"]
    pads = [[0, 0], [rows, rows], [columns, columns]]
    for i in range(2 if settings["ceil_mode"] else 0):
        before, stride = (rows, columns)[i], settings["stride"][i]
        size = x.shape[i + 1] + 2 * before
        rest = size - settings["dilation"][i] * (settings["kernel"][i] - 1) - 1
        start = -(-rest // stride) * stride
        if start < x.shape[i + 1] + before:
            pads[i + 1][1] += start - rest
    x = np.pad(x, pads, constant_values=-(2**31))
    return np.max(list(_windows(step, x, settings["kernel"])[0].values()), axis=0)


def _rescale(step: Instruction, x: Array, other: Array | None = None) -> Array:
    settings: Any = step.settings
    other = None if other is None else _round(other, settings["other_drop"])
    return _epilogue(step, _round(x, settings["drop"]), other, 0)


def _clamp(step: Instruction, x: Array) -> Array:
    return np.clip(x, step.settings["low"], step.settings["high"])  # type: ignore[arg-type]


def _concat(step: Instruction, *parts: Array) -> Array:
    return np.concatenate(parts, step.settings["dim"])  # type: ignore[arg-type]


def _pad(step: Instruction, x: Array) -> Array:
    padding: Any = step.settings["padding"]
    pairs = list(zip(padding[::2], padding[1::2], strict=True))[::-1]
    return np.pad(x, pairs, constant_values=step.settings["value"])  # type: ignore[arg-type]


def _move(step: Instruction, x: Array) -> Array:
    settings: Any = step.settings
    flat, steps = x.reshape(-1), zip(settings["sizes"], settings["strides"], strict=True)
    places = np.array([settings["offset"]])
    for size, stride in steps:
        places = (places[:, None] + stride * np.arange(size)).reshape(-1)
    return flat[places]


_KINDS: dict[str, Any] = {
    "adder_conv": _adder_conv, "adder_linear": _adder_linear, "shift_conv": _shift_conv,
    "shift_linear": _shift_linear, "sum_pool": _sum_pool, "max_pool": _max_pool,
    "rescale": _rescale, "clamp": _clamp, "concat": _concat, "pad": _pad, "move": _move,
}  # fmt: skip
