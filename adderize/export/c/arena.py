"""One piece of memory for all activations: buffers that are not needed at once share bytes."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from adderize.export.c.steps import Step

ALIGNMENT = 4
_SHUFFLES = 50
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


def plan_arena(
    steps: Sequence[Step], sizes: Sequence[int], callers: Collection[int], image: int | None = None
) -> Arena:
    """Offsets by lifetimes: one after the other, each at the lowest place that is free.

    The order decides how well they fit: the largest first, the first or the last needed first, and
    some that chance gives (the same for the same network) are tried.

    Args:
        sizes: of the buffers, in bytes.
        callers: the buffers that lie elsewhere.
        image: the buffer of the image; it gets a place, too, until it was read.
    """
    blocks = _blocks(steps, sizes, callers, image)
    patches = [
        _Block(step.patch_bytes, position, position, [])
        for position, step in enumerate(steps)
        if step.patch
    ]
    every = [*blocks, *patches]
    least = max(
        (
            sum(_aligned(block.size) for block in every if block.first <= position <= block.last)
            for position in range(len(steps))
        ),
        default=0,
    )
    best, size = dict[int, int](), sum(_aligned(block.size) for block in every) + 1
    for order in _orders(every):
        offsets = _placed(order)
        end = max((_aligned(offsets[id(block)] + block.size) for block in every), default=0)
        if end < size:
            best, size = offsets, end
        if size <= least:
            break
    return Arena(
        size,
        {buffer: best[id(block)] for block in blocks for buffer in block.buffers},
        {block.first: best[id(block)] for block in patches},
    )


def _orders(blocks: Sequence[_Block]) -> Iterator[list[_Block]]:
    yield sorted(blocks, key=lambda block: (-block.size, block.first, block.last))
    yield sorted(blocks, key=lambda block: (block.first, -block.size))
    yield sorted(blocks, key=lambda block: (-block.last, -block.size))
    chance = random.Random(0)
    for _ in range(_SHUFFLES):
        yield chance.sample(blocks, len(blocks))


def _placed(order: Sequence[_Block]) -> dict[int, int]:
    """The offset of each block, by its identity."""
    placed: list[tuple[int, _Block]] = []
    for block in order:
        offset = 0
        for start, other in sorted(placed, key=lambda pair: pair[0]):
            apart = block.last < other.first or other.last < block.first
            if not apart and offset + block.size > start:
                offset = max(offset, _aligned(start + other.size))
        placed.append((offset, block))
    return {id(block): offset for offset, block in placed}


def _blocks(
    steps: Sequence[Step], sizes: Sequence[int], callers: Collection[int], image: int | None
) -> list[_Block]:
    last_reads = {
        view.buffer: position for position, step in enumerate(steps) for view in step.reads
    }
    of: dict[int, _Block] = {}
    if image is not None:
        of[image] = _Block(sizes[image], 0, last_reads.get(image, 0), [image])
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
