"""What happens to a layer, and why: a row of the plan."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Decision(StrEnum):
    """What happens to a layer: ``"convert"``, ``"keep"``, or ``"adder"`` and ``"binary"``, what it
    is already. Compares equal to its word."""

    CONVERT = "convert"
    KEEP = "keep"
    ADDER = "adder"
    BINARY = "binary"


class Reason(StrEnum):
    """Why; the value is what the plan says, with the class name of the layer for ``{kind}``."""

    CONVOLUTION = "convolution"
    LINEAR = "linear layer"
    IS_ADDER = "is an adder"
    IS_BINARY = "is binary"
    OWN_FORWARD = "has a forward of its own, put on the instance"
    PATTERN = "left out by pattern"
    REACHES_NO_OUTPUT = "its result reaches no output"
    NEVER_CALLED = "never called: unused, or its weight is read directly"
    FAST_PATH = "torch's transformer fast path reads its weight directly"
    STEM = "stem: reads the input"
    HEAD = "head: produces the output"
    DEPTHWISE = "depthwise"
    GATE = "gate on a pooled vector"
    SUBCLASS = "{kind} is a subclass, which may compute otherwise"
    NO_SUCH_FORM = "{kind} has no such form"


class NormFix(StrEnum):
    """Where the norm that a converted layer needs comes from: ``"found"``, ``"inserted"`` (will
    be), ``"none"`` (missing), or ``""``, where it needs none. Compares equal to its word."""

    NOT_NEEDED = ""
    FOUND = "found"
    INSERTED = "inserted"
    MISSING = "none"


@dataclass(frozen=True)
class Row:
    """What happens to one layer.

    Attributes:
        name: qualified name (the first one, where a layer is registered under several).
        kind: class name.
        shape: shape of the filters.
        decision: what happens to the layer.
        why: the reason for it.
        aliases: the further names that the layer is registered under.
        norm_fix: whether the norm that the layer needs was found, will be inserted or is missing;
            not needed by kept layers, nor by adders that are never called.
        norms: qualified names of the norms that were found.
        method: how the layer's surroundings were found: "fx" (traced), "hooks" (a forward on the
            meta device) or "order" (of registration).
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    decision: Decision
    why: Reason
    aliases: tuple[str, ...] = ()
    norm_fix: NormFix = NormFix.NOT_NEEDED
    norms: tuple[str, ...] = ()
    method: str = ""

    @property
    def reason(self) -> str:
        """Why, in a few words."""
        text = self.why.value.format(kind=self.kind)
        if self.decision is Decision.CONVERT and self.aliases:
            text += f", shared as {', '.join(self.aliases)}"
        return text

    @property
    def norm(self) -> str:
        """The norm that the layer needs: its qualified name, "inserted" (will be) or "none"."""
        if self.norm_fix is not NormFix.FOUND:
            return self.norm_fix.value
        first, *more = self.norms
        return f"{first} and {len(more)} more" if more else first
