"""Activations that are needed at once lie apart."""

from __future__ import annotations

import pytest
import torch

from adderize import adderize, recalibrate
from adderize.export.c.network import Network
from adderize.export.c.translation import Translation
from adderize.integer import to_integer
from adderize.models import micro_cnn
from adderize.quantize import quantize
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


@pytest.mark.parametrize("brightest", [4.0, 3.9])
def test_a_chain_of_layers_needs_what_two_neighbours_and_a_window_do(brightest: float) -> None:
    """The largest first would not do: 12x12x5 and 4x4x48 in one place leave 6x6x20 none beside."""
    network = micro_cnn(widths=(5, 20, 20, 48, 4))
    model = adderize(network, stem=True, head=True, linear=True, init="normal")
    images = torch.rand(8, 1, 28, 28) * brightest
    images[:, 0, 0, :2] = torch.tensor([0.0, brightest])
    recalibrate(model, [images])
    quantized = quantize(model.eval(), [images], filter_bits=4)
    integers = to_integer(quantized, mean=(0.0,), std=(0.25,), input_size=(1, 28, 28))
    kinds = [instruction.kind for instruction in integers.program.instructions]
    assert ("rescale" in kinds) == (brightest != 4)
    assert Network.of(integers.program).arena.size == 720 + 768 + 180
