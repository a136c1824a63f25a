"""Max pooling of bytes against torch's pooling of floats."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from adderize import AdderizeError
from adderize.ops.bytes import max_pool2d_bytes


@pytest.mark.parametrize("kernel", [1, 2, 3, (3, 2), 5])
@pytest.mark.parametrize("stride", [1, 2, (3, 1), 2**30 + 1])
@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("size", [(7, 10), (8, 8), (13, 9)])
def test_equals_torch(kernel: Any, stride: Any, ceil_mode: bool, size: tuple[int, int]) -> None:
    q = torch.randint(0, 256, (2, 5, *size), dtype=torch.uint8)
    kernels, strides = (v if isinstance(v, tuple) else (v, v) for v in (kernel, stride))
    for padding in {(0, 0), (kernels[0] // 2, kernels[1] // 2)}:
        for dilation in ((1, 1), (2, 1)) if kernel != 5 else ((1, 1),):
            arguments = (kernels, strides, padding, dilation, ceil_mode)
            expected = F.max_pool2d(q.float(), *arguments)
            for image in (q, q.contiguous(memory_format=torch.channels_last), q[0]):
                wanted = expected if image.dim() == 4 else expected[0]
                assert torch.equal(max_pool2d_bytes(image, *arguments).float(), wanted)


@pytest.mark.parametrize("channels", [1, 15, 16, 40, 64, 67, 130])
def test_every_number_of_channels(channels: int, cpu: str) -> None:
    q = torch.randint(0, 256, (3, channels, 12, 9), dtype=torch.uint8)
    given = max_pool2d_bytes(q, (3, 3), (2, 2), (1, 1), (1, 1), True)
    assert given.is_contiguous(memory_format=torch.channels_last)
    expected = F.max_pool2d(q.float(), 3, 2, 1, ceil_mode=True)
    assert torch.equal(given.float(), expected)
    empty = max_pool2d_bytes(q[:0], (3, 3), (2, 2), (1, 1), (1, 1), True)
    assert empty.shape == (0, *expected.shape[1:])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"q": torch.zeros(1, 2, 8, 8)}, "found dtype torch.float32"),
        ({"stride": (0, 1)}, r"stride is \[0, 1\]"),
        ({"dilation": (1, -1)}, r"dilation is \[1, -1\]"),
        ({"padding": (2, 1)}, r"padding is \[2, 1\]; expected at most half"),
        ({"padding": (0, -1)}, r"padding is \[0, -1\]"),
        ({"kernel_size": (9, 3)}, "8x8 is smaller than the pooling window"),
    ],
)
def test_errors(changes: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {
        "q": torch.zeros(1, 2, 8, 8, dtype=torch.uint8),
        "kernel_size": (3, 3),
        "stride": (1, 1),
        "padding": (0, 0),
        "dilation": (1, 1),
        "ceil_mode": False,
    }
    with pytest.raises(AdderizeError, match=message):
        max_pool2d_bytes(**{**good, **changes})


def test_tracing() -> None:
    q: Tensor = torch.randint(0, 256, (2, 3, 8, 9), dtype=torch.uint8)
    arguments = (q, [3, 3], [2, 2], [1, 1], [1, 1], False)
    torch.library.opcheck(torch.ops.adderize.max_pool2d_u8, arguments)
