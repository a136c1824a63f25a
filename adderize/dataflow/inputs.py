"""Inputs that a model is traced on: their values do not matter, and most have none."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from adderize.layers import AdderConv2d, AdderLinear, BinaryConv2d

_SIDES = (224, 32, 64, 256, 299, 384, 28)
_IMAGE_LAYERS = (nn.Conv2d, AdderConv2d, BinaryConv2d)


def blank_input(
    model: nn.Module, size: Sequence[int], device: torch.device | str = "meta"
) -> Tensor:
    """One example of a size without the batch, (1, *size), in the model's numbers."""
    return torch.zeros((1, *size), dtype=_floating_dtype(model), device=device)


def _floating_dtype(model: nn.Module) -> torch.dtype:
    """That of the first parameter of floating point, float32 where there is none."""
    dtypes = (p.dtype for p in model.parameters() if p.is_floating_point())
    return next(dtypes, torch.float32)


def likely_inputs(model: nn.Module, example_input: Any = None) -> Iterator[tuple[Any, ...]]:
    """Meta tensors to try a model on: the example, or what the model says and looks like."""
    if example_input is None:
        example_input = getattr(model, "example_input_array", None)
    if example_input is not None:
        arguments = example_input if isinstance(example_input, tuple) else (example_input,)
        yield tuple(pytree.tree_map_only(Tensor, lambda t: t.detach().to("meta"), arguments))
        return
    blank = functools.partial(torch.empty, dtype=_floating_dtype(model), device="meta")
    config = getattr(model, "pretrained_cfg", None)
    if isinstance(config, dict) and config.get("input_size"):
        yield (blank(2, *config["input_size"]),)
    first = next((m for m in model.modules() if isinstance(m, _IMAGE_LAYERS)), None)
    if first is not None:
        for side in _SIDES:
            yield (blank(2, first.in_channels, side, side),)
    dense = next((m for m in model.modules() if isinstance(m, (nn.Linear, AdderLinear))), None)
    if dense is not None:
        yield (blank(2, dense.in_features),)
