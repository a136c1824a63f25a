"""VGG-small, the AdderNet paper's plain network for CIFAR."""

from __future__ import annotations

from torch import Tensor, nn


class VGGSmall(nn.Module):
    """VGG-small: six 3x3 convolutions of 128, 128, 256, 256, 512 and 512 filters, one classifier.

    Each convolution has a batch norm and a ReLU, every second one 2x2 max pooling after them; the
    classifier is linear: 607,600,640 multiply-accumulate pairs for one image and ten classes. (The
    layout is the one common with binary networks. The AdderNet paper prints none; it prints 0.65G.)

    Shape:
        (N, 3, 32, 32) -> (N, num_classes), float32.
    """

    input_size = (3, 32, 32)

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in (128, 256, 512):
            layers += [*_convolution(channels, width), *_convolution(width, width)]
            layers.append(nn.MaxPool2d(2))
            channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(512 * 4 * 4, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(x).flatten(1))
        return logits


def _convolution(in_channels: int, channels: int) -> list[nn.Module]:
    return [
        nn.Conv2d(in_channels, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    ]


def vgg_small(num_classes: int = 10) -> VGGSmall:
    """VGG-small; see :class:`VGGSmall`."""
    return VGGSmall(num_classes)
