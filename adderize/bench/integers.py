"""Inference in 8 bits: the quantized adder network beside its float form and the CNN's forms."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adderize.bench import processor_limits, rivals
from adderize.bench.networks import inference, twin
from adderize.bench.twins import adder_pairs
from adderize.quantize import quantize
from adderize.training.recalibration import recalibrate

CNN, ADDER, ADDER_INT8 = "cnn, torch", "adder", "adder int8"
ORDER = (CNN, rivals.CNN, rivals.CNN_INT8, ADDER, ADDER_INT8)
_PASSES = {ADDER: "forward", ADDER_INT8: "8 bits"}
_PART = 8


def measure(
    arch: str, images: Tensor, batches: Sequence[int], **timing: Any
) -> Iterator[dict[str, Any]]:
    """One row a batch size: milliseconds of each network, and how well the outputs agree.

    A row also has the percentage of an adder network's time that its adder layers take at the
    processor's limit.

    The batch norms of the fresh networks are estimated on the images first: with the initial
    statistics every activation of an adder network is dead, and there is nothing to compare.

    Args:
        arch: a name that `adderize.models.by_name.build` takes.
        images: (N, C, H, W) float32, N at least 2: to calibrate on and to measure with.
        batches: images a call.
        timing: `rounds` and `seconds` of `adderize.bench.timing.side_by_side`.
    """
    images = images.contiguous(memory_format=torch.channels_last)
    parts = images.split(_PART)
    cnn, adder = (recalibrate(twin(name, arch, "cpu"), parts).eval() for name in ("cnn", "adder"))
    integers = quantize(adder, parts)
    cosines = _centred_cosines(adder, integers, parts)
    pairs = adder_pairs(adder, images[:1])
    for batch in batches:
        inputs = images.repeat(-(-batch // len(images)), 1, 1, 1)[:batch]
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        calls: dict[str, Callable[[], object]] = {
            CNN: inference("cnn", cnn, inputs),
            ADDER: inference("adder", adder, inputs),
            ADDER_INT8: inference("adder", integers, inputs),
        }
        if rivals.onnxruntime_missing() is None:
            calls |= rivals.onnxruntime_calls(cnn, inputs, images)
        best, limit = processor_limits.beside(calls, _PASSES.values(), **timing)
        yield {
            "arch": arch,
            "batch": batch,
            "threads": torch.get_num_threads(),
            "input_size": list(images.shape[1:]),
            "ms": {name: best[name] * 1e3 for name in ORDER if name in best},
            "cosine_mean": float(cosines.mean()),
            "cosine_min": float(cosines.min()),
            "percent_of_limit": {
                name: 100
                * processor_limits.limit_ms(pairs * batch, {of: limit[of]})
                / (best[name] * 1e3)
                for name, of in _PASSES.items()
                if of in limit
            },
        }


@torch.inference_mode()
def _centred_cosines(model: nn.Module, other: nn.Module, parts: Sequence[Tensor]) -> Tensor:
    """Per image, of the outputs less the mean output of all images."""
    outputs = [torch.cat([net(part).flatten(1) for part in parts]) for net in (model, other)]
    mean = outputs[0].mean(0)
    return F.cosine_similarity(outputs[0] - mean, outputs[1] - mean)
