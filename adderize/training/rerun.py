"""A training step once more, for what its forward pass shows, and without a trace."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Collection, Iterator
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

# Structure and hooks, which a step does not change.
_OF_TORCH = vars(nn.Module()).keys() - {"_buffers"}
_CONTAINERS = (list, dict, set, deque)


@contextlib.contextmanager
def without_a_trace(pl_module: pl.LightningModule, but: Collection[nn.Module]) -> Iterator[None]:
    """Undoes what a step changes beside the state of ``but``; meanwhile nothing is logged.

    Random numbers, buffers and attributes of all modules become what they were: counters, metrics,
    tensors, and what was put into lists, dictionaries, sets and deques.
    """
    trainer = pl_module.trainer
    loggers, kept = trainer.loggers, set(but)
    with isolate_rng(), contextlib.ExitStack() as stack:
        for module in pl_module.modules():
            if module not in kept:
                stack.callback(_restoring(module))
            if isinstance(module, pl.LightningModule):
                for name in ("log", "log_dict", "print"):
                    vars(module)[name] = _says_nothing
        trainer.loggers = [DummyLogger() for _ in loggers]
        stack.callback(setattr, trainer, "loggers", loggers)
        yield


def _says_nothing(*args: Any, **kwargs: Any) -> None:
    pass


def _restoring(module: nn.Module) -> Callable[[], None]:
    own = {name: value for name, value in vars(module).items() if name not in _OF_TORCH}
    contents = [_restoring_content(value) for value in (*own.values(), *module._buffers.values())]

    def restore() -> None:
        for name in vars(module).keys() - own.keys() - _OF_TORCH:
            del vars(module)[name]
        vars(module).update(own)
        for restore_content in contents:
            restore_content()

    return restore


def _restoring_content(value: Any) -> Callable[[], None]:
    if isinstance(value, Tensor) and not value.is_inference():
        before, version = value.detach().clone(), value._version

        def refill_tensor() -> None:
            if value._version != version:
                value.detach().copy_(before)

        return refill_tensor
    if isinstance(value, _CONTAINERS):
        items = value.copy()

        def refill() -> None:
            value.clear()
            (value.extend if isinstance(value, (list, deque)) else value.update)(items)

        return refill
    return lambda: None
