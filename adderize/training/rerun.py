"""A training step once more, for what its forward pass shows, and without a trace."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from adderize.dataflow.put_back import CONTAINERS, plain, refill, state_of

# Structure and hooks, which a step does not change.
_OF_TORCH = vars(nn.Module()).keys() - {"_buffers"}


@contextlib.contextmanager
def without_a_trace(pl_module: pl.LightningModule, but: Collection[nn.Module]) -> Iterator[None]:
    """Undoes what a step changes beside the state of ``but``; meanwhile nothing is logged.

    Random numbers, buffers and attributes of all modules become what they were: counters, metrics,
    tensors, arrays, generators, and what was put into lists, dictionaries, sets and deques, also
    into those in others.
    """
    trainer = pl_module.trainer
    loggers, kept = trainer.loggers, set(but)
    theirs = (buffer for norm in kept for buffer in norm.buffers())
    seen = {id(tensor) for tensor in (*pl_module.parameters(), *theirs)}
    with isolate_rng(), contextlib.ExitStack() as stack:
        for module in pl_module.modules():
            if module not in kept:
                stack.callback(_restoring(module, seen))
            if isinstance(module, pl.LightningModule):
                for name in ("log", "log_dict", "print"):
                    vars(module)[name] = _says_nothing
        trainer.loggers = [DummyLogger() for _ in loggers]
        stack.callback(setattr, trainer, "loggers", loggers)
        yield


def _says_nothing(*args: Any, **kwargs: Any) -> None:
    pass


def _restoring(module: nn.Module, seen: set[int]) -> Callable[[], None]:
    own = {name: value for name, value in vars(module).items() if name not in _OF_TORCH}
    contents = [restore for value in own.values() for restore in _contents(value, seen)]

    def restore() -> None:
        for name in vars(module).keys() - own.keys() - _OF_TORCH:
            del vars(module)[name]
        vars(module).update(own)
        for restore_content in contents:
            restore_content()

    return restore


def _contents(value: Any, seen: set[int]) -> Iterator[Callable[[], object]]:
    """What restores tensors, arrays, generators, and containers with all in them, each once."""
    if id(value) in seen:
        return
    if isinstance(value, tuple):
        for item in value:
            yield from _contents(item, seen)
        return
    restore = _restoring_content(value)
    if restore is None:
        return
    seen.add(id(value))
    yield restore
    if isinstance(value, CONTAINERS):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _contents(item, seen)


def _restoring_content(value: Any) -> Callable[[], object] | None:
    if isinstance(value, Tensor) and not value.is_inference():
        before, version = value.detach().clone(), value._version

        def refill_tensor() -> None:
            if value._version != version:
                value.detach().copy_(before)

        return refill_tensor
    if isinstance(value, CONTAINERS):
        return partial(refill, value, plain(value))
    state = state_of(value)
    return None if state is None else partial(state[0], *state[1:])
