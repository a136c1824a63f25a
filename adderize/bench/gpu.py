"""The precisions that a GPU computes in, and what a call takes of its memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

MEGABYTE = 1e6

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


def is_cuda(device: str) -> bool:
    return torch.device(device).type == "cuda"


def in_precision(
    name: str, call: Callable[[], object], device: str = "cuda"
) -> Callable[[], object]:
    def run() -> object:
        with precision(name, device):
            return call()

    return run


def replayed(call: Callable[[], object]) -> Callable[[], None]:
    """A call's kernels recorded as a CUDA graph: without the host, which small ones wait for."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    replay: Callable[[], None] = graph.replay
    return replay


def peak_megabytes(call: Callable[[], object], device: str) -> float | None:
    """Most memory that a call allocates beyond what was allocated before it; None on a CPU."""
    if not is_cuda(device):
        return None
    call()
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / MEGABYTE
