"""What a CUDA device could do at most, and what a call takes of its memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

_MEGABYTE = 2**20
# Float32 lanes of a multiprocessor: 64 up to the A100, 128 on consumer Ampere and since.
_LANES_64 = ((7, 0), (7, 2), (7, 5), (8, 0))
_INSTRUCTIONS_A_PAIR = 2


def pair_limit(device: str) -> float:
    """Pairs a second if every lane did nothing but the two instructions of a pair, at full clock.

    From compute capability 10.0 on, two additions can be one instruction: there the forward pass
    may exceed it.
    """
    properties = torch.cuda.get_device_properties(device)
    lanes = 64 if (properties.major, properties.minor) in _LANES_64 else 128
    hertz = properties.clock_rate * 1e3
    return float(properties.multi_processor_count * lanes * hertz / _INSTRUCTIONS_A_PAIR)


PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@contextmanager
def precision(name: str, device: str = "cuda") -> Iterator[None]:
    """float32 as it is ("fp32"), on TF32 tensor cores ("tf32"), or autocast ("bf16", "fp16")."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    try:
        cudnn.allow_tf32 = matmul.allow_tf32 = name == "tf32"
        kind, dtype = torch.device(device).type, _AUTOCAST.get(name, torch.bfloat16)
        with torch.autocast(kind, dtype, enabled=name in _AUTOCAST):
            yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before


def in_precision(name: str, call: Callable[[], object]) -> Callable[[], object]:
    def run() -> object:
        with precision(name):
            return call()

    return run


def peak_megabytes(call: Callable[[], object], device: str) -> float:
    """Most memory that a call allocates beyond what was allocated before it."""
    call()
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / _MEGABYTE
