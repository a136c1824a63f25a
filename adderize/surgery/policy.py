"""Which layers become adders, and why."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

from adderize.dataflow import Flow
from adderize.errors import AdderizeError
from adderize.layers import AdderConv2d, AdderLinear
from adderize.surgery.engine import adder_kind
from adderize.surgery.roles import Roles

Patterns = str | Iterable[str] | None


@dataclass(frozen=True)
class Options:
    """The options of :func:`adderize.adderize`, checked."""

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
    def checked(cls, *, include: Patterns, exclude: Patterns, **others: Any) -> Options:
        for key, allowed in _CHOICES.items():
            if others[key] not in allowed:
                raise AdderizeError(
                    f"{key} is {others[key]!r}; expected one of {', '.join(map(repr, allowed))}"
                )
        return cls(
            include=None if include is None else _patterns(include),
            exclude=() if exclude is None else _patterns(exclude),
            **others,
        )


_CHOICES = {
    "init": ("rescale", "normal", "keep"),
    "norm": ("insert", "require", "ignore"),
    "gradient": ("full", "sign"),
}


def _patterns(patterns: str | Iterable[str]) -> tuple[str, ...]:
    return (patterns,) if isinstance(patterns, str) else tuple(patterns)


def is_candidate(module: nn.Module) -> bool:
    return isinstance(module, (_ConvNd, nn.Linear, AdderLinear))


def check_patterns(options: Options, layers: Sequence[tuple[nn.Module, list[str]]]) -> None:
    """Raise for a pattern that matches no layer."""
    names = [name for _, aliases in layers for name in aliases]
    for pattern in (*(options.include or ()), *options.exclude):
        if not any(fnmatchcase(name, pattern) for name in names):
            inside = any(name.startswith(pattern.rstrip(".") + ".") for name in names)
            hint = f"did you mean {pattern.rstrip('.') + '.*'!r}?" if inside else _examples(names)
            raise AdderizeError(f"the pattern {pattern!r} matches no layer: {hint}")


def _examples(names: Sequence[str]) -> str:
    return "layers have names like " + ", ".join(map(repr, names[:3])) if names else "there is none"


def keep_reason(
    layer: nn.Module, names: Sequence[str], options: Options, roles: Roles, flow: Flow | None
) -> str | None:
    """Why a layer is kept; None for one to convert."""
    if isinstance(layer, (AdderConv2d, AdderLinear)):
        return "is an adder"
    if any(fnmatchcase(name, pattern) for name in names for pattern in options.exclude):
        return "excluded by pattern"
    if options.include is not None and not any(
        fnmatchcase(name, pattern) for name in names for pattern in options.include
    ):
        return "not included by pattern"
    if isinstance(layer, nn.Linear) and not options.linear:
        return "linear layer"
    if adder_kind(layer) is None:
        return _no_adder_form(layer)
    if flow is None and roles.traced:
        return "never called: unused, or its weight is read directly"
    if layer in roles.inside_fast_path:
        return "torch's transformer fast path reads its weight directly"
    if not options.stem and layer in roles.stem:
        return "stem: reads the input"
    if not options.head and layer in roles.head:
        return "head: produces the output"
    if not options.depthwise and is_depthwise(layer):
        return "depthwise"
    if not options.gates and layer in roles.gates:
        return "gate on a pooled vector"
    return None


def _no_adder_form(layer: nn.Module) -> str:
    if isinstance(layer, (nn.Conv2d, nn.Linear)):
        return f"{type(layer).__name__} has arithmetic of its own"
    return f"{type(layer).__name__} has no adder form"


def is_depthwise(layer: nn.Module) -> bool:
    return isinstance(layer, _ConvNd) and layer.groups == layer.in_channels > 1
