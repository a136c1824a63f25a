"""Batches of images for training: order, augmentation, normalisation."""

from recipes.batches.image_data import ImageData
from recipes.batches.image_files import ImageFiles
from recipes.batches.in_memory import InMemoryImages

__all__ = ["ImageData", "ImageFiles", "InMemoryImages"]
