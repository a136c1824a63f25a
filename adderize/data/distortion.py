"""Small distortions of handwritten digits: every image of a batch gets one of its own.

Rotation, scale, shear, shift and an elastic deformation (Simard et al., Best Practices for
Convolutional Neural Networks Applied to Visual Document Analysis, ICDAR 2003).
"""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from adderize.data.augmentation import Augmentation

# The largest of each, drawn uniformly.
ROTATION = math.radians(12)
SCALE = 0.12
SHEAR = 0.15
SHIFT = 2.0  # pixels of 28
# Deviation of the elastic displacement at its knots, in pixels of 28.
ELASTIC = 0.7
KNOTS = 5


def draw_distortions(count: int, generator: torch.Generator, *, strength: float = 1.0) -> Tensor:
    """(count, 6 + 2 * 25) float32: an affine map by rows, then the displacements of 5x5 knots.

    All in the coordinates of ``grid_sample``, where an image reaches from -1 to 1.

    Args:
        strength: 0 leaves images as they are, 1 gives what the constants here say.
    """
    uniform = strength * (2 * torch.rand(count, 6, generator=generator) - 1)
    angle, scale_x, scale_y, shear = (
        uniform[:, :4] * torch.tensor([ROTATION, SCALE, SCALE, SHEAR])
    ).unbind(1)
    cos, sin, shifts = angle.cos(), angle.sin(), uniform[:, 4:] * SHIFT / 14
    rows = [
        cos * (1 + scale_x), shear * cos - sin, shifts[:, 0],
        sin + shear, cos * (1 + scale_y), shifts[:, 1],
    ]  # fmt: skip
    elastic = torch.randn(count, 2 * KNOTS**2, generator=generator) * (strength * ELASTIC / 14)
    return torch.cat([torch.stack(rows, 1), elastic], 1)


def distort(images: Tensor, drawn: Tensor) -> Tensor:
    """Each image as its distortion shows it, bilinear, with black around.

    Args:
        images: (N, C, H, W), uint8.
        drawn: (N, 56) of :func:`draw_distortions`.
    """
    drawn = drawn.to(images.device)
    count, size = len(images), list(images.shape)
    places = F.affine_grid(drawn[:, :6].view(count, 2, 3), size, align_corners=False)
    knots = drawn[:, 6:].view(count, 2, KNOTS, KNOTS)
    moved = F.interpolate(knots, size[-2:], mode="bicubic", align_corners=True)
    places = places + moved.permute(0, 2, 3, 1)
    seen = F.grid_sample(images.float(), places, mode="bilinear", align_corners=False)
    return seen.round_().clamp_(0, 255).to(torch.uint8)


def distortion(strength: float = 1.0) -> Augmentation:
    return Augmentation(partial(draw_distortions, strength=strength), distort)
