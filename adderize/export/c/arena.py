"""One piece of memory for all activations: buffers that are not needed at once share bytes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from adderize.export.c.steps import Step

ALIGNMENT = 4
_IN_PLACE = ("rescale", "clamp_bytes", "clamp_words")


@dataclass(frozen=True)
class Arena:
    """Where buffers lie.

    Attributes:
        size: bytes.
        offsets: of the buffers, in bytes; those of the caller are not among them.
        patches: for each step that needs memory of its own, by its position.
    """

    size: int
    offsets: dict[int, int]
    patches: dict[int, int]


@dataclass
class _Block:
    """Bytes that are needed from one step to another, both included."""

    size: int
    first: int
    last: int
    buffers: list[int]


def plan_arena(steps: Sequence[Step], sizes: Sequence[int], callers: Collection[int]) -> Arena:
    """Offsets by lifetimes: the largest first, each at the lowest place that is free.

    Args:
        sizes: of the buffers, in bytes.
        callers: the buffers that lie elsewhere.
    """
    blocks = _blocks(steps, sizes, callers)
    patches = [
        _Block(step.patch_bytes, position, position, [])
        for position, step in enumerate(steps)
        if step.patch
    ]
    offsets: dict[int, int] = {}
    placed: list[tuple[int, _Block]] = []
    every = sorted([*blocks, *patches], key=lambda block: (-block.size, block.first, block.last))
    for block in every:
        offset = 0
        for start, other in sorted(placed, key=lambda pair: pair[0]):
            apart = block.last < other.first or other.last < block.first
            if not apart and offset + block.size > start:
                offset = max(offset, _aligned(start + other.size))
        placed.append((offset, block))
        offsets[id(block)] = offset
    return Arena(
        max((_aligned(offset + block.size) for offset, block in placed), default=0),
        {buffer: offsets[id(block)] for block in blocks for buffer in block.buffers},
        {block.first: offsets[id(block)] for block in patches},
    )


def _blocks(steps: Sequence[Step], sizes: Sequence[int], callers: Collection[int]) -> list[_Block]:
    of: dict[int, _Block] = {}
    last_reads = {
        view.buffer: position for position, step in enumerate(steps) for view in step.reads
    }
    for position, step in enumerate(steps):
        buffer, source = step.output.buffer, step.input.buffer
        if buffer in callers:
            continue
        last = max(last_reads.get(buffer, position), position)
        if buffer in of:
            of[buffer].last = max(of[buffer].last, last)
        elif _in_place(step, last_reads, position) and source in of:
            block = of[buffer] = of[source]
            block.last = max(block.last, last)
            block.buffers.append(buffer)
        else:
            of[buffer] = _Block(sizes[buffer], position, last, [buffer])
    return list({id(block): block for block in of.values()}.values())


def _in_place(step: Step, last_reads: dict[int, int], position: int) -> bool:
    """Whether a step may write where it reads."""
    source = step.input
    return (
        step.function in _IN_PLACE
        and last_reads[source.buffer] == position
        and source.offset == 0
        and step.output.nbytes <= source.nbytes
        and (step.other is None or step.other.buffer != source.buffer)
    )


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT
