"""A network in C: the calls, their constants and where everything lies."""

from __future__ import annotations

from dataclasses import dataclass

from adderize.export.c.arena import Arena, plan_arena
from adderize.export.c.fusing import fused
from adderize.export.c.steps import Step
from adderize.export.c.text import arrays, identifiers
from adderize.export.c.translation import Translation
from adderize.integer.program import Program


@dataclass(frozen=True)
class Network:
    """What is written as C.

    Attributes:
        program: what it computes.
        steps: the calls in order.
        arena: where buffers lie; the image among them, where that takes no more memory.
        image, logits: the numbers of the buffers that the caller holds.
        names: of the steps, in C.
    """

    program: Program
    steps: tuple[Step, ...]
    arena: Arena
    image: int
    logits: int
    names: tuple[str, ...]

    @classmethod
    def of(cls, program: Program) -> Network:
        """
        Raises:
            AdderizeError: an instruction has no form in C; it is named.
        """
        translation = Translation(program)
        image, logits = translation.image, translation.logits
        steps = tuple(fused(translation.steps, logits))
        alone = plan_arena(steps, translation.sizes, (image, logits))
        arena = plan_arena(steps, translation.sizes, (image, logits), image)
        arena = arena if arena.size <= alone.size else alone
        names = identifiers(
            (step.layer, ("_layer", "_windows", *arrays(step.all_fields(), ""))) for step in steps
        )
        return cls(program, steps, arena, image, logits, names)
