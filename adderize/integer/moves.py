"""Operations that move or repeat values without computing any, as strided copies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from adderize.integer.program import Setting
from adderize.integer.refusal import RefusedError
from adderize.quantize.byte_tensors import MOVES
from adderize.quantize.calls import is_repetition, module_of, operation

_MOVES = MOVES | {"view"}


def is_move(node: Node) -> bool:
    """Whether a node moves or repeats values."""
    return operation(node) in _MOVES or is_repetition(node)


def indices(shape: Sequence[int]) -> Tensor:
    """The positions of the values of two images, float64 (2, ...), which every operation takes."""
    count = int(torch.Size(shape).numel())
    return torch.arange(count, dtype=torch.float64, device="cpu").view(*shape)


def moved(node: Node, source: Node, index: Any) -> Any:
    """What a node makes of positions; other operands are those noted in ``meta["result"]``."""

    def known(operand: Node) -> Any:
        return index if operand is source else operand.meta["result"]

    args, kwargs = map_arg(node.args, known), map_arg(node.kwargs, known)
    module = module_of(node)
    if module is not None:
        return module(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    function: Callable[..., Any] = node.target  # type: ignore[assignment]
    return function(*args, **kwargs)


def strided_copy(node: Node, index: Tensor, numel: int) -> dict[str, Setting]:
    """The settings of the move that gathers positions of two images of `numel` values each.

    Raises:
        RefusedError: images are mixed, or no strided copy gives the order.
    """
    first, second = index if len(index) == 2 else (index, index)
    if not torch.equal(second, first + numel):
        raise RefusedError(f"{operation(node)} mixes the images of a batch")
    flat = first.flatten()
    offset, sizes, strides = int(flat[0]), [], []
    while flat.numel() > 1:
        step = flat[1] - flat[0]
        breaks = (flat.diff() != step).nonzero()
        run = int(breaks[0]) + 1 if len(breaks) else flat.numel()
        rows = flat.view(-1, run) if flat.numel() % run == 0 else flat[:0]
        steps = step * torch.arange(run, dtype=flat.dtype, device="cpu")
        if step < 0 or not rows.numel() or not torch.equal(rows, rows[:, :1] + steps):
            raise RefusedError(f"{operation(node)} puts values into an order without strides")
        sizes.append(run)
        strides.append(int(step))
        flat = rows[:, 0]
    return {
        "offset": offset,
        "sizes": tuple(reversed(sizes)) or (1,),
        "strides": tuple(reversed(strides)) or (1,),
    }
