"""Small networks of thirty families, converted and trained a little on real photographs.

    python -m tests.zoo.families PHOTOGRAPHS [--only 'timm:*']

PHOTOGRAPHS is an image folder with one sub-folder a class. For each network: a forward and a
backward, the smallest gradient norm over all adder filters, and the loss over 20 steps of SGD with
the adaptive learning rate.
"""

from __future__ import annotations

import argparse
import fnmatch
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from adderize import AdderConv2d, AdderLinear, adderize, plan, scale_adder_gradients_
from adderize.architectures import build

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
    "deeplabv3_resnet50": 64,
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
STEPS = 20


@dataclass(frozen=True)
class Outcome:
    """What one network did.

    Attributes:
        layers: number of adders.
        smallest: smallest L2 norm of an adder filter's gradient in the first step; 0 where one got
            none, NaN where one is not finite.
        first, last: mean loss over the first three and the last three steps.
    """

    layers: int
    smallest: float
    first: float
    last: float

    def problem(self) -> str | None:
        if not self.layers:
            return "no adders"
        if not self.smallest > 0:
            return f"a filter's gradient norm is {self.smallest}"
        return None if self.last < self.first else f"loss {self.first:.3f} -> {self.last:.3f}"


def photographs(folder: Path, side: int, count: int = 4) -> tuple[Tensor, Tensor]:
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
    model = adderize(build(name, num_classes=len(labels))).train()
    filters = [m.weight for m in model.modules() if isinstance(m, (AdderConv2d, AdderLinear))]
    optimizer = _optimizer(model)
    losses, smallest = [], 0.0
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = _loss(model(images), labels)
        loss.backward()
        if step == 0:
            smallest = _smallest_norm(filters)
        nn.utils.clip_grad_norm_(optimizer.param_groups[-1]["params"], 1.0)
        scale_adder_gradients_(model)
        optimizer.step()
        losses.append(loss.item())
    return Outcome(len(filters), smallest, sum(losses[:3]) / 3, sum(losses[-3:]) / 3)


def _optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """SGD, the classifier's rate by its fan-in and a small one for the rest: on four images the
    surrogate gradients of fifty layers are rough, and the classifier has to follow its features."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
    rows = plan(model).rows
    ends = [row.name for row in rows if row.reason in ("linear layer", "head: produces the output")]
    groups, head = [], set()
    for layer in map(model.get_submodule, ends):
        head |= set(layer.parameters())
        groups.append({"params": list(layer.parameters()), "lr": 8 / layer.weight[0].numel()})
    groups.append({"params": [p for p in model.parameters() if p not in head]})
    return torch.optim.SGD(groups, lr=1e-5, momentum=0.9)


def _smallest_norm(filters: list[nn.Parameter]) -> float:
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
    print("network | adders | smallest gradient norm | loss, first 3 steps | last 3 | problem")
    print("---|---|---|---|---|---")
    for name in NETWORKS:
        if fnmatch.fnmatchcase(name, arguments.only):
            found = examine(name, arguments.photographs)
            problem = found.problem()
            failed += problem is not None
            print(
                f"{name} | {found.layers} | {found.smallest:.2e} | {found.first:.3f} | "
                f"{found.last:.3f} | {problem or ''}",
                flush=True,
            )
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
