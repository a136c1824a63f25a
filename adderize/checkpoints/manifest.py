"""What a saved model's folder says beside its tensors, and whether a file says it soundly.

A convolution's and an adder's state dicts have the same names and load into each other without a
word, and so do those of convolutions with other strides: tensors alone do not say what they belong
to.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from adderize import __version__
from adderize.errors import AdderizeError
from adderize.surgery.entries import entry_problem

WEIGHTS, MANIFEST, CARD = "model.safetensors", "adderize.json", "README.md"
_FORMAT = 1
_OPTIONAL = ("values", "versions", "settings", "deviations")
_LIBRARIES = ("torch", "torchvision", "timm", "lightning")


@dataclass(frozen=True)
class Manifest:
    """The contents of ``adderize.json``.

    Attributes:
        layers: the entries of converted layers, by name.
        shared: names of tensors that are another one, and that one's name.
        quantized: what :mod:`adderize.quantize` records of a quantized network.
        shifts: the report of a network without multiplications, see :mod:`adderize.integer`.
        program: an integer network, all but its tensors.
        values: entries of the state dict that are not tensors, as JSON.
        versions: of modules' state dicts, where it is not torch's 1.
        settings: what the layers compute with beside tensors: strides, paddings, eps.
        deviations: the standard deviation of each converted layer's filters, for readers: trained
            adders have 5 to 10, those that a transfer matched about their inputs'.
        weights: the SHA-256 of the file with the tensors.

    Folders of earlier versions lack those after `shared`: None.
    """

    layers: dict[str, dict[str, Any]]
    shared: dict[str, str]
    quantized: Any = None
    shifts: Any = None
    program: Any = None
    values: dict[str, Any] | None = None
    versions: dict[str, int] | None = None
    settings: dict[str, dict[str, Any]] | None = None
    deviations: dict[str, float | None] | None = None
    weights: str | None = None

    def to_json(self) -> str:
        content = {"format": _FORMAT, "adderize": __version__, "libraries": _installed()}
        return _lines(
            content | {key: value for key, value in vars(self).items() if value is not None}
        )

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """
        Raises:
            AdderizeError: another format, or damaged contents.
        """
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise AdderizeError(f"damaged: {error}") from error
        found = content.get("format") if isinstance(content, dict) else None
        if found != _FORMAT:
            raise AdderizeError(f"of format {found!r}; this version of adderize reads {_FORMAT}")
        if (problem := _problem(content)) is not None:
            raise AdderizeError(f"damaged: {problem}")
        return cls(
            **{key: content[key] for key in (field.name for field in fields(cls)) if key in content}
        )


def _problem(content: dict[str, Any]) -> str | None:
    for key in ("layers", "shared", *_OPTIONAL):
        value = content.get(key, {} if key in _OPTIONAL else None)
        if not isinstance(value, dict):
            return f"{key} is {value!r}; expected names and what they stand for"
    for name, settings in content.get("settings", {}).items():
        if not isinstance(settings, dict):
            return f"the settings of {name} are {settings!r}; expected names and values"
    problems = (entry_problem(name, entry) for name, entry in content["layers"].items())
    return next((problem for problem in problems if problem is not None), None)


def _installed() -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _lines(content: Mapping[str, Any]) -> str:
    """JSON with a line for each layer."""
    blocks = []
    for key, value in content.items():
        text = json.dumps(value)
        if isinstance(value, dict) and value:
            items = (f"    {json.dumps(name)}: {json.dumps(item)}" for name, item in value.items())
            text = "{\n" + ",\n".join(items) + "\n  }"
        blocks.append(f"  {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(blocks) + "\n}\n"
