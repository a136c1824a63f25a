"""Whether views share elements: what is written through one is seen through the other."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from adderize.dataflow.in_place import overlap


def views(x: Tensor) -> dict[str, Tensor]:
    """Of a tensor (4, 6)."""
    return {
        "all": x,
        "turned": x.t(),
        "left": x[:, :3],
        "right": x[:, 3:],
        "middle": x[1:3, 2:4],
        "even columns": x[:, ::2],
        "odd columns": x[:, 1::2],
        "diagonal": x.diagonal(),
        "flat end": x.view(-1)[18:],
        "repeated": x[0, :1].expand(3, 5),
    }


PAIRS = list(itertools.product(views(torch.zeros(4, 6)), repeat=2))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_overlap_is_what_is_seen(device: str) -> None:
    found = views(torch.zeros(4, 6, device=device))
    for one, other in PAIRS:
        written = views(torch.zeros(4, 6))
        (written[one][:1, :1] if one == "repeated" else written[one]).fill_(1)
        assert overlap(found[one], found[other]) == bool(written[other].any()), (one, other)


def test_other_memory_and_other_numbers() -> None:
    x = torch.zeros(4, 6)
    assert not overlap(x, x.clone())
    assert overlap(x, x.view(torch.int32)[:1])
    again = torch.from_numpy(x.numpy())  # a storage of its own
    assert overlap(x, again) and not overlap(x[:2], again[2:])
    assert not overlap(torch.zeros(3, device="meta"), torch.zeros(3, device="meta"))
