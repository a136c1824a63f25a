"""Lightning callbacks under the address that configuration files name."""

from adderize.training.callbacks import AdaptiveLearningRate

__all__ = ["AdaptiveLearningRate"]
