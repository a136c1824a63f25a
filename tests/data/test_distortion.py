"""Distortions of digits: small, each image's own, the same for the same draws."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from adderize.data.distortion import distort, distortion, draw_distortions


def blots(count: int) -> torch.Tensor:
    """White squares of 8x8 in the middle of black images of 28x28."""
    images = torch.zeros(count, 1, 28, 28, dtype=torch.uint8)
    images[:, :, 10:18, 10:18] = 255
    return images


def test_without_a_distortion_images_stay() -> None:
    images = torch.randint(0, 256, (3, 2, 28, 28), dtype=torch.uint8)
    still = torch.zeros(3, 56)
    still[:, 0] = still[:, 4] = 1
    assert torch.equal(distort(images, still), images)


def test_shifts_are_in_pixels_and_every_image_has_its_own() -> None:
    drawn = torch.zeros(2, 56)
    drawn[:, 0] = drawn[:, 4] = 1
    drawn[0, 2], drawn[1, 5] = 2 / 14, -3 / 14
    given = distort(blots(2), drawn)
    expected = blots(2)
    assert torch.equal(given[0], F.pad(expected[0], (-2, 2)))
    assert torch.equal(given[1], F.pad(expected[1], (0, 0, 3, -3)))


def test_draws_are_small_and_follow_the_generator() -> None:
    drawn = draw_distortions(2000, torch.Generator().manual_seed(3))
    assert torch.equal(drawn, distortion().draw(2000, torch.Generator().manual_seed(3)))
    images = distortion().apply(blots(2000), drawn).float()
    assert images.shape == (2000, 1, 28, 28)
    mass = images.flatten(1).sum(1) / blots(1).sum()
    assert float(mass.min()) > 0.6 and float(mass.max()) < 1.9
    places = torch.arange(28.0) - 13.5
    centre = (images.sum((1, 2)) * places).sum(1) / images.flatten(1).sum(1)
    assert float(centre.abs().max()) < 5 and 0.5 < float(centre.std()) < 2
    assert len(images.flatten(1).unique(dim=0)) == 2000


def test_half_the_strength_goes_half_the_way() -> None:
    whole, half, none = (
        distortion(strength).draw(50, torch.Generator().manual_seed(1)) for strength in (1, 0.5, 0)
    )
    shifts = [2, 5, *range(6, 56)]
    assert torch.allclose(half[:, shifts], whole[:, shifts] / 2)
    assert torch.equal(distort(blots(50), none), blots(50))


def test_sizes_other_than_28_and_bytes() -> None:
    images = torch.randint(0, 256, (4, 1, 16, 20), dtype=torch.uint8)
    given = distort(images, draw_distortions(4, torch.Generator().manual_seed(0)))
    assert given.shape == images.shape and given.dtype == torch.uint8
