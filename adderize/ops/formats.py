"""Dtypes and memory formats of the ops' results."""

from __future__ import annotations

import torch
from torch import Tensor


def output_dtype(input: Tensor) -> torch.dtype:
    """float64 for float64 inputs, float32 for every other: sums need at least 24 bits."""
    return torch.float64 if input.dtype == torch.float64 else torch.float32


def memory_format(*tensors: Tensor) -> torch.memory_format:
    """channels_last where a tensor is unambiguously so, as torch's convolution decides it."""
    return torch.channels_last if any(map(is_channels_last, tensors)) else torch.contiguous_format


def is_channels_last(tensor: Tensor) -> bool:
    """Whether a tensor is in channels_last order and not in C order as well."""
    channels_last = tensor.is_contiguous(memory_format=torch.channels_last)
    return channels_last and not tensor.is_contiguous()


def is_nhwc(image: Tensor) -> bool:
    return image.is_contiguous(memory_format=torch.channels_last)


def nhwc(image: Tensor) -> Tensor:
    """The image with its memory in N,H,W,C order."""
    return image.contiguous(memory_format=torch.channels_last)
