"""Filters of an adder from those of a convolution, by the slopes that they have on its inputs.

Seen from one input value x, an adder's tap -|x - w| is a line of slope +1 while x < w and of slope
-1 while x > w. Over inputs on both sides the best line through it has the slope

    b(w) = Cov(-|x - w|, x) / Var(x),

which rises from -1, for w below every x, to +1, for w above every x. A convolution's tap f x is a
line of slope f, so w follows from f by the inverse of b.
"""

from __future__ import annotations

import torch
from torch import Tensor

_VALUES = 8192


class Slopes:
    """The slopes b(w) of every input channel, exact on a sample of the channel's values.

    Args:
        inputs: each (M, C, ...), what the channels' values are taken from: the layer's inputs of
            all calls and sizes.
        with_zero: whether zeros, those of a padding, may come in besides.
    """

    def __init__(self, *inputs: Tensor, with_zero: bool = False) -> None:
        rows = torch.cat([x.movedim(1, 0).flatten(1) for x in inputs], dim=1)
        values = _sample(rows).double().sort(dim=1).values
        centred = values - values.mean(1, keepdim=True)
        variance = centred.square().mean(1, keepdim=True)
        # Sums over the values up to each one: of (x - w)(x - mean), with w the value itself.
        first = (values * centred).cumsum(1) - values * centred.cumsum(1)
        slopes = -1 + 2 * first / (values.shape[1] * variance).clamp_min(1e-300)
        self._constant = variance.squeeze(1) <= 0
        self._values, self._slopes = values, slopes.cummax(dim=1).values
        low, high = (end.double() for end in rows.aminmax(dim=1))
        self._low = low.clamp_max(0) if with_zero else low
        self._high = high.clamp_min(0) if with_zero else high

    def inverse(self, slopes: Tensor) -> Tensor:
        """The w of each channel that has a slope.

        Args:
            slopes: (C, N); -1 and below, +1 and above give the ends of the channel's range.

        Returns:
            (C, N), float64.
        """
        slopes = slopes.double().contiguous()
        right = torch.searchsorted(self._slopes, slopes).clamp(1, self._values.shape[1] - 1)
        x0, x1 = self._values.gather(1, right - 1), self._values.gather(1, right)
        b0, b1 = self._slopes.gather(1, right - 1), self._slopes.gather(1, right)
        share = ((slopes - b0) / (b1 - b0).clamp_min(1e-300)).clamp(0, 1)
        inside = x0 + share * (x1 - x0)
        low, high = self._low[:, None], self._high[:, None]
        # A channel that never varies has no slopes: what its filters say does not matter.
        outside = (slopes.abs() >= 1) | self._constant[:, None]
        return torch.where(outside, torch.where(slopes > 0, high, low), inside)


def _sample(rows: Tensor) -> Tensor:
    """(C, at most _VALUES), evenly spread over the samples; drawn at random within each one."""
    if rows.shape[1] <= _VALUES:
        return rows
    generator = torch.Generator("cpu").manual_seed(0)
    edges = torch.linspace(0, rows.shape[1] - 1, _VALUES + 1, dtype=torch.float64, device="cpu")
    offsets = torch.rand(_VALUES, generator=generator, dtype=torch.float64, device="cpu")
    picked = (edges[:-1] + offsets * edges.diff()).long()
    return rows[:, picked.to(rows.device)]


@torch.no_grad()
def matched_filters(slopes: Slopes, filters: Tensor, groups: int, scale: float) -> Tensor:
    """Filters whose slopes are ``clip(f / (scale sd(f_c)), -1, 1)`` for a convolution's f.

    Args:
        filters: (Cout, Cin / groups, ...), the convolution's.
        scale: in deviations of each filter, sd(f_c): larger values are plain signs.

    Returns:
        (Cout, Cin / groups, ...), in the dtype of `filters`.
    """
    outputs, per_group = filters.shape[:2]
    flat = filters.double().reshape(groups, outputs // groups, per_group, -1)
    deviation = flat.flatten(2).std(2, correction=0)[..., None, None]
    wanted = (flat / (scale * deviation).clamp_min(1e-300)).clamp(-1, 1)
    # Channel by channel: (groups, filters, channels, taps) -> (groups x channels, filters x taps).
    by_channel = wanted.transpose(1, 2)
    found = slopes.inverse(by_channel.flatten(0, 1).flatten(1)).view_as(by_channel)
    return found.transpose(1, 2).reshape(filters.shape).to(filters.dtype)
