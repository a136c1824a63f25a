"""Filters in the order in which the kernels on bytes read them, see adderize/csrc/adderize.h."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from adderize.errors import AdderizeError

_CHANNELS = _TAPS = 8  # of a block
_LANES = 64  # of a chunk of narrow groups
_MOST_CHANNELS, _MOST_FILTERS = 8, 16  # of such a group


def pack(weight: Tensor, groups: int) -> Tensor:
    """Filters (Cout, Cin/groups, kh, kw), uint8, as one dimension; the same on every machine."""
    taps = weight.permute(0, 2, 3, 1)
    if _in_lanes(weight.shape, groups):
        chunk = _whole_groups(len(weight), groups)
        chunks = _padded(taps.flatten(1), 0, chunk).reshape(-1, chunk, weight[0].numel())
        return _padded(chunks.transpose(1, 2), -1, _LANES).flatten()
    taps = taps.flatten(2) if _unfolded(weight.shape[1], weight.shape[3]) else taps
    taps = _padded(taps, -1, _TAPS).flatten(1)
    filters = _padded(taps.reshape(groups, -1, taps.shape[1]), 1, _CHANNELS)
    blocks = filters.reshape(groups, filters.shape[1] // _CHANNELS, _CHANNELS, -1, _TAPS)
    return blocks.transpose(2, 3).flatten()


def unpack(packed: Tensor, shape: Sequence[int], groups: int) -> Tensor:
    """The filters of the given shape that `pack` has packed."""
    filters, channels, height, width = shape
    if _in_lanes(shape, groups):
        chunks = packed.view(-1, height * width * channels, _LANES)
        rows = chunks[..., : _whole_groups(filters, groups)].transpose(1, 2).flatten(0, 1)
        return rows[:filters].reshape(filters, height, width, channels).permute(0, 3, 1, 2)
    per_group = filters // groups
    blocks = packed.view(groups, _ceil(per_group, _CHANNELS), -1, _CHANNELS, _TAPS)
    taps = blocks.transpose(2, 3).flatten(3).flatten(1, 2)[:, :per_group].flatten(0, 1)
    if _unfolded(channels, width):
        taps = taps.reshape(filters, height, -1)[..., : width * channels]
        return taps.reshape(filters, height, width, channels).permute(0, 3, 1, 2)
    return taps.reshape(filters, height, width, -1)[..., :channels].permute(0, 3, 1, 2)


def packed_size(shape: Sequence[int], groups: int) -> int:
    """Bytes of the packed filters."""
    filters, channels, height, width = shape
    if _in_lanes(shape, groups):
        chunks = _ceil(filters, _whole_groups(filters, groups))
        return chunks * height * width * channels * _LANES
    rounded = groups * _ceil(filters // groups, _CHANNELS) * _CHANNELS
    if _unfolded(channels, width):
        return rounded * height * _ceil(width * channels, _TAPS) * _TAPS
    return rounded * height * width * _ceil(channels, _TAPS) * _TAPS


def check_packed(packed: Tensor, shape: Sequence[int], groups: int) -> None:
    expected = packed_size(shape, groups)
    if packed.numel() != expected or packed.dim() != 1:
        raise AdderizeError(
            f"the packed filters have shape {tuple(packed.shape)}; filters of shape {tuple(shape)} "
            f"in {groups} groups are packed into ({expected},)"
        )


def _in_lanes(shape: Sequence[int], groups: int) -> bool:
    """Whether groups are too narrow to fill blocks."""
    channels, filters = shape[1], shape[0] // groups
    narrow = channels <= _MOST_CHANNELS and filters <= _MOST_FILTERS
    return groups > 1 and narrow and channels * filters < _CHANNELS * _TAPS


def _whole_groups(filters: int, groups: int) -> int:
    """Filters of a chunk: as many whole groups as fit."""
    per_group = filters // groups
    return _LANES // per_group * per_group


def _unfolded(channels: int, width: int) -> bool:
    """Whether the channels of a kernel row are padded together, not tap by tap."""
    return 4 * _ceil(width * channels, _TAPS) <= 3 * width * _ceil(channels, _TAPS)


def _ceil(size: int, step: int) -> int:
    return -(-size // step)


def _padded(tensor: Tensor, dim: int, step: int) -> Tensor:
    missing = -tensor.shape[dim] % step
    after = tensor.dim() - 1 - dim % tensor.dim()
    return F.pad(tensor, (0, 0) * after + (0, missing))
