"""Whether an installed package works away from its source: ``python -I tests/smoke.py``."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

import adderize
from adderize.integer import to_integer
from adderize.models import lenet5_bn
from adderize.ops import choice
from adderize.quantize import quantize

SOURCE = Path(__file__).resolve().parents[1]


def distances(x: Tensor, weight: Tensor) -> Tensor:
    """The formula of an adder layer, in float64."""
    patches = nn.functional.unfold(x.double(), weight.shape[-1]).unsqueeze(1)
    sums = -(patches - weight.double().flatten(1)[None, :, :, None]).abs().sum(2)
    side = x.shape[-1] - weight.shape[-1] + 1
    return sums.unflatten(-1, (side, side))


def main() -> None:
    folder = Path(adderize.__file__).resolve().parent
    assert not folder.is_relative_to(SOURCE / "adderize"), f"{folder} is the source"
    assert choice.choose("cpu").name == "native", choice.choose("cpu").reason
    layer = adderize.AdderConv2d(3, 4, 3)
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(layer(x).double(), distances(x, layer.weight), rtol=1e-5, atol=1e-4)

    model = adderize.adderize(lenet5_bn(), stem=True, head=True, linear=True).eval()
    pixels = torch.randint(0, 256, (8, 1, 32, 32), dtype=torch.uint8)
    images = pixels / 255 / 0.3
    integers = to_integer(
        quantize(adderize.recalibrate(model, [images]), [images]),
        mean=(0.0,), std=(0.3,), input_size=(1, 32, 32),
    )  # fmt: skip
    assert torch.equal(integers(pixels), integers.reference(pixels))
    with tempfile.TemporaryDirectory() as saved:
        adderize.save_model(model, saved)
        again = adderize.load_model(lenet5_bn(), saved).eval()
        assert torch.equal(again(images), model(images))
    command = Path(sys.executable).with_name("adderize")
    for arguments in (["doctor"], ["count", "resnet18"]):
        subprocess.run([command, *arguments], check=True, stdout=subprocess.DEVNULL)
    print(f"adderize {adderize.__version__} in {folder} works")


if __name__ == "__main__":
    main()
