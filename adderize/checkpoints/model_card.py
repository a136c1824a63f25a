"""The README of a saved model, with the metadata that the Hugging Face Hub reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml
from torch import nn

from adderize import __version__
from adderize.errors import AdderizeError
from adderize.integer import IntegerNetwork
from adderize.integer.multiplication_free import shifts_of_network
from adderize.layers import BinaryConv2d
from adderize.quantize.byte_layers import QuantAdder
from adderize.quantize.record import quantization_of
from adderize.surgery.engine import ADDER

# By it an older card of this package is told from one that somebody wrote.
MARK = "<!-- written by adderize.save_model; remove this line to keep your changes -->"
_ADDERS = (*ADDER.classes, QuantAdder)


@dataclass(frozen=True)
class ModelCard:
    """What a card says beyond what the model itself shows.

    Attributes:
        title: the headline; the model's class name by default.
        base_model: the Hub's name of the network that the weights come from, ``owner/name``.
        dataset: (the Hub's name, or one like ``cifar10``; the name for readers) of what the
            metrics were measured on.
        metrics: values by the Hub's names, such as ``{"accuracy": 0.918}``.
        task: as the Hub names it.
        tags: more of them.
        text: Markdown, in the place of the usual lines on how to load the model.
    """

    title: str = ""
    base_model: str = ""
    dataset: tuple[str, str] | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    task: str = "image-classification"
    tags: Sequence[str] = ()
    text: str = ""

    def __post_init__(self) -> None:
        if self.metrics and self.dataset is None:
            raise AdderizeError("the card has metrics but no dataset that they were measured on")

    def to_markdown(self, model: nn.Module) -> str:
        title = self.title or type(model).__name__
        metadata = yaml.safe_dump(self.metadata(model, title), sort_keys=False, allow_unicode=True)
        text = self.text or f"{_described(model)}\n\n{_LOADING[isinstance(model, IntegerNetwork)]}"
        return f"---\n{metadata}---\n\n{MARK}\n\n# {title}\n\n{text.strip()}\n"

    def metadata(self, model: nn.Module, title: str) -> dict[str, Any]:
        """The block at the top, for ``huggingface_hub.ModelCardData``."""
        found: dict[str, Any] = {"library_name": "adderize", "pipeline_tag": self.task}
        found["tags"] = list(dict.fromkeys(["adderize", *_kinds(model), *self.tags]))
        if self.base_model:
            found["base_model"] = self.base_model
            relation = "quantized" if "8-bit" in found["tags"] else "finetune"
            found["base_model_relation"] = relation
        if self.dataset is not None and self.metrics:
            found["datasets"] = [self.dataset[0]]
            found["metrics"] = list(self.metrics)
            result = {
                "task": {"type": self.task},
                "dataset": {"type": self.dataset[0], "name": self.dataset[1]},
                "metrics": [{"type": name, "value": value} for name, value in self.metrics.items()],
            }
            found["model-index"] = [{"name": title, "results": [result]}]
        return found


def _kinds(model: nn.Module) -> list[str]:
    """Tags that the model itself shows."""
    if isinstance(model, IntegerNetwork):
        return ["adder-network", "multiplication-free", "integer", "8-bit"]
    layers = list(model.modules())
    kinds = {
        "adder-network": any(isinstance(layer, _ADDERS) for layer in layers),
        "binary-network": any(isinstance(layer, BinaryConv2d) for layer in layers),
        "8-bit": quantization_of(model) is not None,
        "multiplication-free": shifts_of_network(model) is not None,
    }
    return [kind for kind, holds in kinds.items() if holds]


def _described(model: nn.Module) -> str:
    if isinstance(model, IntegerNetwork):
        return f"An integer-only adder network, saved by adderize {__version__}."
    adders = sum(isinstance(layer, _ADDERS) for layer in model.modules())
    parts = [f"{adders} of its layers are adders: they compute -Σ|x - w| in place of Σxw"]
    if quantization_of(model) is not None:
        parts.append("these are in 8-bit integers")
    if shifts_of_network(model) is not None:
        parts.append("every other product is made of shifts and additions")
    text = "; ".join(parts) if adders else "None of its layers is an adder"
    return f"{text}. Saved by adderize {__version__}."


_LOADING = {
    False: """```python
from adderize import load_model

# model: the network as it was built before its conversion
model = load_model(model, "hf://OWNER/NAME").eval()  # or the path of this folder
```""",
    True: """```python
from adderize import load_model

network = load_model("hf://OWNER/NAME")  # or the path of this folder
```""",
}
