"""Programs of integer networks as JSON and named tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor

from adderize.checkpoints.tensors import storable
from adderize.errors import AdderizeError, listed
from adderize.integer import Instruction, Program, ShiftReport, Slot

_VERSION = 2
_OF_PIXELS = ("mean", "std")
_OF_LOGITS = ("logit_scale", "logit_zero")


def described(program: Program) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A program without its tensors as JSON, and these: ``LAYER.TENSOR`` for each instruction."""
    tensors = {
        f"{step.layer}.{name}": storable(f"{step.layer}.{name}", tensor)
        for step in program.instructions
        for name, tensor in step.tensors.items()
    }
    content = {
        "version": _VERSION,
        "slots": [asdict(slot) for slot in program.slots],
        "instructions": {
            step.layer: {
                "kind": step.kind,
                "inputs": step.inputs,
                "output": step.output,
                "settings": dict(step.settings),
                "tensors": list(step.tensors),
            }
            for step in program.instructions
        },
        "input": program.input,
        "output": program.output,
        **{key: getattr(program, key) for key in (*_OF_PIXELS, *_OF_LOGITS)},
        "report": program.report.to_dict(),
    }
    return content, tensors


def program_from(content: Any, tensors: Mapping[str, Tensor]) -> Program:
    """The program that :func:`described` describes, not yet checked for soundness.

    Raises:
        AdderizeError: another version, missing entries or tensors, or more tensors than it reads.
    """
    version = content.get("version") if isinstance(content, dict) else None
    if version != _VERSION:
        raise AdderizeError(
            f"the program is of version {version!r}; this version of adderize reads {_VERSION}"
        )
    try:
        slots = tuple(Slot(tuple(slot["shape"]), slot["dtype"]) for slot in content["slots"])
        instructions = tuple(
            _instruction(layer, step, tensors) for layer, step in content["instructions"].items()
        )
        numbers: dict[str, Any] = {key: _number(content[key]) for key in _OF_LOGITS}
        numbers |= {key: tuple(map(float, content[key])) for key in _OF_PIXELS}
        report = ShiftReport.from_dict(content["report"])
        ends = {"input": content["input"], "output": content["output"]}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise AdderizeError(f"the program is damaged: {error!r}") from error
    read = {f"{step.layer}.{name}" for step in instructions for name in step.tensors}
    if unread := sorted(tensors.keys() - read):
        raise AdderizeError(f"no instruction reads the tensors {listed(unread)}")
    return Program(slots, instructions, **ends, **numbers, report=report)


def _instruction(layer: str, step: Any, tensors: Mapping[str, Tensor]) -> Instruction:
    if not isinstance(step["kind"], str):
        raise TypeError(f"{layer} is of the kind {step['kind']!r}; expected a name")
    names = [f"{layer}.{name}" for name in step["tensors"]]
    if missing := [name for name in names if name not in tensors]:
        raise AdderizeError(f"the tensors {listed(missing)} are missing")
    settings = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in step["settings"].items()
    }
    own = {name: tensors[f"{layer}.{name}"] for name in step["tensors"]}
    return Instruction(step["kind"], layer, tuple(step["inputs"]), step["output"], settings, own)


def _number(value: Any) -> Any:
    return tuple(float(number) for number in value) if isinstance(value, list) else float(value)
