"""Lightning callbacks under the address that configuration files name."""

from adderize.training.callbacks import AdaptiveLearningRate
from adderize.training.shift_norms import ShiftNorms

__all__ = ["AdaptiveLearningRate", "ShiftNorms"]
