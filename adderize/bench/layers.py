"""Single layers against torch's float32 convolution: forward, gradients, and forward on bytes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from adderize.bench import gpu, processor_limits
from adderize.bench.gpu_limits import limits
from adderize.bench.timing import side_by_side
from adderize.ops import convolution
from adderize.ops.bytes import pack
from adderize.ops.geometry import Geometry

ops = torch.ops.adderize


class Layer(NamedTuple):
    """A convolution to measure: square images and filters, and a geometry."""

    name: str
    batch: int
    channels: int
    size: int
    filters: int
    kernel: int
    geometry: Geometry = Geometry()

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        return self.batch, self.channels, self.size, self.size

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        return self.filters, self.channels // self.geometry.groups, self.kernel, self.kernel

    @property
    def output_shape(self) -> tuple[int, ...]:
        return tuple(self.geometry.output_shape(self.input_shape, self.weight_shape))

    @property
    def pairs(self) -> int:
        """Input-filter pairs of one forward pass."""
        return math.prod(self.output_shape) * math.prod(self.weight_shape[1:])


LAYERS = (
    Layer("3x3  16, 32x32, b128", 128, 16, 32, 16, 3, Geometry.of(padding=1)),
    Layer("3x3  32, 16x16, b128", 128, 32, 16, 32, 3, Geometry.of(padding=1)),
    Layer("3x3  64, 8x8, b128", 128, 64, 8, 64, 3, Geometry.of(padding=1)),
    Layer("3x3  64, 56x56, b8", 8, 64, 56, 64, 3, Geometry.of(padding=1)),
    Layer("3x3  128, 28x28, b8", 8, 128, 28, 128, 3, Geometry.of(padding=1)),
    Layer("3x3  256, 14x14, b8", 8, 256, 14, 256, 3, Geometry.of(padding=1)),
    Layer("3x3  512, 7x7, b8", 8, 512, 7, 512, 3, Geometry.of(padding=1)),
    Layer("3x3/2  64-128, 56x56, b8", 8, 64, 56, 128, 3, Geometry.of(stride=2, padding=1)),
    Layer("1x1  256-64, 56x56, b8", 8, 256, 56, 64, 1),
    Layer("1x1  1024-256, 14x14, b8", 8, 1024, 14, 256, 1),
    Layer("1x1/2  256-512, 56x56, b8", 8, 256, 56, 512, 1, Geometry.of(stride=2)),
    Layer("depthwise 3x3  96, 112x112, b8", 8, 96, 112, 96, 3, Geometry.of(padding=1, groups=96)),
    Layer("depthwise 3x3  384, 14x14, b8", 8, 384, 14, 384, 3, Geometry.of(padding=1, groups=384)),
    Layer(
        "grouped 3x3  128 in 32, 56x56, b8", 8, 128, 56, 128, 3, Geometry.of(padding=1, groups=32)
    ),
    Layer("5x5  64, 28x28, b8", 8, 64, 28, 64, 5, Geometry.of(padding=2)),
    Layer("dilated 3x3  128, 28x28, b8", 8, 128, 28, 128, 3, Geometry.of(padding=2, dilation=2)),
    Layer("LeNet 5x5  1-6, 32x32, b256", 256, 1, 32, 6, 5),
    Layer("LeNet 5x5  6-16, 14x14, b256", 256, 6, 14, 16, 5),
    Layer("LeNet linear  400-120, b256", 256, 400, 1, 120, 1),
    Layer("LeNet linear  120-84, b256", 256, 120, 1, 84, 1),
)

TRAINING_PASSES = ("forward", "input gradient", "filter gradient")
PASSES = (*TRAINING_PASSES, "sign filter gradient", "8 bits")

Calls = dict[str, Callable[[], object]]


def measure(
    layers: tuple[Layer, ...] = LAYERS,
    device: str = "cpu",
    *,
    every_precision: bool | None = None,
    **timing: Any,
) -> Iterator[dict[str, Any]]:
    """One row a layer: milliseconds of the convolution and of the adder, and their ratio.

    On the CPU a pass also has the milliseconds that its pairs, those in the padding included, take
    at the processor's limit, and what percentage of the adder's they are.

    On a CUDA device each call is replayed as a CUDA graph, which leaves out what the host takes to
    launch it. "convolution" and "adder" are float32 without TF32, and a row also has the
    milliseconds of the convolution in TF32 and bfloat16 and of the adder in bfloat16, the adder's
    pairs a second, their percentage of the device's measured `limits` (the filter gradient, a
    convolution, has none), and the peak memory of both. Layers of groups also have cuDNN's own
    kernels beside those that torch chooses, which are its own for depthwise layers.

    Args:
        layers: what to measure; tensors are channels_last; float32, but those of "8 bits".
        device: where.
        every_precision: the rows of a CUDA device, also elsewhere; by default there only.
        timing: `rounds` and `seconds` of `adderize.bench.timing.side_by_side`.
    """
    if every_precision is None:
        every_precision = gpu.is_cuda(device)
    for layer in layers:
        row: dict[str, Any] = {"layer": layer.name, "pairs": layer.pairs}
        rivals = _rivals(layer, device, every_precision)
        for name in rivals["adder"]:
            calls = {rival: passes[name] for rival, passes in rivals.items() if name in passes}
            limit: dict[str, float] = {}
            if gpu.is_cuda(device):
                graphs = {rival: gpu.replayed(call) for rival, call in calls.items()}
                best = side_by_side(graphs, **timing)
            elif every_precision:
                best = side_by_side(calls, **timing)
            else:
                best, limit = processor_limits.beside(calls, [name], **timing)
            row[name] = {f"{rival}_ms": seconds * 1e3 for rival, seconds in best.items()}
            row[name]["ratio"] = best["adder"] / best["convolution"]
            if every_precision:
                row[name].update(_gpu_figures(layer, name, calls, best["adder"], device))
            if limit:
                row[name]["limit_ms"] = processor_limits.limit_ms(layer.pairs, limit)
                row[name]["percent_of_limit"] = 100 * row[name]["limit_ms"] / row[name]["adder_ms"]
        yield row


def run_passes(layer: Layer, device: str) -> None:
    """The adder's passes in every precision, once each and not timed."""
    for name, calls in _rivals(layer, device, every_precision=True).items():
        if name.startswith("adder"):
            for call in calls.values():
                call()


