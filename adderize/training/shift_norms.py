"""Training with norms whose scales are sums of a few signed powers of two."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from adderize.errors import AdderizeError
from adderize.layers import Adder
from adderize.layers.powers_of_two import check_terms, rounded_to_powers
from adderize.training.adaptive_rate import is_dtensor


class ShiftNorms(Callback):
    """Rounds the scales of batch norms to a few powers of two for the end of the training.

    From then on a norm's scale ``gamma / sigma`` acts, in training and in validation, as the sum of
    `terms` signed powers of two next to it, with the running statistics for sigma; gradients pass
    the rounding unchanged (a straight-through estimator). So the other weights get used to what
    :func:`adderize.integer.multiplication_free` with ``norm_terms=terms`` does. With three terms
    there is nothing to get used to; one or two terms from the start of a training cost accuracy.

    The norms are those behind adders, and all others that do not follow a kept convolution or
    linear layer, whose weights take the norm's scale in. When the training ends the norms' weights
    take the rounding in (:func:`round_norm_scales_`). Place it behind
    :class:`AdaptiveLearningRate`, which may re-estimate statistics before a validation.

    Args:
        terms: T, powers of two for a scale, 1 to 24.
        after: the part of the training without rounding, 0 to 1.
        max_steps: optimizer steps, where the training ends with fewer than the Trainer knows of.

    Raises:
        AdderizeError: `terms` or `after` out of range.
        MisconfigurationException: when the training starts: no such norm, norms without weights or
            running statistics, or a training without an end.
    """

    def __init__(self, terms: int = 2, after: float = 0.9, max_steps: int | None = None) -> None:
        check_terms(terms)
        if not 0 <= after <= 1:
            raise AdderizeError(f"after is {after!r}; expected a part of the training, 0 to 1")
        self.terms, self.after, self.max_steps = terms, after, max_steps
        self._scales: list[_RoundedScale] = []
        self._rounds = False

    # Before the sanity check: a compiled network ignores hooks that come after its first call.
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._rounds = False
        self._watch(pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._progress(trainer, 0)
        watched = [scale.norm for scale in self._scales]
        if watched != list(_norms_to_round(pl_module).values()):  # SyncBatchNorm replaces norms
            self._watch(pl_module)

    def _watch(self, pl_module: pl.LightningModule) -> None:
        norms = _norms_to_round(pl_module)
        if not norms:
            raise MisconfigurationException(
                f"ShiftNorms found no batch norm after an adder in {type(pl_module).__name__}"
            )
        for name, norm in norms.items():
            if norm.weight is None or norm.running_mean is None:
                raise MisconfigurationException(
                    f"ShiftNorms cannot round {name}, a norm without weights or running "
                    "statistics: build it with affine=True and track_running_stats=True"
                )
        self._remove()
        self._scales = [_RoundedScale(norm) for norm in norms.values()]

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        progress = self._progress(trainer, batch_idx)
        if any(done >= first for done, first in progress):
            self._rounds = True
            self._update()

    def on_validation_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        # Averaged weights and fresh statistics are there by now.
        if batch_idx == 0 and self._rounds:
            self._update()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._rounds:
            round_norm_scales_(pl_module, self.terms)
        self._remove()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Lightning calls no on_train_end where a fit resumes a training that has ended. One that
        # never began has no part to begin after.
        if self._scales and trainer.global_step:
            self._rounds = any(done > first for done, first in self._progress(trainer, 0))
        # Once more: callbacks behind this one may have put averaged weights in at on_train_end.
        if self._rounds:
            round_norm_scales_(pl_module, self.terms)
        self._remove()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self._remove()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_scales": []}

    def _update(self) -> None:
        for scale in self._scales:
            scale.update(self.terms)

    def _remove(self) -> None:
        for scale in self._scales:
            scale.handle.remove()
        self._scales = []

    def _progress(self, trainer: pl.Trainer, batch_idx: int) -> list[tuple[int, int]]:
        """For each limit of the training how far it has come, and where the rounding begins.

        Epochs are counted in batches: how many of them make a step is the module's own affair under
        manual optimisation, and may change with the epoch. Every optimizer counts its steps.
        """
        limits = [
            (trainer.global_step, steps)
            for steps in (self.max_steps, trainer.max_steps)
            if steps and steps > 0
        ]
        if trainer.max_epochs and trainer.max_epochs > 0:
            # Not estimated_stepping_batches, which starts the loader's worker processes.
            batches = trainer.num_training_batches
            if math.isfinite(batches):
                done = trainer.current_epoch * batches + batch_idx
                limits.append((int(done), int(batches * trainer.max_epochs)))
            elif not limits:
                raise MisconfigurationException(
                    "ShiftNorms begins after a part of the training, but the loader has no length: "
                    "give Trainer max_steps"
                )
        if not limits:
            raise MisconfigurationException(
                "ShiftNorms begins after a part of the training, but this one has no end: give "
                "Trainer max_epochs or max_steps"
            )
        return [(done, math.floor(self.after * limit)) for done, limit in limits]


@torch.no_grad()
def round_norm_scales_(model: nn.Module, terms: int) -> None:
    """Rounds the scales ``gamma / sigma`` of batch norms to sums of signed powers of two, in place.

    The norms are those of :class:`ShiftNorms`; their weights change, so that the running statistics
    stay what they are.

    Args:
        model: with batch norms that have weights and running statistics.
        terms: T, powers of two for a scale.

    Raises:
        AdderizeError: scales that are not finite.
    """
    _shard_again(model)
    for norm in _norms_to_round(model).values():
        if norm.weight is not None:
            # From the rounded scale, not by a factor: a second time finds the same scale.
            deviation, scale = _deviation_and_scale(norm)
            weight = torch.where(
                scale == 0, _whole(norm.weight), rounded_to_powers(scale, terms) * deviation
            )
            norm.weight.copy_(_as(norm.weight, weight))


class _RoundedScale:
    """A hook behind a norm that gives it its rounded scale, once there is one."""

    def __init__(self, norm: _BatchNorm) -> None:
        self.norm = norm
        self.ratio: Tensor | None = None
        # Before FSDP2's hook, which leaves shards of the bias only.
        self.handle: RemovableHandle = norm.register_forward_hook(self._rescaled, prepend=True)

    @torch.no_grad()
    def update(self, terms: int) -> None:
        self.ratio = _ratio(self.norm, terms)

    def _rescaled(self, norm: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if self.ratio is None:
            return output
        shape = [1, -1] + [1] * (output.dim() - 2)
        bias = self.norm.bias.to(output.dtype).view(shape)
        return torch.addcmul(bias, output - bias, self.ratio.to(output.dtype).view(shape))


def _ratio(norm: _BatchNorm, terms: int) -> Tensor:
    """Rounded scale by scale, float32 (C,); 1 where the scale is 0."""
    _, scale = _deviation_and_scale(norm)
    return torch.where(scale == 0, 1.0, rounded_to_powers(scale, terms) / scale).float()


def _deviation_and_scale(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """sigma and ``gamma / sigma``, float64 (C,)."""
    assert norm.running_var is not None
    deviation = (norm.running_var.double() + norm.eps).sqrt()
    return deviation, _whole(norm.weight).double() / deviation


def _shard_again(model: nn.Module) -> None:
    """FSDP2 leaves weights gathered behind a validation: what is written to them is lost."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        from torch.distributed.fsdp import FSDPModule

        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


def _whole(tensor: Tensor) -> Tensor:
    """All of a tensor that FSDP2 has sharded; every process must call this."""
    return tensor.full_tensor() if is_dtensor(tensor) else tensor


def _as(tensor: Tensor, whole: Tensor) -> Tensor:
    """A tensor of the shape of another, of its dtype, sharded where it is."""
    whole = whole.to(tensor.dtype)
    if not is_dtensor(tensor):
        return whole
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole, tensor.device_mesh, tensor.placements)


def _norms_to_round(model: nn.Module) -> dict[str, _BatchNorm]:
    """Batch norms but those that come, in order of registration, next after a kept layer."""
    return {name: norm for name, norm, behind in _norms(model) if not behind}


def _norms(model: nn.Module) -> Iterator[tuple[str, _BatchNorm, bool]]:
    behind_kept = False
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm):
            yield name, module, behind_kept
            behind_kept = False
        elif isinstance(module, Adder):
            behind_kept = False
        elif isinstance(module, (nn.Conv2d, nn.Linear)):
            behind_kept = True
