"""What a CUDA device's lanes can do at most, measured on the device in loops on registers."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch

from adderize.bench import gpu
from adderize.ops.choice import choose

# 64 values a thread; as many blocks a multiprocessor as its registers hold, and a loop of 5 ms.
_BLOCK, _WARPS, _BLOCKS_OF_ONE = 8192, 4, 3
_TURNS, _ROUNDS = 20_000, 5


class Limits(NamedTuple):
    """Pairs of input and filter a second, of all lanes and nothing else.

    Attributes:
        forward: |x - w|, summed.
        input_gradient: clip(x - w), times g, summed.
    """

    forward: float
    input_gradient: float

    @property
    def both(self) -> float:
        """Of as many pairs of the one kind as of the other."""
        return 2 / (1 / self.forward + 1 / self.input_gradient)


@functools.cache
def limits(device: str) -> Limits | None:
    """Those of a device; None where Triton's kernels do not serve it."""
    if not gpu.is_cuda(device) or choose("cuda").name != "triton":
        return None
    from adderize.ops.triton.kernels import register_loops

    with torch.cuda.device(device):
        return Limits(
            pairs_per_second(register_loops.forward_pairs, device),
            pairs_per_second(register_loops.gradient_pairs, device),
        )


def pairs_per_second(kernel: Any, device: str) -> float:
    """The best of several launches of one of the loops."""
    blocks = _BLOCKS_OF_ONE * torch.cuda.get_device_properties(device).multi_processor_count
    x, sums = torch.zeros(_BLOCK, device=device), torch.empty(blocks, device=device)
    best = float("inf")
    for _ in range(_ROUNDS):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        kernel[(blocks,)](x, sums, _TURNS, BLOCK=_BLOCK, num_warps=_WARPS, enable_fp_fusion=True)
        stop.record()
        stop.synchronize()
        best = min(best, start.elapsed_time(stop))
    return blocks * _BLOCK * _TURNS / (best / 1e3)
