"""Running a model's own code without a trace of it."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, UntypedStorage, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from adderize.dataflow.snapshot import Snapshot


@contextlib.contextmanager
def restored(model: nn.Module) -> Iterator[Snapshot]:
    """Puts a model back at the end, also after an exception: all but its parameters' values.

    Gives the state that it is put back to.
    """
    snapshot = Snapshot(model, values=True)
    try:
        yield snapshot
    finally:
        snapshot.put_back()


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[Callable[[], None]]:
    """Leaves a model and the random generators as they were, for code that computes with stand-ins.

    Gives a function that puts all back at once, between two runs.
    Nothing large is copied: a tensor's values are kept only where an operator overwrites them.
    Batch norms must not be run on real tensors: torch does not say that these overwrite statistics.
    """
    snapshot = Snapshot(model, values=False)
    generators = [*_generators()]
    overwritten = _Overwritten(snapshot.memory)

    def put_back() -> None:
        overwritten.put_back()
        snapshot.put_back()
        for set_state, state in generators:
            set_state(state)

    try:
        with overwritten:
            yield put_back
    finally:
        put_back()


def _generators() -> Iterator[tuple[Any, Any]]:
    yield random.setstate, random.getstate()
    yield torch.set_rng_state, torch.get_rng_state()
    if "numpy" in sys.modules:
        numpy = sys.modules["numpy"]
        yield numpy.random.set_state, numpy.random.get_state()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        yield torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all()


class _Overwritten(TorchDispatchMode):
    """Keeps the memory that operators are about to change."""

    def __init__(self, memory: set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._memory = memory
        self._kept: dict[int, tuple[UntypedStorage, UntypedStorage]] = {}

    def put_back(self) -> None:
        for storage, values in self._kept.values():
            if storage.nbytes() != values.nbytes():
                storage.resize_(values.nbytes())
            storage.copy_(values)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func._schema.is_mutable:
            for position, argument in enumerate(func._schema.arguments):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    given = args[position] if position < len(args) else kwargs.get(argument.name)
                    for tensor in pytree.tree_leaves(given):
                        self._keep(tensor)
        return func(*args, **kwargs)

    def _keep(self, tensor: Any) -> None:
        if isinstance(tensor, Tensor) and not tensor.is_meta and tensor.layout is torch.strided:
            storage = tensor.untyped_storage()
            if storage._cdata in self._memory and storage._cdata not in self._kept:
                self._kept[storage._cdata] = storage, storage.clone()
