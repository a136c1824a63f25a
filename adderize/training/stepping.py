"""The rule at every optimizer step, whoever makes it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from adderize.layers import AdderConv2d, AdderLinear
from adderize.training.adaptive_rate import (
    AdderGradients,
    adder_filters,
    held_filters,
    scale_gradients_,
)
from adderize.training.search import modules_of
from adderize.training.unscaled import check_fused

_Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class ScaleAtEveryStep:
    """Scales the gradients of ``model``'s adder filters whenever an optimizer is about to use them.

    It listens to the steps of all of torch's optimizers, from its creation to :meth:`remove`. The
    rule acts on the gradients that the update sees: after the closure, where a step has one, after
    a gradient scaler has unscaled them, and not at all where it skips the step; after the
    optimizer's other pre-hooks; it is told of once, also where a step calls another one.

    Args:
        model: a module that holds adder layers.
        eta: as for :func:`adderize.scale_adder_gradients_`.
        scaled: is called after the rule with what it did.

    Raises:
        AdderizeError: at a step of a fused optimizer that unscales gradients itself.
    """

    def __init__(
        self, model: nn.Module, eta: float, scaled: Callable[[AdderGradients], None]
    ) -> None:
        self._model = model
        self._eta = eta
        self._scaled = scaled
        self._at_steps: WeakKeyDictionary[Optimizer, RemovableHandle] = WeakKeyDictionary()
        self._named: tuple[list[nn.Parameter | None], dict[str, nn.Parameter]] = [], {}
        self._at_all_steps = register_optimizer_step_pre_hook(self._act_last)

    def remove(self) -> None:
        self._at_all_steps.remove()
        for handle in self._at_steps.values():
            handle.remove()
        self._at_steps.clear()

    def _act_last(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: Any) -> None:
        """Hooks of all optimizers come before those of one; of the latter ours becomes the last."""
        if handle := self._at_steps.pop(optimizer, None):
            handle.remove()
        if held_filters(self._filters(), optimizer):
            self._at_steps[optimizer] = optimizer.register_step_pre_hook(self._before_step)

    def _before_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> _Arguments | None:
        check_fused(optimizer, kwargs)
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if not callable(closure):
            self._scale(optimizer)
            return None

        @functools.wraps(closure)
        def closure_and_rule() -> Any:
            result = closure()
            self._scale(optimizer)
            return result

        if "closure" in kwargs:
            return args, {**kwargs, "closure": closure_and_rule}
        return (args[0], closure_and_rule, *args[2:]), kwargs

    def _scale(self, optimizer: Optimizer) -> None:
        filters = held_filters(self._filters(), optimizer)
        new = {name: weight for name, weight in filters.items() if not _is_scaled(weight.grad)}
        gradients = scale_gradients_(new, self._eta)
        # The others are no news, and to scaled gradients the rule does nothing; but what writes to
        # `grad.data`, or a CUDA graph, leaves no version.
        if others := {name: weight for name, weight in filters.items() if name not in new}:
            scale_gradients_(others, self._eta)
        for weight in filters.values():
            if type(weight.grad) is Tensor:
                weight.grad._scaled_at = weight.grad._version  # type: ignore[attr-defined]
        if gradients.names:
            self._scaled(gradients)

    def _filters(self) -> dict[str, nn.Parameter]:
        """All adder filters as they are now, named anew only where others are there."""
        layers = modules_of(self._model, AdderConv2d, AdderLinear)
        weights = [layer._parameters.get("weight") for layer in layers]
        if [*map(id, weights)] != [*map(id, self._named[0])]:
            self._named = weights, adder_filters(self._model)
        return self._named[1]


def _is_scaled(gradient: Tensor | None) -> bool:
    """Whether no operator has changed the gradient since the rule acted on it."""
    return getattr(gradient, "_scaled_at", None) == getattr(gradient, "_version", 0)
