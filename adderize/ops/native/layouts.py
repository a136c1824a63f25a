"""Images in the kernels' memory order, N,H,W,C, and back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from adderize.ops.formats import is_nhwc
from adderize.ops.native.library import call


def nhwc(image: Tensor) -> Tensor:
    """The image with its memory in N,H,W,C order."""
    if is_nhwc(image):
        return image
    if not image.is_contiguous():
        return image.contiguous(memory_format=torch.channels_last)
    n, c, h, w = image.shape
    converted = torch.empty_like(image, memory_format=torch.channels_last)
    _transpose(image, converted, n, c, h * w)
    return converted


def empty_nhwc(shape: Sequence[int], wanted: torch.memory_format = torch.channels_last) -> Tensor:
    """An image with its memory in N,H,W,C order, in the wanted format where that is the same."""
    found = wanted if _is_same_memory(shape) else torch.channels_last
    return torch.empty(shape, dtype=torch.float32, device="cpu", memory_format=found)


def in_format(image: Tensor, wanted: torch.memory_format) -> Tensor:
    """What ``empty_nhwc(shape, wanted)`` gave, in the wanted memory format.

    It is no view: autograd would refuse in-place operations on an op's result.
    """
    if wanted == torch.channels_last or _is_same_memory(image.shape):
        return image
    n, c, h, w = image.shape
    converted = torch.empty(image.shape, dtype=torch.float32, device="cpu")
    _transpose(image, converted, n, h * w, c)
    return converted


def _is_same_memory(shape: Sequence[int]) -> bool:
    """Whether N,C,H,W and N,H,W,C are one order."""
    return shape[1] == 1 or shape[2] * shape[3] == 1


def _transpose(source: Tensor, target: Tensor, batch: int, rows: int, columns: int) -> None:
    pointers = source.data_ptr(), target.data_ptr()
    call("adderize_transpose", batch, rows, columns, *pointers, torch.get_num_threads())
