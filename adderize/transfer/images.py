"""The images of a transfer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from adderize.errors import AdderizeError

_BATCH = 128
_VALUES_A_BATCH = 2**22


class Images:
    """The images of a transfer, in batches that a forward pass can take; kept on the CPU."""

    def __init__(self, batches: Iterable[Any], limit: int, device: torch.device) -> None:
        self.device = device
        self.batches, self.count = _taken(batches, limit)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches:
            yield pytree.tree_map_only(Tensor, lambda t: t.to(self.device), batch)

    def first(self) -> Any:
        return next(iter(self))

    def chunks(self, count: int) -> list[Images]:
        """The same images in `count` parts of about the same size, each from all over them."""
        parts = []
        for part in range(count):
            images = Images.__new__(Images)
            images.device, images.batches = self.device, self.batches[part::count]
            images.count = sum(map(_length, images.batches))
            parts.append(images)
        return parts


def _taken(batches: Iterable[Any], limit: int) -> tuple[list[Any], int]:
    if isinstance(batches, Tensor):
        batches = batches.split(_BATCH)
    taken, count = [], 0
    for batch in batches:
        inputs = batch[0] if isinstance(batch, (tuple, list)) else batch
        length = _length(inputs)
        if count + length > limit:
            inputs = _first(inputs, limit - count)
            length = limit - count
        taken.append(pytree.tree_map_only(Tensor, _on_cpu, inputs))
        count += length
        if count >= limit:
            break
    if not count:
        raise AdderizeError("got no images; expected batches as a DataLoader gives them")
    for leaf in pytree.tree_leaves(taken):
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and not leaf.isfinite().all():
            raise AdderizeError("the images hold NaN or infinity; expected finite values")
    shapes = {tuple(batch.shape[1:]) for batch in taken if isinstance(batch, Tensor)}
    if len(shapes) == 1 and all(isinstance(batch, Tensor) for batch in taken):
        values = max(1, math.prod(shapes.pop()))
        size = min(max(_VALUES_A_BATCH // values, 8), _BATCH)
        together, parts = torch.cat(taken), math.ceil(count / size)
        # Images may come class by class: each batch takes some from all over.
        taken = [together[part::parts] for part in range(parts)]
    return taken, count


def _on_cpu(tensor: Tensor) -> Tensor:
    """Off the graph; gradients take none that was made in inference mode."""
    return (tensor.clone() if tensor.is_inference() else tensor).detach().cpu()


def _is_list(inputs: Any) -> bool:
    """Whether these are images of unlike sizes, each (C, H, W), as networks for detection take."""
    several = isinstance(inputs, (tuple, list)) and len(inputs) > 0
    return several and all(isinstance(x, Tensor) and x.ndim == 3 for x in inputs)


def _first(inputs: Any, count: int) -> Any:
    if _is_list(inputs):
        return inputs[:count]
    return pytree.tree_map_only(Tensor, lambda t: t[:count], inputs)


def _length(inputs: Any) -> int:
    if _is_list(inputs):
        return len(inputs)
    leaf = next((x for x in pytree.tree_leaves(inputs) if isinstance(x, Tensor)), None)
    if leaf is None or not leaf.ndim:
        raise AdderizeError(
            f"a batch is a {type(inputs).__name__} without images; expected tensors, or tuples and "
            "lists whose first element is the input"
        )
    return len(leaf)
