"""What a function of windows is told about them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from adderize.errors import AdderizeError
from adderize.export.c.placing import Placing
from adderize.export.c.steps import Fields
from adderize.integer.program import Instruction

_MOST = 2**15 - 1


def window_fields(
    placing: Placing,
    instruction: Instruction,
    shape: Sequence[int],
    kernel: Sequence[int],
    around: Sequence[int],
) -> Fields:
    """The fields of ``adderize_windows``.

    Args:
        shape: of the image, (C, H, W).
        kernel: rows and columns of a window.
        around: what the function pads the image with: left, right, top, bottom.
    """
    output = placing.shape(instruction.output)
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
    return within_16_bits(sizes) | {
        "start": -around[2] * line - around[0] * channels,
        "row_step": stride[0] * line,
        "column_step": stride[1] * channels,
        "tap_row_step": dilation[0] * line,
        "tap_column_step": dilation[1] * channels,
    }


def within_16_bits(fields: dict[str, int]) -> dict[str, int]:
    """Fields that are int16_t in adderize_layers.h."""
    for name, value in fields.items():
        if abs(value) > _MOST:
            raise AdderizeError(
                f"it has {name.replace('_', ' ')}: {abs(value)}; expected at most {_MOST} in C"
            )
    return fields
