"""The options of a conversion, checked once for every function that takes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from typing import Any

from adderize.arguments import check_choice, check_switch, is_finite
from adderize.errors import AdderizeError
from adderize.ops.gradients import GRADIENTS
from adderize.surgery.engine import ADDER, BINARY, Target

Patterns = str | Iterable[str] | None


@dataclass(frozen=True)
class Options:
    """Those of :func:`adderize.adderize`; a binary target knows some of them only."""

    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    stem: bool = False
    head: bool = False
    linear: bool = False
    depthwise: bool = True
    gates: bool = False
    init: str = "rescale"
    scale: float | None = None
    norm: str = "insert"
    gradient: str = "full"

    @classmethod
    def checked(cls, arguments: Mapping[str, Any], target: Target) -> Options:
        """The options among the arguments of a function, checked; other arguments are left out.

        Raises:
            AdderizeError: a wrong value, or an option that the target does not have.
        """
        given = {f.name: arguments[f.name] for f in fields(cls) if f.name in arguments}
        given["include"] = None if given["include"] is None else _patterns(given["include"])
        given["exclude"] = () if given["exclude"] is None else _patterns(given["exclude"])
        options = cls(**given)
        for key in _SWITCHES:
            check_switch(key, getattr(options, key))
        for key, allowed in _CHOICES.items():
            check_choice(key, getattr(options, key), allowed)
        for key in _ADDERS_ONLY if target is BINARY else ():
            if getattr(options, key) != getattr(cls, key):
                raise AdderizeError(
                    f"{key} is {getattr(options, key)!r}, but binary layers have no such option"
                )
        return options if target is BINARY else replace(options, scale=options._checked_scale())

    def _checked_scale(self) -> float | None:
        usual = _USUAL_SCALES.get(self.init)
        if self.scale is None:
            return usual
        if usual is None:
            raise AdderizeError(f"scale is {self.scale!r}, but init={self.init!r} scales nothing")
        if not is_finite(self.scale) or self.scale <= 0:
            raise AdderizeError(f"scale is {self.scale!r}; expected a finite number above 0")
        return float(self.scale)

    def matches(self, names: Sequence[str]) -> bool:
        """Whether one of a layer's names is included and none excluded."""
        return (self.include is None or _any_match(names, self.include)) and not _any_match(
            names, self.exclude
        )

    def check_patterns(self, names: Sequence[str]) -> None:
        """Raise for a pattern that matches none of all layers' names."""
        for pattern in (*(self.include or ()), *self.exclude):
            if _any_match(names, [pattern]):
                continue
            inner = pattern.rstrip(".") + "."
            if any(name.startswith(inner) for name in names):
                hint = f"did you mean {inner + '*'!r}?"
            else:
                hint = "layers have names like " + ", ".join(map(repr, names[:3]))
            raise AdderizeError(f"the pattern {pattern!r} matches no layer: {hint}")


_SWITCHES = ("stem", "head", "linear", "depthwise", "gates")
_CHOICES = {
    "init": ("rescale", "normal", "keep"),
    "norm": ("insert", "require", "ignore"),
    "gradient": GRADIENTS,
}
_ADDERS_ONLY = ("linear", "init", "scale", "gradient")
# A trained filter that lies beyond its inputs acts as its sign, one among them hardly acts at all:
# docs/transfer.md has the measurements. The paper draws from N(0, 1).
_USUAL_SCALES = {"rescale": 8.0, "normal": 1.0}
_TARGETS = {"adder": ADDER, "binary": BINARY}


def target_named(name: str) -> Target:
    """The target of that name, as :func:`adderize.plan` takes it."""
    check_choice("target", name, tuple(_TARGETS))
    return _TARGETS[name]


def _patterns(patterns: str | Iterable[str]) -> tuple[str, ...]:
    if isinstance(patterns, str):
        return (patterns,)
    found = tuple(patterns) if isinstance(patterns, Iterable) else (patterns,)
    if not all(isinstance(pattern, str) for pattern in found):
        raise AdderizeError(f"the patterns are {patterns!r}; expected names such as 'layer1.*'")
    return found


def _any_match(names: Iterable[str], patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)
