"""What meta tensors answer where a model asks for values, which they lack."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

# Of those that a mask selects.
_SELECTED = 2
# How often a line of the model's code gets the same answer, and how often another one.
_SAME_ANSWERS = 32
_TURNS = 4
_OTHER_ANSWERS: dict[type, tuple[float, float]] = {
    bool: (True, False), int: (2**16, 0), float: (1e12, 1e-12),
}  # fmt: skip


def tensors_in(tree: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


class EndlessError(Exception):
    """A model that goes on whatever its values are."""


class AnySize(TorchDispatchMode):
    """Answers what depends on values, which meta tensors lack: a few elements are selected.

    A loop that goes on until values allow it to end gets other values now and then.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._asked: Counter[tuple[str, int]] = Counter()

    def _scalar(self, tensor: Tensor) -> float | int | bool:
        kind = float if tensor.is_floating_point() else bool if tensor.dtype is torch.bool else int
        place = _asking_line()
        self._asked[place] += 1
        turn, usual = divmod(self._asked[place], _SAME_ANSWERS)
        if turn == _TURNS:
            raise EndlessError(f"{place} asks for values without an end")
        if usual or not turn:
            return kind(1)
        return _OTHER_ANSWERS[kind][turn % 2]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not any(tensor.is_meta for tensor in tensors_in(args)):
            return func(*args, **kwargs)
        if func._schema.name == "aten::_local_scalar_dense":
            return self._scalar(args[0])
        answer = _ANSWERS.get(func._schema.name)
        if answer is None:
            return func(*args, **kwargs)
        return answer(func, *args, **kwargs)


def _nonzero(_: Any, mask: Tensor) -> Tensor:
    return torch.empty(min(mask.numel(), _SELECTED), mask.dim(), dtype=torch.long, device="meta")


def _index(func: Any, tensor: Tensor, indices: list[Tensor | None], *rest: Any) -> Any:
    positions: list[Tensor | None] = []
    for index in indices:
        if index is not None and index.dtype in (torch.bool, torch.uint8):
            positions += _nonzero(None, index).unbind(1)
        else:
            positions.append(index)
    return func(tensor, positions, *rest)


def _asking_line() -> tuple[str, int]:
    """The line of the model's code, or of what it calls but torch, that asks for a value."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        module = str(frame.f_globals.get("__name__"))
        if module.rpartition(".")[0] != __package__ and module.split(".")[0] != "torch":
            break
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno


def _unique(_: Any, tensor: Tensor, *__: Any, **___: Any) -> tuple[Tensor, Tensor, Tensor]:
    values = tensor.flatten()[:_SELECTED]
    positions = torch.empty(tensor.shape, dtype=torch.long, device="meta")
    return values, positions, values.long()


_ANSWERS: dict[str, Callable[..., Any]] = {
    "aten::nonzero": _nonzero,
    "aten::index": _index,
    "aten::index_put_": _index,
    "aten::_unique2": _unique,
    "torchvision::nms": lambda _, boxes, *__: _nonzero(None, boxes[:, 0])[:, 0],
}
