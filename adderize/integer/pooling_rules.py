"""Pooling on integers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.fx import Node

from adderize.dataflow.graphs import argument, module_of, operation
from adderize.integer.fixed_point import Bounds, dropped
from adderize.integer.lowered_values import LoweredValues
from adderize.integer.program import Setting
from adderize.integer.refusal import RefusedError, check_windows
from adderize.integer.value import Value, nearest_integer
from adderize.ops.geometry import as_pair
from adderize.quantize.calls import max_pool_of


def lower_mean(values: LoweredValues, node: Node) -> None:
    """A sum; the count goes into the scale of what it stands for."""
    source, value = values.operand(node)
    window = _mean_window(node, source.meta["shape"])
    if value.scale.dim():
        raise RefusedError("it averages the image")
    pad = nearest_integer(float(value.zero)) if any(window["padding"]) else 0
    settings, bounds = sum_pool_settings(value.bounds, window["kernel"], pad)
    count, unit = math.prod(window["kernel"]), 2.0 ** settings["drop"]
    precision = value.precision.rounded(float(value.scale) * unit if unit > 1 else 0.0)
    result = Value(
        value.scale * unit / count, value.zero / unit * count, bounds, precision.averaged(count)
    )
    shape = node.meta["shape"]
    given: dict[str, Setting] = {**window, **settings}
    image = shape if len(shape) == 4 else (*shape, 1, 1)
    values.emit(node, "sum_pool", [values.slot(source)], result, given, shape=image)


def sum_pool_settings(
    bounds: Bounds, kernel: tuple[int, int], pad: int
) -> tuple[dict[str, int], Bounds]:
    """`pad` and `drop` of sums over windows, and the bounds of the sums."""
    low, high = min(int(bounds.low.min()), pad), max(int(bounds.high.max()), pad)
    count = math.prod(kernel)
    drop = max((max(-low, high) * count).bit_length() - 30, 0)
    low, high, pad = (dropped(torch.tensor([low, high, pad], device="cpu"), drop)).tolist()
    return {"pad": pad, "drop": drop}, Bounds.of(low * count, high * count)


def lower_max_pool(values: LoweredValues, node: Node) -> None:
    source, value = values.operand(node)
    values.emit(node, "max_pool", [values.slot(source)], value, _max_window(node))


def _mean_window(node: Node, shape: Sequence[int]) -> dict[str, tuple[int, int]]:
    """Kernel, stride and padding of a mean over a tensor of this shape, batch included.

    Raises:
        RefusedError: windows of several sizes, divisors of their own, other dimensions.
    """
    module, name = module_of(node), operation(node)
    height, width = shape[-2:]
    if name == "mean":
        dims = argument(node, 1, "dim")
        wanted = sorted(d % len(shape) for d in dims) if isinstance(dims, (list, tuple)) else None
        if len(shape) != 4 or wanted != [2, 3]:
            raise RefusedError("it averages over other dimensions than height and width")
        return _window((height, width), (1, 1), (0, 0))
    if name in ("AdaptiveAvgPool2d", "adaptive_avg_pool2d"):
        size: Any = argument(node, 1, "output_size") if module is None else module.output_size
        rows, columns = size if isinstance(size, (list, tuple)) else (size, size)
        rows, columns = rows or height, columns or width
        if height % rows or width % columns:
            raise RefusedError("its windows have several sizes")
        window = (height // rows, width // columns)
        return _window(window, window, (0, 0))
    pool = module or nn.AvgPool2d(*node.args[1:], **node.kwargs)  # type: ignore[arg-type]
    assert isinstance(pool, nn.AvgPool2d)
    check_windows(pool)
    names = ("kernel_size", "stride", "padding")
    return _window(*(as_pair(getattr(pool, name), name) for name in names))


def _window(
    kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]
) -> dict[str, tuple[int, int]]:
    return {"kernel": kernel, "stride": stride, "padding": padding}


def _max_window(node: Node) -> dict[str, Setting]:
    """The settings of a max pooling of floats or bytes.

    Raises:
        RefusedError: it gives indices.
    """
    pool = max_pool_of(node)
    if pool is None:
        raise RefusedError("it gives indices")
    names = ("kernel_size", "stride", "padding", "dilation")
    *window, dilation = (as_pair(getattr(pool, name), name) for name in names)
    return {**_window(*window), "dilation": dilation, "ceil_mode": int(pool.ceil_mode)}
