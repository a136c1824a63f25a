"""Lightning callbacks for training adder networks."""

from adderize.callbacks.adaptive_lr import AdaptiveLearningRate

__all__ = ["AdaptiveLearningRate"]
