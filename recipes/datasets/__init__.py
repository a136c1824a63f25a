"""Data sets by where they come from."""

from recipes.datasets.cifar import load_cifar
from recipes.datasets.images import Dataset, ImageSet
from recipes.datasets.mnist import EMBEDDED, load_mnist
from recipes.datasets.parquet import read_parquet

__all__ = ["EMBEDDED", "Dataset", "ImageSet", "load_cifar", "load_mnist", "read_parquet"]
