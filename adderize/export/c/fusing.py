"""Fewer passes over memory: scales and clamps become part of the step that they follow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from adderize.export.c.steps import Step

_SUMS = ("shift_conv", "shift_linear", "sum_pool")


def fused(steps: Sequence[Step], kept: int) -> list[Step]:
    """The same results with fewer steps.

    Args:
        kept: the buffer of the logits, which is read behind the last step.
    """
    readers = Counter(view.buffer for step in steps for view in step.reads)
    readers[kept] += 1
    result: list[Step] = []
    written: dict[int, int] = {}
    for step in steps:
        position = written.get(step.input.buffer)
        if position is not None and readers[step.input.buffer] == 1:
            joined = _joined(result[position], step, others_precede=position == len(result) - 1)
            if joined is not None:
                result[position] = joined
                written[step.output.buffer] = position
                continue
        # A buffer that several steps write, such as a concatenation, belongs to none of them.
        seen = any(step.output.buffer == earlier.output.buffer for earlier in result)
        written[step.output.buffer] = len(result)
        if seen:
            del written[step.output.buffer]
        result.append(step)
    return result


def _joined(first: Step, second: Step, others_precede: bool) -> Step | None:
    """One step for two, the second of which alone reads what the first writes."""
    if not first.channels or first.output.size != second.input.size:
        return None
    if second.function.startswith("clamp") and first.epilogue is not None:
        low, high = second.numbers["low"], second.numbers["high"]
        return replace(first, output=second.output, epilogue=first.epilogue.clamped(low, high))
    scaled = second.function == "rescale" and first.function in _SUMS and first.epilogue is None
    if not scaled or second.epilogue is None or (second.other is not None and not others_precede):
        return None
    channels = second.channels
    if channels > 1 and (channels != first.channels or second.fields["inner"] != 1):
        return None
    return replace(
        first,
        output=second.output,
        other=second.other,
        epilogue=second.epilogue,
        text=f"{first.text}, then {second.layer}",
    )
