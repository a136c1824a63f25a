"""Calls of C functions, with the constants that they read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from adderize.export.c.buffers import View
from adderize.export.c.packing import pack_terms
from adderize.integer.program import BYTES_OF

# Of a struct of C: numbers, arrays, structs; None where a pointer is NULL.
Fields = Mapping[str, Any]


@dataclass(frozen=True)
class Epilogue:
    """What follows a sum; see :mod:`adderize.integer.program`.

    Attributes:
        shifts, signs: int8 (T, C) or (T, 1).
        bias: int32 (C,) or (1,).
        other_shifts, other_signs: int8 (U,), or None.
        fraction, low, high, drop, other_drop: the settings.
    """

    shifts: Any
    signs: Any
    bias: Any
    other_shifts: Any
    other_signs: Any
    fraction: int
    low: int
    high: int
    drop: int = 0
    other_drop: int = 0

    @classmethod
    def of(cls, settings: Mapping[str, Any], tensors: Mapping[str, Any]) -> Epilogue:
        """From an instruction's settings and tensors."""
        numbers = ("fraction", "low", "high", "drop", "other_drop")
        arrays = ("shifts", "signs", "bias", "other_shifts", "other_signs")
        fields: dict[str, Any] = {name: settings.get(name, 0) for name in numbers}
        fields |= {name: tensors[name].numpy() if name in tensors else None for name in arrays}
        return cls(**fields)

    @property
    def channels(self) -> int:
        return len(self.bias)

    def chosen(self, channels: Any) -> Epilogue:
        """That of some channels, in this order."""
        return replace(
            self,
            shifts=self.shifts[:, channels],
            signs=self.signs[:, channels],
            bias=self.bias[channels],
        )

    def clamped(self, low: int, high: int) -> Epilogue:
        """With a clamp behind it."""
        low, high = (min(max(end, low), high) for end in (self.low, self.high))
        return replace(self, low=low, high=high)

    def fields(self) -> Fields:
        others = None
        if self.other_shifts is not None:
            others = pack_terms(self.other_shifts[:, None], self.other_signs[:, None])
        return {
            "terms": pack_terms(self.shifts, self.signs),
            "bias": self.bias.astype(np.int32),
            "other_terms": others,
            "low": self.low,
            "high": self.high,
            "fraction": self.fraction,
            "drop": self.drop,
            "other_drop": self.other_drop,
            "shared": int(self.channels == 1),
        }


@dataclass(frozen=True)
class Step:
    """One call.

    Attributes:
        function: of adderize_layers.h, without its prefix.
        layer: what it computes, unique in the network.
        text: what it computes, in words.
        input, output: where values come from and go to.
        other: the second operand, or None.
        numbers: arguments by name.
        windows: the fields of the windows, where it takes some.
        structure: the type of its constants, without its prefix, or "".
        fields: those of its constants, except the epilogue.
        epilogue: or None.
        channels: of its results, for the epilogue; 0 for functions that have none.
        patch: values of a window, which it needs memory for.
        patch_dtype: of them.
    """

    function: str
    layer: str
    text: str
    input: View
    output: View
    other: View | None = None
    numbers: Mapping[str, int] = field(default_factory=dict)
    windows: Fields | None = None
    structure: str = ""
    fields: Fields = field(default_factory=dict)
    epilogue: Epilogue | None = None
    channels: int = 0
    patch: int = 0
    patch_dtype: str = "uint8"

    @property
    def patch_bytes(self) -> int:
        return self.patch * BYTES_OF[self.patch_dtype]

    @property
    def reads(self) -> tuple[View, ...]:
        return (self.input,) if self.other is None else (self.input, self.other)

    def all_fields(self) -> Fields:
        """With the epilogue."""
        if not self.channels:
            return self.fields
        epilogue = dict(self.epilogue.fields()) if self.epilogue else {}
        epilogue["bytes"] = int(self.output.dtype == "uint8")
        if self.other is not None:
            epilogue["other_bytes"] = int(self.other.dtype == "uint8")
        return {**self.fields, "epilogue": epilogue}