def _gpu_figures(
    layer: Layer, name: str, calls: Calls, seconds: float, device: str
) -> dict[str, float]:
    figures: dict[str, float] = {}
    for rival in ("convolution", "adder"):
        megabytes = gpu.peak_megabytes(calls[rival], device)
        if megabytes is not None:
            figures[f"{rival}_mb"] = megabytes
    if name == "filter gradient":
        return figures
    figures["pairs_per_second"] = rate = layer.pairs / seconds
    if most := limits(device):
        limit = most.forward if name == "forward" else most.input_gradient
        figures["percent_of_limit"] = 100 * rate / limit
    return figures


def _rivals(layer: Layer, device: str, every_precision: bool) -> dict[str, Calls]:
    """The passes of each rival: PASSES, or in every precision TRAINING_PASSES."""
    x, w = _operands(layer, device)
    convolution, adder = _convolution(layer, x, w), _adder(layer, x, w)
    if not every_precision:
        convolution["sign filter gradient"] = convolution["filter gradient"]
        adder["sign filter gradient"] = _adder(layer, x, w, "sign")["filter gradient"]
        convolution["8 bits"] = convolution["forward"]
        adder["8 bits"] = _call_on_bytes(layer, x, w)
        return {"convolution": convolution, "adder": adder}
    half = x.bfloat16(), w.bfloat16()
    own = layer.geometry.groups > 1 and x.device.type == "cuda"
    return {
        "convolution": {
            name: gpu.in_precision("fp32", call, device) for name, call in convolution.items()
        },
        "adder": {name: gpu.in_precision("fp32", call, device) for name, call in adder.items()},
        "convolution_tf32": {
            name: gpu.in_precision("tf32", call, device) for name, call in convolution.items()
        },
        "convolution_bf16": _convolution(layer, *half),
        "adder_bf16": _adder(layer, *half),
        **({"cudnn": _cudnn(layer, x, w), "cudnn_bf16": _cudnn(layer, *half)} if own else {}),
    }


