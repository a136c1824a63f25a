"""How many kernels a gradient launches, counted through the dispatcher and at Triton's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton", reason="Triton is not installed")

import triton

from adderize.ops import triton as kernels
from adderize.ops.geometry import Geometry

_NO_KERNEL = {"empty", "empty_like", "view", "permute", "as_strided", "detach", "unsqueeze"}
_NO_KERNEL |= {"alias", "slice"}


class _Launches(TorchDispatchMode):
    """Names of torch's ops that run kernels, and of our own kernels, which do not run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.names: list[str] = []

        def run(kernel: Any, *arguments: Any, **options: Any) -> None:
            self.names.append(kernel.fn.__name__)

        monkeypatch.setattr(triton.runtime.jit.JITFunction, "run", run)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func._schema.name.partition("::")[2]
        if name not in _NO_KERNEL:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("grad_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("groups", "stride", "padding"), [(1, 1, 0), (1, 1, 1), (1, 2, 1), (2, 1, 1), (2, 2, 0)]
)
@pytest.mark.parametrize(
    ("dtype", "most"), [(torch.float32, 5), (torch.bfloat16, 3), (torch.float16, 3)]
)
def test_filter_gradients_launch_few_kernels(
    dtype: torch.dtype,
    most: int,
    groups: int,
    stride: int,
    padding: int,
    format: torch.memory_format,
    grad_format: torch.memory_format,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    geometry = Geometry.of(stride, padding, 1, groups)
    input = torch.randn(2, 32, 7, 6).to(dtype, memory_format=format)
    weight = torch.randn(32, 32 // groups, 3, 3).to(dtype)
    shape = geometry.output_shape(input.shape, weight.shape)
    grad = torch.randn(shape).contiguous(memory_format=grad_format)
    with _Launches(monkeypatch) as launches:
        kernels.adder_conv2d_weight_gradient(grad, input, weight, geometry, "full")
    assert "convolution_backward" in launches.names
    assert len(launches.names) <= most, launches.names


# Triton before 3.3 has no tuples, and no kernel of its own for one channel.
_ONE_CHANNEL = "depthwise" if hasattr(triton.language, "tuple") else "grouped"


@pytest.mark.parametrize(("channels", "kernel"), [(1, _ONE_CHANNEL), (4, "grouped")])
def test_filter_gradients_of_channels_launch_two_kernels(
    channels: int, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They read g and x as these are, in N,H,W,C order."""
    input, grad = (
        torch.randn(2, 32, 7, 6).contiguous(memory_format=torch.channels_last) for _ in range(2)
    )
    weight = torch.randn(32, channels, 3, 3)
    with _Launches(monkeypatch) as launches:
        geometry = Geometry.of(1, 1, 1, 32 // channels)
        kernels.adder_conv2d_weight_gradient(grad, input, weight, geometry, "full")
    assert launches.names == [kernel, "combine"]


def test_the_parts_of_sums_are_added_by_one_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few positions and long sums: every kernel is followed by one that adds its parts."""
    memory = torch.channels_last
    input = torch.randn(2, 64, 8, 8).contiguous(memory_format=memory)
    weight, grad = torch.randn(64, 64, 3, 3), torch.randn(2, 64, 8, 8)
    grad, geometry = grad.contiguous(memory_format=memory), Geometry.of(1, 1, 1, 1)
    with _Launches(monkeypatch) as launches:
        kernels.adder_conv2d(input, weight, geometry)
        assert launches.names == ["clone", "forward", "add_parts"]
        launches.names.clear()
        kernels.adder_conv2d_input_gradient(grad, input, weight, geometry, "full")
        assert launches.names == ["slope_operands", "group_sums", "input_gradient", "add_parts"]
        launches.names.clear()
        kernels.adder_conv2d_weight_gradient(grad, input, weight, geometry, "sign")
    # The filters as they are read, the sum of g, the kernel, its parts, the weight's own format.
    assert launches.names == ["clone", "sum", "dense", "add_parts", "clone"]
