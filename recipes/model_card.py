"""The README beside an exported network: what it is, what it scores, what it costs."""

from __future__ import annotations

import argparse
import re
from typing import Any

from adderize.checkpoints.model_card import ModelCard
from adderize.checkpoints.named import hub_name
from adderize.counting.budget import OpBudget
from adderize.tables import shape_text
from recipes.batches import ImageData
from recipes.image_classifier import ImageClassifier

_KINDS = {"adder": "adder network", "cnn": "convolutional network", "bnn": "binary network"}


def model_card(
    arguments: argparse.Namespace,
    metrics: dict[str, Any],
    module: ImageClassifier,
    budget: OpBudget,
    data: ImageData,
) -> ModelCard:
    """What it says, for :func:`adderize.save_model`."""
    kind = _KINDS[arguments.layers.partition("-")[0]]
    accuracies = {"accuracy": round(metrics["test.top1"] / 100, 6)}
    if "test.top5" in metrics:
        accuracies["top-5-accuracy"] = round(metrics["test.top5"] / 100, 6)
    pretrained = getattr(arguments, "pretrained", None)
    return ModelCard(
        title=f"{budget.model} as {kind}",
        base_model=hub_name(module.hparams["arch"], pretrained) if pretrained else "",
        dataset=(re.sub(r"[^a-z0-9]+", "-", data.name.lower()).strip("-"), data.name),
        metrics=accuracies,
        text=_text(arguments.command, metrics, module, budget, data),
    )


def _text(
    command: str,
    metrics: dict[str, Any],
    module: ImageClassifier,
    budget: OpBudget,
    data: ImageData,
) -> str:
    options = {"num_classes": data.num_classes, **(module.hparams["arch_options"] or {})}
    build = ", ".join(
        [f'"{module.hparams["arch"]}"', *(f"{key}={value!r}" for key, value in options.items())]
    )
    top5 = f"| test top-5, % | {metrics['test.top5']:.2f} |\n" if "test.top5" in metrics else ""
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (data.mean, data.std))
    size = shape_text(data.input_size)
    return f"""Trained on {data.train_size:,} and tested on {data.test_size:,} images of
{data.name}.
Inputs are {size}, pixels in [0, 1] normalised with mean {mean} and deviation {std}.

| | |
|---|---|
| test top-1, % | {metrics["test.top1"]:.2f} |
{top5}| training top-1, last epoch, % | {metrics["train.top1"]:.2f} |
| epochs | {metrics["epochs"]:g} |
| seconds an epoch | {metrics["seconds_per_epoch"]:.1f} |
| seed | {metrics["seed"]} |

The last weights, batch norms recalibrated on training images. `best.ckpt` of the run is chosen by
the test images, so its accuracy is not an estimate for others.

```python
from adderize import load_model
from adderize.models.by_name import build

model = load_model(build({build}), "model").eval()
```

## Operations

{budget.select(depth=1).to_markdown()}

## Training

```console
$ {command}
```
"""
