"""Adder layers, and kept layers of constant factors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F

from adderize.errors import AdderizeError
from adderize.export.c.buffers import Integers, View, channels_last, plain
from adderize.export.c.packing import grid_of, lift_of, pack_filters, pack_terms
from adderize.export.c.placing import Placing, size
from adderize.export.c.steps import Epilogue, Fields, Step
from adderize.integer.program import Instruction

_MOST = 2**15 - 1


class FilterRules(Placing):
    """Rules for layers with filters, and the windows that they look through."""

    def _adder_conv(self, instruction: Instruction) -> None:
        slot = instruction.inputs[0]
        weight = instruction.tensors["weight"].numpy()
        groups = cast(int, instruction.settings["groups"])
        image, shape, around = self._padded(instruction)
        output = self._output(instruction)
        windows = self._windows(instruction, shape, weight.shape[2:], around)
        taps = np.moveaxis(weight, 1, -1).reshape(len(weight), -1)
        in_place = weight.shape[2:] == (1, 1) and not any(around)
        self._adder(
            instruction,
            "adder_conv",
            image,
            output,
            taps,
            _groups(weight, groups),
            groups,
            windows=windows,
            patch=0 if in_place else math.prod(weight.shape[2:]) * shape[0],
            text=f"adder convolution, {size(self._shape(slot))} -> "
            f"{size(self._shape(instruction.output))}, {_kernel(weight)}",
        )

    def _adder_linear(self, instruction: Instruction) -> None:
        weight = instruction.tensors["weight"].numpy()
        view, rows, order = self._rows(instruction, weight.shape[1])
        output = self._output(instruction, plain(rows * len(weight)))
        self._adder(
            instruction,
            "adder_linear",
            view,
            output,
            weight[:, order],
            _flat_groups(weight),
            1,
            numbers={"rows": rows},
            text=f"adder layer, {weight.shape[1]} -> {len(weight)}",
        )

    def _adder(
        self,
        instruction: Instruction,
        function: str,
        view: View,
        output: View,
        taps: Any,
        shape: Fields,
        groups: int,
        **others: Any,
    ) -> None:
        grid = grid_of(taps)
        packs = grid is not None and len(taps) // groups >= 4
        fields: dict[str, Any] = {
            "groups": shape,
            "filters": pack_filters(taps, groups, grid if packs else None),
            "zero": instruction.settings.get("zero", 0),
        }
        if grid is not None and packs:
            function += "_4bit"
            fields |= {"offset": grid.offset, "shift": grid.shift}
        self.steps.append(
            Step(
                function,
                instruction.layer,
                input=view,
                output=output,
                structure="adder",
                other=self._other(instruction, output),
                fields=fields,
                channels=len(taps),
                epilogue=Epilogue.of(instruction.settings, instruction.tensors),
                **others,
            )
        )

    def _rows(self, instruction: Instruction, features: int) -> tuple[View, int, Integers]:
        """What a linear layer reads, its rows, and where each one's features lie."""
        slot = instruction.inputs[0]
        view = self.views[slot]
        rows = view.size // features
        if rows == 1:
            return view, 1, view.order
        view = self._ordered(slot, plain(view.size), instruction.layer)
        return view, rows, plain(features)

    def _shift_conv(self, instruction: Instruction) -> None:
        slot = instruction.inputs[0]
        weight = instruction.tensors["shifts"][0].numpy()
        image, shape, around = self._padded(instruction)
        output = self._output(instruction)
        self.steps.append(
            Step(
                "shift_conv",
                instruction.layer,
                f"convolution of shifts, {size(self._shape(slot))} -> "
                f"{size(self._shape(instruction.output))}, {_kernel(weight)}",
                image,
                output,
                windows=self._windows(instruction, shape, weight.shape[2:], around),
                structure="product",
                channels=len(weight),
                fields=self._product(
                    instruction,
                    image,
                    _groups(weight, cast(int, instruction.settings["groups"])),
                    lambda terms: np.moveaxis(terms, 2, -1),
                    any(around),
                ),
                patch=math.prod(weight.shape[2:]) * shape[0],
                patch_dtype="int32",
            )
        )

    def _shift_linear(self, instruction: Instruction) -> None:
        weight = instruction.tensors["shifts"][0].numpy()
        view, rows, order = self._rows(instruction, weight.shape[1])
        output = self._output(instruction, plain(rows * len(weight)))
        self.steps.append(
            Step(
                "shift_linear",
                instruction.layer,
                f"linear layer of shifts, {weight.shape[1]} -> {len(weight)}",
                view,
                output,
                numbers={"rows": rows},
                structure="product",
                channels=len(weight),
                fields=self._product(
                    instruction, view, _flat_groups(weight), lambda terms: terms[..., order], False
                ),
                patch=weight.shape[1],
                patch_dtype="int32",
            )
        )

    def _product(
        self,
        instruction: Instruction,
        view: View,
        groups: Fields,
        arranged: Callable[[Any], Any],
        padded: bool,
    ) -> Fields:
        tensors = instruction.tensors
        shifts, signs = (arranged(tensors[name].numpy()) for name in ("shifts", "signs"))
        count, lift = len(shifts), lift_of(instruction)
        right = (lift - shifts).clip(max=31)
        return {
            "groups": groups,
            "terms": pack_terms(right.reshape(count, -1), signs.reshape(count, -1)),
            "bias": tensors["bias"].numpy(),
            "pad": tensors["pad"].numpy() if padded else None,
            "input_bytes": int(view.dtype == "uint8"),
            "lift": lift,
        }

    def _padded(
        self, instruction: Instruction
    ) -> tuple[View, tuple[int, ...], tuple[int, int, int, int]]:
        """The image that a filter sees, its shape, and what the function itself pads it with:
        left, right, top, bottom."""
        slot, settings = instruction.inputs[0], instruction.settings
        shape = self._shape(slot)
        around = cast(tuple[int, int, int, int], settings["padding"])
        image = self._ordered(slot, channels_last(shape), instruction.layer)
        mode = cast(str, settings["padding_mode"])
        if mode == "constant" or not any(around):
            return image, shape, around
        index = torch.arange(image.size, dtype=torch.float64, device="cpu").view(1, *shape)
        padded = F.pad(index, around, mode=mode)[0].long().numpy()
        view = self._new(padded.shape, image.dtype)
        sources = image.places[padded.reshape(-1)[view.order]]
        self._copy(f"{instruction.layer}_padded", f"{mode} padding", image, sources, view)
        return view, padded.shape, (0, 0, 0, 0)

    def _windows(
        self,
        instruction: Instruction,
        shape: Sequence[int],
        kernel: Sequence[int],
        around: Sequence[int],
    ) -> Fields:
        output = self._shape(instruction.output)
        channels, rows, columns = shape
        settings = cast(Any, instruction.settings)
        stride, dilation = settings["stride"], settings.get("dilation", (1, 1))
        line = columns * channels
        sizes = {
            "rows": rows,
            "columns": columns,
            "channels": channels,
            "output_rows": output[1],
            "output_columns": output[2],
            "kernel_rows": kernel[0],
            "kernel_columns": kernel[1],
            "top": -around[2],
            "left": -around[0],
            "stride_rows": stride[0],
            "stride_columns": stride[1],
            "dilation_rows": dilation[0],
            "dilation_columns": dilation[1],
        }
        return _within_16_bits(sizes) | {
            "start": -around[2] * line - around[0] * channels,
            "row_step": stride[0] * line,
            "column_step": stride[1] * channels,
            "tap_row_step": dilation[0] * line,
            "tap_column_step": dilation[1] * channels,
        }


def _groups(weight: Any, groups: int) -> Fields:
    """What each group of a convolution's filters sees of a window."""
    channels, taps = weight.shape[1], math.prod(weight.shape[2:])
    together = groups == 1
    counts = {
        "groups": groups,
        "filters": len(weight) // groups,
        "runs": 1 if together else taps,
    }
    return _within_16_bits(counts) | {
        "run": channels * taps if together else channels,
        "skip": 0 if together else channels * (groups - 1),
    }


def _flat_groups(weight: Any) -> Fields:
    counts = {"groups": 1, "filters": len(weight), "runs": 1}
    return _within_16_bits(counts) | {"run": weight.shape[1], "skip": 0}


def _within_16_bits(fields: dict[str, int]) -> dict[str, int]:
    """Fields that are int16_t in adderize_layers.h."""
    for name, value in fields.items():
        if abs(value) > _MOST:
            raise AdderizeError(
                f"it has {name.replace('_', ' ')}: {abs(value)}; expected at most {_MOST} in C"
            )
    return fields


def _kernel(weight: Any) -> str:
    return f"{weight.shape[2]} x {weight.shape[3]} taps"
