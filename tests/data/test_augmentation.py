"""Crops and flips on whole batches, against one image at a time."""

from __future__ import annotations

import pytest
import torch
from torchvision.transforms.v2.functional import crop, horizontal_flip, pad

from adderize.data.augmentation import crop_and_flip, draw_crops


@pytest.mark.parametrize("shape", [(40, 3, 32, 32), (7, 1, 5, 9)])
def test_each_image_gets_its_own_crop_and_flip(shape: tuple[int, ...]) -> None:
    images = torch.randint(0, 256, shape, dtype=torch.uint8)
    crops = draw_crops(shape[0], torch.Generator().manual_seed(0))
    for image, (top, left, flip), found in zip(
        images, crops.tolist(), crop_and_flip(images, crops), strict=True
    ):
        expected = crop(pad(image, [4]), top, left, *shape[2:])
        assert torch.equal(found, horizontal_flip(expected) if flip else expected)


def test_draws_cover_all_offsets() -> None:
    crops = draw_crops(9000, torch.Generator().manual_seed(0))
    for offsets in crops[:, :2].unbind(1):
        counts = offsets.bincount(minlength=9)
        assert counts.shape == (9,)
        assert counts.min() > 850
    assert crops[:, 2].unique().tolist() == [0, 1]
    assert 0.47 < crops[:, 2].double().mean() < 0.53


def test_the_middle_crop_is_the_image() -> None:
    images = torch.rand(3, 3, 32, 32)
    assert torch.equal(crop_and_flip(images, torch.tensor([[4, 4, 0]] * 3)), images)
