"""Data sets by where they come from."""

from adderize.data.cifar import load_cifar
from adderize.data.image_sets import Dataset, ImageSet
from adderize.data.mnist import EMBEDDED, load_mnist
from adderize.data.parquet import read_parquet

__all__ = ["EMBEDDED", "Dataset", "ImageSet", "load_cifar", "load_mnist", "read_parquet"]
