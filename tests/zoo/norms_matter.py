"""What a missing norm costs: vgg11, which has none, on 10,000 MNIST digits at 32 pixels.

    python -m tests.zoo.norms_matter --data DIR [--layers insert ignore cnn]

The same training of a convolutional vgg11, and of its adder forms with batch norms inserted and
without any; DIR is a folder in torchvision's layout. As usual for images of 32 pixels, one fully
connected layer reads the 512 features.
"""

from __future__ import annotations

import argparse
import math

import torch
import torchvision
from torch import Tensor, nn

from adderize import adderize, recalibrate, scale_adder_gradients_
from adderize.data import ImageSet, load_mnist

VARIANTS = ("insert", "ignore", "cnn")
IMAGES, TEST_IMAGES, BATCH, LEARNING_RATE, WARM_UP = 10_000, 2_000, 64, 0.05, 20


def network(variant: str) -> nn.Module:
    model = torchvision.models.vgg11()
    model.avgpool = nn.Identity()
    model.classifier = nn.Linear(512, 10)
    return model if variant == "cnn" else adderize(model, norm=variant)


def train(model: nn.Module, images: Tensor, labels: Tensor, epochs: int, adders: bool) -> None:
    """SGD with momentum, a short warm-up and a cosine, and the adaptive rate for adders."""
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE, momentum=0.9, weight_decay=5e-4)
    steps = epochs * (len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: (
            min(1, (step + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * min(step / steps, 1)))
        ),
    )
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(BATCH)[: steps // epochs]:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            if adders:
                scale_adder_gradients_(model)
            optimizer.step()
            schedule.step()


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    model.eval()
    hits = [
        model(i).argmax(1) == j for i, j in zip(images.split(250), labels.split(250), strict=True)
    ]
    return torch.cat(hits).float().mean().item()


def examine(variant: str, source: str | None, epochs: int = 2) -> float:
    """Accuracy on 2,000 test digits after some epochs of 10,000."""
    torch.manual_seed(0)
    data = load_mnist(source)
    images, labels = _prepared(data.train, IMAGES)
    model = network(variant).to(memory_format=torch.channels_last)
    train(model, images, labels, epochs, adders=variant != "cnn")
    if variant == "insert":
        recalibrate(model, images[:2000].split(BATCH))
    return accuracy(model, *_prepared(data.test, TEST_IMAGES))


def _prepared(digits: ImageSet, count: int) -> tuple[Tensor, Tensor]:
    """Gray digits as three normalised channels."""
    images = (digits.images[:count].float() / 255 - 0.1307) / 0.3081
    return images.expand(-1, 3, -1, -1), digits.labels[:count]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", metavar="DIR", help="default: $ADDERIZE_DATA")
    parser.add_argument("--layers", nargs="+", choices=VARIANTS, default=VARIANTS)
    parser.add_argument("--epochs", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for variant in arguments.layers:
        print(f"{variant}: {examine(variant, arguments.data, arguments.epochs):.2%}", flush=True)


if __name__ == "__main__":
    main()
