"""Operations that move or repeat values without computing any, as strided copies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from adderize.dataflow.graphs import operation, value_of
from adderize.integer.program import Setting
from adderize.integer.refusal import RefusedError
from adderize.integer.strides import as_loops
from adderize.quantize.calls import MOVES, is_repetition


def is_move(node: Node) -> bool:
    """Whether a node moves or repeats values."""
    return operation(node) in MOVES or is_repetition(node)


def indices(shape: Sequence[int]) -> Tensor:
    """The positions of the values of two images, float64 (2, ...), which every operation takes."""
    count = int(torch.Size(shape).numel())
    return torch.arange(count, dtype=torch.float64, device="cpu").view(*shape)


def moved(node: Node, source: Node, index: Any) -> Any:
    """What a node makes of positions; other operands are those noted in ``meta["result"]``."""
    known = {
        operand: index if operand is source else operand.meta["result"]
        for operand in node.all_input_nodes
    }
    return value_of(node, known)


def strided_copy(node: Node, index: Tensor, numel: int) -> dict[str, Setting]:
    """The settings of the move that gathers positions of two images of `numel` values each.

    Raises:
        RefusedError: images are mixed, or no strided copy gives the order.
    """
    first, second = index if len(index) == 2 else (index, index)
    if not torch.equal(second, first + numel):
        raise RefusedError(f"{operation(node)} mixes the images of a batch")
    flat = first.flatten().long().numpy()
    loops = as_loops(flat[:, None])
    if loops is None or (loops.strides < 0).any():
        raise RefusedError(f"{operation(node)} puts values into an order without strides")
    return {
        "offset": int(flat[0]),
        "sizes": loops.sizes or (1,),
        "strides": tuple(loops.strides[:, 0].tolist()) or (1,),
    }
