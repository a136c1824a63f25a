"""Activations that are needed at once lie apart."""

from __future__ import annotations

import pytest

from adderize.export.c.network import Network
from adderize.export.c.translation import Translation
from tests.export.c.random_networks import random_network

IN_PLACE = ("rescale", "clamp_bytes", "clamp_words")


@pytest.mark.parametrize("seed", range(6))
def test_no_step_writes_over_what_is_read_later(seed: int) -> None:
    program = random_network(seed)[0].program
    network, sizes = Network.of(program), Translation(program).sizes
    offsets, steps = network.arena.offsets, network.steps
    spans = {buffer: (start, start + sizes[buffer]) for buffer, start in offsets.items()}
    written: set[int] = set()
    for position, step in enumerate(steps):
        needed = {
            view.buffer
            for place, later in enumerate(steps[position:])
            for view in later.reads
            if place or view.buffer != step.input.buffer or step.function not in IN_PLACE
        }
        patch = network.arena.patches.get(position, 0)
        targets = [(patch, patch + step.patch_bytes)] if step.patch else []
        targets += [spans[step.output.buffer]] if step.output.buffer in spans else []
        for start, end in targets:
            assert start % 4 == 0 and end <= network.arena.size
            for buffer in (written & needed) - {step.output.buffer}:
                assert end <= spans[buffer][0] or spans[buffer][1] <= start
        written |= {step.output.buffer} & spans.keys()
