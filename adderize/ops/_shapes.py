"""Checks and output geometry that every backend of the op shares."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from adderize.errors import AdderizeError

GRADIENTS = ("full", "sign")
_FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def output_dtype(input: Tensor) -> torch.dtype:
    """float64 for float64 inputs, float32 for every other: sums need at least 24 bits."""
    return torch.float64 if input.dtype == torch.float64 else torch.float32


def memory_format(*tensors: Tensor) -> torch.memory_format:
    """channels_last where a tensor is unambiguously so, as torch's convolution decides it."""
    for tensor in tensors:
        channels_last = tensor.is_contiguous(memory_format=torch.channels_last)
        if channels_last and not tensor.is_contiguous():
            return torch.channels_last
    return torch.contiguous_format


def output_size(
    input: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[int, int]:
    return _output_size(input.shape, weight.shape, stride, padding, dilation)


def _output_size(
    input: Sequence[int],
    weight: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[int, int]:
    height, width = (
        (size + 2 * pad - step * (kernel - 1) - 1) // jump + 1
        for size, kernel, jump, pad, step in zip(
            input[2:], weight[2:], stride, padding, dilation, strict=True
        )
    )
    return height, width


def check(
    input: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    gradient: str = "full",
) -> None:
    """Raise AdderizeError for a call that has no meaning.

    Args:
        input: (N, Cin, H, W), any floating dtype.
        weight: (Cout, Cin/groups, kh, kw), same dtype and device.
    """
    if input.device != weight.device:
        raise AdderizeError(
            f"input is on {input.device} but the filters are on {weight.device}: move one of them"
        )
    if input.dtype not in _FLOATING:
        raise AdderizeError(f"input has dtype {input.dtype}; expected a floating-point dtype")
    if input.dtype != weight.dtype:
        raise AdderizeError(
            f"input has dtype {input.dtype} but the filters have {weight.dtype}: cast the input, "
            "or run under torch.autocast"
        )
    if gradient not in GRADIENTS:
        raise AdderizeError(f"gradient is {gradient!r}; expected 'full' or 'sign'")
    check_geometry(input.shape, weight.shape, stride, padding, dilation, groups)


def check_geometry(
    input: Sequence[int],
    weight: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> tuple[int, int]:
    """The output's height and width for shapes of input and filters; AdderizeError if none fits."""
    if len(input) != 4 or len(weight) != 4:
        raise AdderizeError(
            f"input has shape {tuple(input)} and weight {tuple(weight)}; expected "
            "(N, Cin, H, W) and (Cout, Cin/groups, kh, kw)"
        )
    if min(input[2:]) < 1:
        raise AdderizeError(f"input has shape {tuple(input)}: its images have no pixels")
    if len(stride) != 2 or min(stride) < 1:
        raise AdderizeError(f"stride is {list(stride)}; expected two integers of at least 1")
    if len(dilation) != 2 or min(dilation) < 1:
        raise AdderizeError(f"dilation is {list(dilation)}; expected two integers of at least 1")
    if len(padding) != 2 or min(padding) < 0:
        raise AdderizeError(f"padding is {list(padding)}; expected two integers of at least 0")
    _check_channels(input, weight, groups)
    size = _output_size(input, weight, stride, padding, dilation)
    if min(size) < 1:
        raise AdderizeError(
            f"the input of {tuple(input[2:])} pixels with padding {list(padding)} is smaller "
            f"than the filter of {tuple(weight[2:])} taps with dilation {list(dilation)}: "
            "use a larger input or more padding"
        )
    return size


def _check_channels(input: Sequence[int], weight: Sequence[int], groups: int) -> None:
    if groups < 1:
        raise AdderizeError(f"groups is {groups}; expected an integer of at least 1")
    out_channels, per_group, *taps = weight
    if out_channels < 1 or per_group < 1 or min(taps) < 1:
        raise AdderizeError(f"weight has shape {tuple(weight)}: no dimension may be empty")
    if out_channels % groups:
        raise AdderizeError(f"{out_channels} filters cannot be divided into {groups} groups")
    if input[1] != per_group * groups:
        raise AdderizeError(
            f"input has {input[1]} channels, but filters of shape {tuple(weight)} with "
            f"groups={groups} expect {per_group * groups}"
        )
