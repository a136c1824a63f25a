"""Which layers are converted, and why."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

from adderize.dataflow import Flow
from adderize.errors import AdderizeError
from adderize.layers import AdderLinear
from adderize.surgery.checks import check_dtype, check_layer, is_quantized
from adderize.surgery.engine import Target
from adderize.surgery.roles import Roles

Patterns = str | Iterable[str] | None


@dataclass(frozen=True)
class Options:
    """The options of :func:`adderize.adderize` and :func:`adderize.binarize`, checked."""

    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    stem: bool = False
    head: bool = False
    linear: bool = False
    depthwise: bool = True
    gates: bool = False
    init: str = "rescale"
    norm: str = "insert"
    gradient: str = "full"

    @classmethod
    def checked(cls, *, include: Patterns = None, exclude: Patterns = None, **rest: Any) -> Options:
        options = cls(
            include=None if include is None else _patterns(include),
            exclude=() if exclude is None else _patterns(exclude),
            **rest,
        )
        for key in _SWITCHES:
            check_switch(key, getattr(options, key))
        for key, allowed in _CHOICES.items():
            value = getattr(options, key)
            if value not in allowed:
                words = ", ".join(map(repr, allowed))
                raise AdderizeError(f"{key} is {value!r}; expected one of {words}")
        return options

    def matches(self, names: Sequence[str]) -> bool:
        """Whether one of a layer's names is included and none excluded."""
        return (self.include is None or _any_match(names, self.include)) and not _any_match(
            names, self.exclude
        )


_SWITCHES = ("stem", "head", "linear", "depthwise", "gates")
_CHOICES = {
    "init": ("rescale", "normal", "keep"),
    "norm": ("insert", "require", "ignore"),
    "gradient": ("full", "sign"),
}


def check_switch(key: str, value: object) -> None:
    if not isinstance(value, bool):
        raise AdderizeError(f"{key} is {value!r}; expected True or False")


def _patterns(patterns: str | Iterable[str]) -> tuple[str, ...]:
    if isinstance(patterns, str):
        return (patterns,)
    found = tuple(patterns) if isinstance(patterns, Iterable) else (patterns,)
    if not all(isinstance(pattern, str) for pattern in found):
        raise AdderizeError(f"the patterns are {patterns!r}; expected names such as 'layer1.*'")
    return found


def _any_match(names: Iterable[str], patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)


def check_patterns(options: Options, names: Sequence[str]) -> None:
    """Raise for a pattern that matches no layer."""
    for pattern in (*(options.include or ()), *options.exclude):
        if _any_match(names, [pattern]):
            continue
        inner = pattern.rstrip(".") + "."
        if any(name.startswith(inner) for name in names):
            hint = f"did you mean {inner + '*'!r}?"
        else:
            hint = "layers have names like " + ", ".join(map(repr, names[:3]))
        raise AdderizeError(f"the pattern {pattern!r} matches no layer: {hint}")


def is_candidate(module: nn.Module) -> bool:
    """Whether a module is a row of the plan: any convolution or linear layer."""
    return isinstance(module, (_ConvNd, nn.Linear, AdderLinear)) or is_quantized(module)


def keep_reason(
    layer: nn.Module,
    names: Sequence[str],
    options: Options,
    roles: Roles,
    flow: Flow | None,
    target: Target,
) -> str | None:
    """Why a layer is kept; None for one to convert.

    Raises:
        AdderizeError: a layer that the options select cannot be converted as it is.
    """
    if isinstance(layer, target.classes):
        return is_already(target)
    if not options.matches(names):
        return "left out by pattern"
    if _is_linear(layer) and not options.linear:
        return "linear layer"
    if roles.traced and flow is None:
        if layer in roles.called:
            return "its result reaches no output"
        return "never called: unused, or its weight is read directly"
    if layer in roles.inside_fast_path:
        return "torch's transformer fast path reads its weight directly"
    if not options.stem and layer in roles.stem:
        return "stem: reads the input"
    if not options.head and layer in roles.head:
        return "head: produces the output"
    if not options.depthwise and _is_depthwise(layer):
        return "depthwise"
    if not options.gates and layer in roles.gates:
        return "gate on a pooled vector"
    check_layer(names[0], layer)
    if target.kind_of(layer) is None:
        return _no_such_form(layer)
    check_dtype(names[0], layer)
    return None


def is_already(target: Target) -> str:
    """The reason for a layer that is what the conversion would make of it."""
    return "is an adder" if target.decision == "adder" else f"is {target.decision}"


def _is_linear(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) or "Linear" in type(layer).__name__


def _is_depthwise(layer: nn.Module) -> bool:
    return isinstance(layer, _ConvNd) and layer.groups == layer.in_channels > 1


def _no_such_form(layer: nn.Module) -> str:
    if isinstance(layer, (nn.Conv2d, nn.Linear)):
        return f"{type(layer).__name__} has arithmetic of its own"
    return f"{type(layer).__name__} has no such form"
