"""Data sets by where they come from."""

from adderize.data.cifar import load_cifar
from adderize.data.image_sets import Dataset, ImageSet, read_parquet
from adderize.data.imagenet import load_photographs
from adderize.data.mnist import EMBEDDED, load_mnist

__all__ = [
    "EMBEDDED",
    "Dataset",
    "ImageSet",
    "load_cifar",
    "load_mnist",
    "load_photographs",
    "read_parquet",
]