def _convolution(layer: Layer, x: torch.Tensor, w: torch.Tensor) -> Calls:
    def forward() -> torch.Tensor:
        return convolution.convolution(x, w, layer.geometry)

    grad = torch.randn_like(forward())

    calls = (
        forward,
        lambda: convolution.input_gradient(grad, x, w, layer.geometry),
        lambda: convolution.weight_gradient(grad, x, w, layer.geometry),
    )
    return dict(zip(TRAINING_PASSES, calls, strict=True))


def _cudnn(layer: Layer, x: torch.Tensor, w: torch.Tensor) -> Calls:
    """cuDNN's kernels without torch's choice, where it has some.

    Its weight gradient cannot be called by itself.
    """
    stride, padding, dilation, groups = layer.geometry
    flags = (torch.backends.cudnn.benchmark, False, False)

    def forward() -> torch.Tensor:
        result: torch.Tensor = torch.ops.aten.cudnn_convolution(
            x, w, padding, stride, dilation, groups, *flags
        )
        return result

    grad = torch.randn(layer.output_shape, dtype=x.dtype, device=x.device)
    grad = grad.to(memory_format=torch.channels_last)
    reached = [
        (out - 1) * step - 2 * pad + wide * (size - 1) + 1
        for out, step, pad, wide, size in zip(
            grad.shape[2:], stride, padding, dilation, w.shape[2:], strict=True
        )
    ]
    beyond = [size - last for size, last in zip(x.shape[2:], reached, strict=True)]

    def input_gradient() -> torch.Tensor:
        result: torch.Tensor = torch.ops.aten.cudnn_convolution_transpose(
            grad, w, padding, beyond, stride, dilation, groups, *flags
        )
        return result

    calls: Calls = {"forward": forward, "input gradient": input_gradient}
    return {name: call for name, call in calls.items() if _runs(call)}


def _runs(call: Callable[[], object]) -> bool:
    """Whether cuDNN has a kernel: it raises where it has none for a dtype and a format."""
    try:
        call()
    except RuntimeError:
        return False
    return True


def _adder(layer: Layer, x: torch.Tensor, w: torch.Tensor, gradient: str = "full") -> Calls:
    arguments = (x, w, *layer.geometry, gradient)
    grad = torch.randn_like(ops.adder_conv2d(*arguments))
    calls = (
        lambda: ops.adder_conv2d(*arguments),
        lambda: ops.adder_conv2d_input_gradient(grad, *arguments),
        lambda: ops.adder_conv2d_weight_gradient(grad, *arguments),
    )
    return dict(zip(TRAINING_PASSES, calls, strict=True))


def _call_on_bytes(layer: Layer, x: torch.Tensor, w: torch.Tensor) -> Callable[[], object]:
    steps, zero_point = 32.0, 128
    bytes_x, bytes_w = (
        (tensor * steps + zero_point).round_().clamp_(0, 255).to(torch.uint8) for tensor in (x, w)
    )
    packed, shape = pack(bytes_w, layer.geometry.groups), list(w.shape)
    scale = torch.full((layer.filters,), -1 / (steps * w[0].numel()), device=x.device)
    shift = torch.full((layer.filters,), 255.0, device=x.device)
    arguments = (scale, shift, None, 0.0, zero_point, *layer.geometry, 0.0, 255.0, False)
    return lambda: ops.adder_conv2d_u8_packed(bytes_x, packed, shape, *arguments)


def _operands(layer: Layer, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    x, w = (
        torch.randn(shape, generator=generator, dtype=torch.float32, device=device).to(
            memory_format=torch.channels_last
        )
        for shape in (layer.input_shape, layer.weight_shape)
    )
    return x.relu_(), w
