"""The layers' arithmetic as TorchScript compiles it.

TorchScript knows neither keyword-only arguments nor unions of types, so a layer that is scripted
calls these functions in place of those of `adderize.functional`. Padding is given as pixels left,
right, top and bottom of the images, as `F.pad` takes it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._jit_internal import BroadcastingList2  # type: ignore[attr-defined]
from torch.jit import is_scripting  # type: ignore[attr-defined]

from adderize.layers.batches import as_batch

__all__ = ["adder_conv2d", "adder_linear", "binary_conv2d", "is_scripting"]


def adder_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: BroadcastingList2[int],
    pads: list[int],
    dilation: BroadcastingList2[int],
    groups: int,
    padding_mode: str,
    gradient: str,
) -> Tensor:
    images, padding = as_batch(input), [pads[2], pads[0]]
    if padding_mode != "zeros":
        images, padding = F.pad(images, pads, padding_mode), [0, 0]
    elif pads[0] != pads[1] or pads[2] != pads[3]:
        images, padding = F.pad(images, pads), [0, 0]
    output: Tensor = torch.ops.adderize.adder_conv2d(
        images, weight, stride, padding, dilation, groups, gradient
    )
    return _finished(output, bias, input)


def binary_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: BroadcastingList2[int],
    pads: list[int],
    dilation: BroadcastingList2[int],
    groups: int,
    padding_mode: str,
) -> Tensor:
    images, padding = as_batch(input), [pads[3], pads[1]]
    if padding_mode != "zeros":
        images, padding, pads = F.pad(images, pads, padding_mode), [0, 0], [0, 0, 0, 0]
    output: Tensor = torch.ops.adderize.binary_conv2d(
        images, weight, stride, padding, dilation, groups
    )
    # "same" may need less above than below: zeros come after the signs, so outputs are dropped.
    output = output[:, :, pads[3] - pads[2] :, pads[1] - pads[0] :]
    return _finished(output, bias, input)


def adder_linear(input: Tensor, weight: Tensor, bias: Tensor | None, gradient: str) -> Tensor:
    rows = input.reshape(-1, weight.size(1), 1, 1)
    output: Tensor = torch.ops.adderize.adder_conv2d(
        rows, weight.unsqueeze(-1).unsqueeze(-1), [1, 1], [0, 0], [1, 1], 1, gradient
    )
    sizes = list(input.size())
    sizes[-1] = weight.size(0)
    output = output.reshape(sizes)
    return output if bias is None else output + bias.to(output.dtype)


def pads_around(padding: BroadcastingList2[int]) -> list[int]:
    return [padding[1], padding[1], padding[0], padding[0]]


def pads_by_name(padding: str, weight: Tensor, dilation: BroadcastingList2[int]) -> list[int]:
    """Of "valid" and "same"."""
    if padding == "valid":
        return [0, 0, 0, 0]
    vertical, horizontal = dilation[0] * (weight.size(2) - 1), dilation[1] * (weight.size(3) - 1)
    left, top = horizontal // 2, vertical // 2
    return [left, horizontal - left, top, vertical - top]


def pads_by_size(
    input: Tensor,
    weight: Tensor,
    stride: BroadcastingList2[int],
    dilation: BroadcastingList2[int],
) -> list[int]:
    """Of TensorFlow's "SAME", see `adderize.layers.same`."""
    pads: list[int] = []
    for axis in range(2):
        size = input.size(axis - 2)
        reach = (weight.size(axis + 2) - 1) * dilation[axis] + 1
        outputs = (size + stride[axis] - 1) // stride[axis]
        total = max((outputs - 1) * stride[axis] + reach - size, 0)
        pads = [total // 2, total - total // 2] + pads  # noqa: RUF005  (no stars in TorchScript)
    return pads


def _finished(output: Tensor, bias: Tensor | None, input: Tensor) -> Tensor:
    if bias is not None:
        output = output + bias.to(output.dtype).view(-1, 1, 1)
    return output.squeeze(0).contiguous() if input.dim() == 3 else output
