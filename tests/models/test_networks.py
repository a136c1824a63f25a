"""The recipes' networks: shapes, sizes, and the published checkpoints that they load."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from adderize import (
    AdderConv2d,
    AdderizeError,
    AdderLinear,
    BinaryConv2d,
    adderize,
    binarize,
    load_authors_checkpoint,
    models,
)
from adderize.data import ImageSet, read_parquet

IMAGES = 2000
CIFAR = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # what the CNN was trained with


def pairs(model: nn.Module, size: tuple[int, ...]) -> int:
    """Multiply-accumulate pairs of convolutions and linear layers, by the shapes that pass."""
    total = 0

    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        total += output.numel() * module.weight[0].numel()

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(add)
    model.eval()(torch.zeros(1, *size))
    return total


@pytest.mark.parametrize(
    ("model", "size", "expected"),
    [
        (models.lenet5_bn(), (1, 32, 32), 416_520),
        # 25 taps a filter at 28^2, 14^2 and 7^2 positions, then 1152 x 2 and 2 x 10.
        (models.lenet_plus_plus(), (1, 28, 28), 80_911_124),
        # 442,368 + 2,359,296 (depth - 3) + 262,144 + 640: the first convolution, all others (one
        # with a stride has half the pairs), the shortcuts, the classifier.
        (models.resnet20(), (3, 32, 32), 40_813_184),
        (models.resnet32(), (3, 32, 32), 69_124_736),
        (models.resnet44(), (3, 32, 32), 97_436_288),
        (models.resnet56(), (3, 32, 32), 125_747_840),
        # 3,538,944 + 3 * 150,994,944 + 2 * 75,497,472 + 81,920
        (models.vgg_small(), (3, 32, 32), 607_600_640),
    ],
    ids=["lenet5_bn", "lenet_pp", "resnet20", "resnet32", "resnet44", "resnet56", "vgg_small"],
)
def test_operation_counts(model: nn.Module, size: tuple[int, ...], expected: int) -> None:
    assert pairs(model, size) == expected


@pytest.mark.parametrize("depth", [20, 32, 44, 56])
@pytest.mark.parametrize("shortcut", ["A", "B"])
@pytest.mark.parametrize("logits_norm", [True, False])
def test_cifar_resnets(depth: int, shortcut: str, logits_norm: bool) -> None:
    build = getattr(models, f"resnet{depth}")
    model = build(100, shortcut=shortcut, logits_norm=logits_norm)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == depth - 1 + 2 * (shortcut == "B") + logits_norm
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 100)


@pytest.mark.parametrize(("name", "size"), [("lenet5_bn", 32), ("lenet_plus_plus", 28)])
def test_lenets_take_channels_and_classes(name: str, size: int) -> None:
    model = getattr(models, name)(num_classes=7, in_channels=3)
    assert model.input_size == (3, size, size)
    assert model(torch.randn(2, 3, size, size)).shape == (2, 7)


def test_lenet_plus_plus_classifies_two_features() -> None:
    model = adderize(models.lenet_plus_plus(), stem=True, head=True, linear=True)
    adders = [m for m in model.modules() if isinstance(m, AdderConv2d | AdderLinear)]
    assert len(adders) == 8
    features: list[Tensor] = []
    model.fc2.register_forward_pre_hook(lambda module, inputs: features.extend(inputs))
    logits = model(torch.randn(8, 1, 28, 28))
    assert features[0].shape == (8, 2)
    distances = (features[0][:, None] - model.fc2.weight).abs().sum(2) - model.fc2.bias
    torch.testing.assert_close(logits, model.fc2.norm(-distances))


@pytest.mark.parametrize("binary", [False, True])
def test_vgg_small_converts_but_for_both_ends(binary: bool) -> None:
    model = (binarize if binary else adderize)(models.vgg_small(num_classes=100))
    kind = BinaryConv2d if binary else AdderConv2d
    widths = [layer.out_channels for layer in model.modules() if isinstance(layer, kind)]
    assert widths == [128, 256, 256, 512, 512]
    assert type(model.features[0]) is nn.Conv2d and type(model.classifier) is nn.Linear
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 100)


@pytest.mark.parametrize(
    ("depth", "options", "message"),
    [
        (21, {}, "depth is 21"),
        (2, {}, "depth is 2"),
        (20, {"shortcut": "C"}, "shortcut is 'C'"),
    ],
)
def test_wrong_arguments(depth: int, options: dict[str, str], message: str) -> None:
    with pytest.raises(AdderizeError, match=message):
        models.CifarResNet(depth, **options)


def test_pad_shortcut_keeps_the_centre_channels() -> None:
    x = torch.randn(2, 16, 5, 6)
    y = models.cifar_resnet.PadShortcut()(x)
    assert y.shape == (2, 32, 3, 3)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert y[:, :8].abs().sum() + y[:, 24:].abs().sum() == 0


@cache
def _test_images(folder: Path) -> ImageSet:
    return read_parquet(folder / "cifar10" / "test.parquet", IMAGES)


@torch.inference_mode()
def top1(model: nn.Module, data: ImageSet, pixels: tuple[tuple[float, ...], ...]) -> float:
    model.eval()
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in pixels)
    images = (data.images / 255 - mean) / std
    predicted = torch.cat([model(batch).argmax(1) for batch in images.split(250)])
    return 100 * (predicted == data.labels).double().mean().item()


@pytest.mark.shared
def test_the_authors_checkpoint(data_folder: Path, models_folder: Path) -> None:
    model = adderize(models.resnet20(shortcut="B", logits_norm=True))
    load_authors_checkpoint(model, models_folder / "resnet20-addernet-cifar10.pth")
    adders = [name for name, m in model.named_modules() if isinstance(m, AdderConv2d)]
    assert len(adders) == 20
    assert not {"conv1", "fc"} & set(adders)
    assert top1(model, _test_images(data_folder), CIFAR) == pytest.approx(82.15)


@pytest.mark.shared
def test_a_convolutional_checkpoint(data_folder: Path, models_folder: Path) -> None:
    model = models.resnet20(shortcut="A", logits_norm=False)
    load_authors_checkpoint(model, models_folder / "resnet20-cnn-cifar10.th")
    assert top1(model, _test_images(data_folder), IMAGENET) == pytest.approx(82.0, abs=0.1)
