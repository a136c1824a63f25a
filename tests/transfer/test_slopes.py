"""Slopes of adder taps and their inverse, against lines fitted by least squares."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from adderize.transfer.slopes import Slopes, matched_filters


def _channels(count: int = 2000) -> Tensor:
    """(count, 4): normal, rectified, skewed with an offset, few distinct values."""
    torch.manual_seed(3)
    x = torch.randn(count, 4)
    x[:, 1].relu_()
    x[:, 2] = x[:, 2].exp() + 5
    x[:, 3] = x[:, 3].round()
    return x


def _fitted_slope(values: Tensor, w: float) -> float:
    x = values.double().numpy()
    slope, _ = np.polyfit(x, -np.abs(x - w), 1)
    return float(slope)


@pytest.mark.parametrize("wanted", [-0.999, -0.7, -0.2, 0.0, 0.35, 0.8, 0.999])
def test_the_inverse_gives_values_with_the_slope_that_was_asked_for(wanted: float) -> None:
    x = _channels()
    found = Slopes(x).inverse(torch.full((4, 1), wanted, dtype=torch.float64))
    for channel in range(4):
        assert _fitted_slope(x[:, channel], float(found[channel])) == pytest.approx(
            wanted, abs=1e-9
        )


def test_slopes_of_one_and_beyond_lie_at_the_ends_of_the_range() -> None:
    x = _channels()
    found = Slopes(x).inverse(torch.tensor([[-1.0, 1.0, -3.0, 3.0]]).expand(4, 4))
    low, high = x.double().aminmax(dim=0)
    assert found[:, [0, 2]].equal(low[:, None].expand(4, 2))
    assert found[:, [1, 3]].equal(high[:, None].expand(4, 2))


def test_values_of_several_inputs_count_as_those_of_one() -> None:
    x = _channels(600)
    wanted = torch.tensor([[-1.0, -0.4, 0.1, 0.8, 1.0]]).expand(4, 5)
    several = x[:1], x[1:101].view(1, 100, 4).transpose(1, 2), x[101:].view(-1, 4, 1)
    assert Slopes(*several).inverse(wanted).equal(Slopes(x).inverse(wanted))


def test_zeros_of_a_padding_belong_to_the_range() -> None:
    x = _channels()
    ends = torch.tensor([[-1.0, 1.0]]).expand(4, 2)
    found = Slopes(torch.stack([x[:, 2], -x[:, 2]], 1), with_zero=True).inverse(ends[:2])
    top = float(x[:, 2].max())
    assert found.tolist() == [[0.0, top], [-top, 0.0]]


def test_a_channel_that_never_varies_gives_finite_values() -> None:
    x = torch.full((50, 1), 3.0)
    found = Slopes(x).inverse(torch.tensor([[-0.5, 0.0, 0.5]]))
    assert found.tolist() == [[3.0, 3.0, 3.0]]


def test_large_channels_are_sampled_and_the_slopes_hold_on_all_values() -> None:
    torch.manual_seed(5)
    x = torch.randn(40, 2, 64, 64).relu()
    found = Slopes(x).inverse(torch.full((2, 1), 0.4))
    for channel in range(2):
        slope = _fitted_slope(x[:, channel].flatten(), float(found[channel]))
        assert slope == pytest.approx(0.4, abs=0.05)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_every_tap_has_the_clipped_slope_of_its_filter_value(groups: int) -> None:
    x = _channels()
    torch.manual_seed(7)
    f = torch.randn(8, 4 // groups, 3, 1) * 0.1
    found = matched_filters(Slopes(x), f, groups, 0.8)
    assert found.shape == f.shape and found.dtype == f.dtype
    for c, k, tap in np.ndindex(8, 4 // groups, 3):
        channel = (c // (8 // groups)) * (4 // groups) + k
        wanted = float(f[c, k, tap, 0] / (0.8 * f[c].std(correction=0)))
        slope = _fitted_slope(x[:, channel], float(found[c, k, tap, 0]))
        assert slope == pytest.approx(min(max(wanted, -1), 1), abs=1e-4)
