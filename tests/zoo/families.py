"""Small networks of thirty families, converted and trained a little on real photographs.

    python -m tests.zoo.families PHOTOGRAPHS [--only 'timm:*']

PHOTOGRAPHS is an image folder with one sub-folder a class. For each network: a forward and a
backward on one photograph of each of eight classes, the smallest gradient norm over all adder
filters, and the loss before and after 20 steps of SGD with the adaptive learning rate on the same
photographs, by one protocol for all: momentum 0.9, a half cosine, no dropout or stochastic depth.
"""

from __future__ import annotations

import argparse
import fnmatch
import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from adderize import adderize, plan, scale_adder_gradients_
from adderize.models.by_name import build
from adderize.training.adaptive_rate import adder_filters

# With the side of the image in pixels: what the network needs at least.
NETWORKS = {
    "resnet18": 64,
    "resnext50_32x4d": 64,
    "wide_resnet50_2": 64,
    "densenet121": 64,
    "mobilenet_v2": 64,
    "mobilenet_v3_small": 64,
    "efficientnet_b0": 64,
    "regnet_y_400mf": 64,
    "shufflenet_v2_x0_5": 64,
    "squeezenet1_1": 64,
    "vgg11": 64,
    "vgg11_bn": 64,
    "alexnet": 96,
    "googlenet": 96,
    "inception_v3": 128,
    "mnasnet0_5": 64,
    "convnext_tiny": 64,
    "fcn_resnet50": 64,
    "deeplabv3_resnet50": 96,
    "timm:dla46_c": 64,
    "timm:hrnet_w18_small": 64,
    "timm:res2net50_14w_8s": 64,
    "timm:skresnet18": 64,
    "timm:ghostnet_050": 64,
    "timm:coat_lite_tiny": 224,
    "timm:repvgg_a0": 64,
    "timm:dpn48b": 64,
    "timm:legacy_xception": 96,
    "timm:tf_efficientnet_b0": 64,
    "timm:resnest14d": 64,
    "timm:pvt_v2_b0": 64,
    "timm:mixnet_s": 64,
    "timm:levit_128s": 224,
    "timm:vit_small_resnet26d_224": 224,
}
# Its auxiliary classifier needs 299 pixels.
OPTIONS = {"inception_v3": {"aux_logits": False}}
STEPS = 20
LEARNING_RATE = 0.01
# With eta 0.2 the filters' first step has a root mean square of 0.6, where they have 8: twenty
# steps have to do what a training does in thousands.
FILTER_LEARNING_RATE = 3.0


@dataclass(frozen=True)
class Outcome:
    """What one network did.

    Attributes:
        layers: number of adders.
        found, inserted: how many of them have a norm of the model after them, or one of their own.
        smallest: smallest L2 norm of an adder filter's gradient in the first step; 0 where one got
            none, NaN where one is not finite.
        first, last: loss on the photographs before the first and after the last step.
    """

    layers: int
    found: int
    inserted: int
    smallest: float
    first: float
    last: float

    def problem(self) -> str | None:
        if not self.layers:
            return "no adders"
        # Below that the adaptive rate leaves a gradient alone.
        if not self.smallest > 1e-12:
            return f"a filter's gradient norm is {self.smallest}"
        return None if self.last < 0.8 * self.first else "the loss did not fall by a fifth"


def photographs(folder: Path, side: int, count: int = 8) -> tuple[Tensor, Tensor]:
    """Images (count, 3, side, side) of different classes, normalised, and labels 0, 1, ..."""
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    prepare = v2.Compose([
        v2.ToImage(), v2.Resize(side), v2.CenterCrop(side), v2.ToDtype(torch.float32, scale=True),
        v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ])  # fmt: skip
    dataset = ImageFolder(str(folder), prepare)
    images = torch.stack([dataset[index][0] for index in range(count)])
    return images, torch.arange(count)


def examine(name: str, folder: Path) -> Outcome:
    torch.manual_seed(0)
    images, labels = photographs(folder, NETWORKS[name])
    model = build(name, num_classes=len(labels), **OPTIONS.get(name, {})).train()
    planned = plan(model)
    layers, inserted = len(planned.converted), len(planned.inserted)
    _make_deterministic(adderize(model))
    filters = adder_filters(model)
    others = [p for p in model.parameters() if p not in set(filters.values())]
    optimizer = torch.optim.SGD(
        [
            {"params": others, "lr": LEARNING_RATE},
            {"params": list(filters.values()), "lr": FILTER_LEARNING_RATE},
        ],
        momentum=0.9,
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    losses, smallest = [], 0.0
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = _loss(model(images), labels)
        loss.backward()
        if step == 0:
            smallest = _smallest_norm(filters.values())
        scale_adder_gradients_(model)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    with torch.no_grad():
        losses.append(_loss(model(images), labels).item())
    return Outcome(layers, layers - inserted, inserted, smallest, losses[0], losses[-1])


def _make_deterministic(model: nn.Module) -> None:
    """No dropout and no stochastic depth: the loss is a function of the parameters alone."""
    for module in model.modules():
        if isinstance(module, (nn.modules.dropout._DropoutNd, StochasticDepth)):
            module.p = 0.0
        elif isinstance(module, DropPath):
            module.drop_prob = 0.0


def _smallest_norm(filters: Iterable[nn.Parameter]) -> float:
    norms = torch.stack([w.new_zeros(()) if w.grad is None else w.grad.norm() for w in filters])
    return norms.min().item() if bool(norms.isfinite().all()) else math.nan


def _loss(output: object, labels: Tensor) -> Tensor:
    """Cross entropy of every output: auxiliary classifiers, and each pixel of a segmentation."""
    if isinstance(output, dict):
        logits = list(output.values())
    else:
        logits = [output] if isinstance(output, Tensor) else [o for o in output if o is not None]
    return sum(
        nn.functional.cross_entropy(
            one, labels if one.dim() == 2 else labels[:, None, None].expand(-1, *one.shape[2:])
        )
        for one in logits
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--only", default="*", help="shell-style pattern of network names")
    arguments = parser.parse_args()
    # Two threads that wait for each other are slow beside anything else on the machine.
    torch.set_num_threads(1)
    failed = 0
    print(
        "network | adders | norms found | inserted | smallest gradient norm | loss before | after"
    )
    print("---|---|---|---|---|---|---")
    for name in NETWORKS:
        if fnmatch.fnmatchcase(name, arguments.only):
            found = examine(name, arguments.photographs)
            problem = found.problem()
            failed += problem is not None
            print(
                f"{name} | {found.layers} | {found.found} | {found.inserted} | "
                f"{found.smallest:.1e} | {found.first:.2f} | {found.last:.2f}"
                + (f" FAILED: {problem}" if problem else ""),
                flush=True,
            )
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
