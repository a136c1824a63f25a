"""Images in the kernels' memory order, N,H,W,C, and back."""

from __future__ import annotations

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


def in_format(image: Tensor, wanted: torch.memory_format) -> Tensor:
    """An N,H,W,C image with the strides of the wanted memory format."""
    if wanted == torch.channels_last:
        return image
    n, c, h, w = image.shape
    if c == 1 or h * w == 1:
        return image.as_strided(image.shape, (c * h * w, h * w, w, 1))
    converted = torch.empty(image.shape, dtype=torch.float32, device="cpu")
    _transpose(image, converted, n, h * w, c)
    return converted


def empty_nhwc(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device="cpu", memory_format=torch.channels_last)


def _transpose(source: Tensor, target: Tensor, batch: int, rows: int, columns: int) -> None:
    pointers = source.data_ptr(), target.data_ptr()
    call("adderize_transpose", batch, rows, columns, *pointers, torch.get_num_threads())
