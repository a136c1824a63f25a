"""The adders of a network beside the layers of its teacher, in the order in which they run."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils import _pytree as pytree

from adderize.errors import AdderizeError, failing
from adderize.layers import Adder
from adderize.surgery.checks import check_model
from adderize.training.batches import described
from adderize.training.recalibration import tracking_norms


@dataclass(frozen=True)
class Pair:
    """An adder and the layer of the teacher that it stands for.

    Attributes:
        name: qualified name of both.
        calls: how often one forward pass calls them.
        norms: the batch norms with running statistics that run between this adder's first call and
            that of the next pair: those whose statistics the adder decides.
    """

    name: str
    adder: Adder
    original: nn.Module
    calls: int
    norms: tuple[_NormBase, ...]


class Reached(BaseException):
    """Ends a forward pass whose rest is not needed; models catch no such thing."""


def run_until_reached(module: nn.Module, inputs: Any) -> None:
    with contextlib.suppress(Reached):
        module(_copied(inputs))


def _copied(inputs: Any) -> Any:
    """For a forward pass, which may work in place on its input."""
    return pytree.tree_map_only(Tensor, Tensor.clone, inputs)


def find_pairs(model: nn.Module, teacher: nn.Module, inputs: Any) -> tuple[list[Pair], list[str]]:
    """The pairs in the order of their first calls, and the names of adders that are not called.

    Args:
        inputs: one batch, on the device of both; both networks run on it.

    Raises:
        AdderizeError: models that are wrapped or compiled, are the same, do not belong together, or
            fail on the batch.
    """
    adders = _counterparts(model, teacher)
    norms = tracking_norms(model)
    names: dict[nn.Module, str] = {adder: name for name, (adder, _) in adders.items()}
    calls = _calls(model, [*names, *norms], inputs)
    of_teacher = _calls(teacher, [original for _, original in adders.values()], inputs)
    for name, (adder, original) in adders.items():
        count, expected = calls.count(adder), of_teacher.count(original)
        if count != expected:
            raise AdderizeError(
                f"{name} is called {count} times in the model and {expected} times in the teacher: "
                "expected networks of one kind"
            )
    order = [names[module] for module in dict.fromkeys(calls) if module in names]
    if not order:
        raise AdderizeError("the model's forward calls none of its adders: pass the whole model")
    starts = [calls.index(adders[name][0]) for name in order]
    pairs = []
    for name, start, end in zip(order, starts, [*starts[1:], len(calls)], strict=True):
        between = dict.fromkeys(module for module in calls[start:end] if module in norms)
        adder, original = adders[name]
        pairs.append(Pair(name, adder, original, calls.count(adder), tuple(between)))
    return pairs, [name for name in adders if name not in order]


def _counterparts(model: nn.Module, teacher: nn.Module) -> Mapping[str, tuple[Adder, nn.Module]]:
    for network in (model, teacher):
        check_model(network)
    adders = {name: m for name, m in model.named_modules() if isinstance(m, Adder)}
    if not adders:
        raise AdderizeError("the model has no adder layers: convert it first (adderize)")
    of_teacher = dict(teacher.named_modules(remove_duplicate=False))
    found: dict[str, tuple[Adder, nn.Module]] = {}
    for name, adder in adders.items():
        if adder._parameters.get("weight") is None:
            raise AdderizeError(
                f"{name} ({type(adder).__name__}) computes its filters (parametrisation or "
                "pruning), so new ones would be lost: make them plain first "
                "(torch.nn.utils.parametrize.remove_parametrizations, prune.remove)"
            )
        original = of_teacher.get(name)
        if isinstance(original, Adder):
            if original is adder:
                raise AdderizeError(
                    "model and teacher are the same network: keep the teacher, and convert a copy "
                    "(adderize(teacher, inplace=False))"
                )
            continue  # the teacher has adders too: nothing to learn there
        _check_filters(name, adder.weight, original)
        found[name] = (adder, original)  # type: ignore[assignment]
    if not found:
        raise AdderizeError(
            "every adder of the model is an adder in the teacher too, so there is no convolution "
            "to learn from: the teacher (--weights of the command) must be the trained "
            "convolutional network"
        )
    return found


def _check_filters(name: str, own: Tensor, original: nn.Module | None) -> None:
    """Whether an adder's filters can become others, fitted to those of its counterpart."""
    weight = getattr(original, "weight", None)
    if not isinstance(weight, Tensor) or weight.shape != own.shape:
        has = "no such layer" if original is None else f"a {type(original).__name__}"
        if isinstance(weight, Tensor):
            has += f" with filters of {tuple(weight.shape)}"
        raise AdderizeError(
            f"{name} has filters of {tuple(own.shape)}, but the teacher has {has}: pass the "
            "network that the model was converted from"
        )
    if weight.is_meta or own.is_meta or (own.device, own.dtype) != (weight.device, weight.dtype):
        raise AdderizeError(
            f"{name} is on {own.device} in {own.dtype} and the teacher's on {weight.device} in "
            f"{weight.dtype}; expected one device and dtype, and values there"
        )
    if own.is_inference():
        raise AdderizeError(
            f"{name} was made in inference mode, whose tensors cannot be changed outside of it: "
            "copy the model first (copy.deepcopy)"
        )


@torch.no_grad()
def _calls(network: nn.Module, modules: list[nn.Module], inputs: Any) -> list[nn.Module]:
    """Each call of the modules in a forward pass, in order."""
    seen: list[nn.Module] = []
    with contextlib.ExitStack() as hooks:
        for module in modules:
            hooks.enter_context(module.register_forward_pre_hook(lambda m, _: seen.append(m)))
        advice = (
            "; expected its own input, or a tuple or list that starts with it, as a DataLoader "
            "gives them"
        )
        with failing(f"the network fails on {described(inputs)} from a batch", advice):
            network(_copied(inputs))
    return seen
