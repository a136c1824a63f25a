"""The adaptive learning rate in Lightning's Trainer."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer

from adderize.errors import AdderizeError
from adderize.training.adaptive_rate import (
    AdderGradients,
    adder_filters,
    check_eta,
    held_filters,
)
from adderize.training.before_validation import (
    RecalibrationBeforeValidation,
    RecalibrationForward,
)
from adderize.training.filter_watch import warn_of_convolutions_filters
from adderize.training.norm_watch import warn_of_untrained_norms
from adderize.training.stepping import ScaleAtEveryStep

# Optimizers that rescale gradients, of torch, timm, apex, DeepSpeed, bitsandbytes and others: parts
# of class names in lower case, and whole names, which are too short to be looked for in others.
_RESCALING_FAMILIES = (
    "adafactor", "adagrad", "adam", "ademamix", "novograd", "prodigy", "rmsprop", "shampoo",
    "sophia",
)  # fmt: skip
_RESCALING = frozenset({
    "adabelief", "adadelta", "adahessian", "adan", "adopt", "came", "fusedlamb", "kron", "lamb",
    "lamb8bit", "laprop", "lars", "lars8bit", "lion", "lion8bit", "madgrad", "mars", "muon",
    "pagedlion", "rprop", "soap", "yogi",
})  # fmt: skip
# What wrappers call the optimizer that makes their steps, as timm's Lookahead does.
_HELD = ("_base_optimizer", "base_optimizer", "optim", "optimizer")


class AdaptiveLearningRate(Callback):
    r"""Adaptive local learning rate of adder layers.

    Before each optimizer step the gradient of every adder filter tensor is scaled to the norm
    :math:`\eta \sqrt{k}`, k being the number of its elements (Chen et al., AdderNet, CVPR 2020,
    section 3.3). Without it adder filters hardly move: their gradients lie about two orders of
    magnitude below those of convolutions. All other parameters keep their gradients.

    The rule acts on what the optimizer is about to see, whoever makes the step: the Trainer, or
    your own code under manual optimisation, with the wrapped or the plain optimizer, whether the
    Trainer knows it or not. It comes after accumulation, all-reduce, fp16 unscaling and gradient
    clipping (your own ``configure_gradient_clipping`` too), before momentum and weight decay, and
    scales the filters held by the optimizer that steps. DDP and FSDP2 (``ModelParallelStrategy``)
    give the norm of the whole, averaged gradient. Outside of Lightning's Trainer call
    :func:`adderize.scale_adder_gradients_`.

    Use it with SGD. Optimizers that rescale gradients themselves (Adam, AdamW, LAMB, Adafactor...)
    cancel the rule: a warning says so. Lightning's ``LRFinder`` and ``Tuner.lr_find`` remove all
    callbacks, so the learning rate that they suggest ignores the rule.

    A network from :func:`adderize.transfer.match` or :func:`~adderize.transfer.reconstruct` trains
    with the layers' ``gradient="sign_input"``, eta 0.1 and a learning rate of 0.05 that falls to 0.

    Args:
        eta: root mean square of the scaled gradients, above 0; the authors' code uses 0.2, the
            paper's text says 0.1.
        log: whether to send ``grad_norm/<layer>`` (before the rule) and ``adaptive_lr/<layer>``
            (the factor) to the Trainer's loggers every ``log_every_n_steps`` steps, at the cost of
            one device synchronisation each time.
        recalibrate_before_validation: where N > 0, the statistics of all batch norms are
            re-estimated on the last N training batches before each validation of a fit
            (:func:`adderize.recalibrate`), averaged over the processes; where averaged weights are
            validated (``EMAWeightAveraging`` and its like), for these. Early in training the
            filters move faster than running statistics follow. The module's ``training_step`` is
            run again, in eval mode but for the batch norms, and leaves no trace: it logs nothing,
            and counters, metrics and random numbers stay as they were, if they are the modules'
            own or in containers there and not in objects of other classes. Copies of the last N
            batches stay on the device; those of an epoch that ended with a validation are dropped,
            so that a training that is resumed there goes on alike.
        recalibration_forward: runs the network in place of the ``training_step``, with the module
            and a batch as ``training_step`` gets it. Under manual optimisation the default is
            ``module(input)``, the batch or the first element of a tuple or list.

    Raises:
        AdderizeError: ``eta`` or ``recalibrate_before_validation`` out of range.
        MisconfigurationException: at the start of a fit: ``FSDPStrategy`` or ``DeepSpeedStrategy``;
            a model without adder layers, or whose trainable filters no optimizer holds; a fused
            optimizer together with a gradient scaler; ``recalibrate_before_validation`` without
            batch norms or a way to call the network. At the first batch: filters that change
            without an optimizer of torch; a recalibration that fails.

    Example::

        model = adderize(resnet18())
        trainer = Trainer(callbacks=[AdaptiveLearningRate(eta=0.2)], gradient_clip_val=5.0)
        trainer.fit(LitClassifier(model), datamodule)
    """

    def __init__(
        self,
        eta: float = 0.2,
        log: bool = True,
        *,
        recalibrate_before_validation: int = 0,
        recalibration_forward: RecalibrationForward | None = None,
    ) -> None:
        super().__init__()
        count = recalibrate_before_validation
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise AdderizeError(
                f"recalibrate_before_validation is {count!r}; expected a number of training "
                "batches, such as 20, or 0 for none"
            )
        self.eta = check_eta(eta)
        self._logs = log  # Lightning puts a method `log` on every callback
        self.recalibrate_before_validation = count
        self._recalibration = RecalibrationBeforeValidation(count, recalibration_forward)
        self._steps: ScaleAtEveryStep | None = None
        self._unscaled: dict[str, tuple[nn.Parameter, int]] = {}
        self._norms_checked_in_epoch: int | None = None
        self._warned_of_norms = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit" and isinstance(trainer.strategy, (FSDPStrategy, DeepSpeedStrategy)):
            raise MisconfigurationException(
                f"AdaptiveLearningRate cannot work with {type(trainer.strategy).__name__}, which "
                "hides the gradient of a whole filter tensor. Use ModelParallelStrategy with "
                "fully_shard (FSDP2) in configure_model, or DDPStrategy"
            )

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        filters = adder_filters(pl_module)
        if not filters:
            raise MisconfigurationException(
                f"AdaptiveLearningRate found no adder layers in {type(pl_module).__name__}. Call "
                "adderize(model) in the module's __init__ or configure_model, or drop the callback"
            )
        holders = [o for o in trainer.optimizers if held_filters(filters, o)]
        if trainer.optimizers and not holders and any(w.requires_grad for w in filters.values()):
            raise MisconfigurationException(
                "AdaptiveLearningRate: no optimizer holds any of the adder filters "
                f"{list(filters)}. Create the optimizer after adderize(model)"
            )
        for optimizer in holders:
            _check_optimizer(trainer, optimizer)
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        rivals = [c for c in callbacks if isinstance(c, AdaptiveLearningRate)]
        if len(rivals) > 1:
            raise MisconfigurationException(
                "expected one AdaptiveLearningRate, found two callbacks: "
                f"{', '.join(type(rival).__name__ for rival in rivals)}"
            )
        if self._recalibrates(trainer):
            self._recalibration.check(pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._release()
        self._norms_checked_in_epoch, self._warned_of_norms = None, False
        self._steps = ScaleAtEveryStep(
            pl_module, self.eta, lambda gradients: self._scaled(pl_module, gradients)
        )
        self._unscaled = {name: (w, w._version) for name, w in adder_filters(pl_module).items()}
        warn_of_convolutions_filters(pl_module)
        if self._recalibrates(trainer):
            self._recalibration.start(pl_module)

    def on_before_backward(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor
    ) -> None:
        # What the forward pass changes, as an initialisation by the first batch, is not a step.
        self._unscaled = {name: (w, w._version) for name, (w, _) in self._unscaled.items()}

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        missed = [
            name
            for name, (weight, version) in self._unscaled.items()
            if weight.grad is not None and weight._version != version
        ]
        if missed:
            raise MisconfigurationException(
                f"AdaptiveLearningRate missed a step: the filters of {missed} have changed, but no "
                "optimizer of torch made the step. Update them with a torch.optim.Optimizer, or "
                "call adderize.scale_adder_gradients_ before the update and drop the callback"
            )
        if self._recalibrates(trainer):
            self._recalibration.after_step(pl_module)

    # By now every callback that validates averaged weights has swapped them in.
    def on_validation_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not trainer.sanity_checking:
            self._recalibration.run(pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._release()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self._release()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._release()

    def state_dict(self) -> dict[str, Any]:
        """Makes Lightning warn where a checkpoint is resumed without this callback."""
        return {"eta": self.eta}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict["eta"] != self.eta:
            rank_zero_warn(
                f"AdaptiveLearningRate: the checkpoint was trained with eta={state_dict['eta']}; "
                f"training goes on with eta={self.eta}"
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_steps": None, "_unscaled": {}}

    def _recalibrates(self, trainer: pl.Trainer) -> bool:
        return bool(self.recalibrate_before_validation and trainer.enable_validation)

    def _release(self) -> None:
        self._recalibration.clear()
        self._unscaled = {}
        if self._steps is not None:
            self._steps.remove()
            self._steps = None

    def _scaled(self, pl_module: pl.LightningModule, gradients: AdderGradients) -> None:
        trainer = pl_module.trainer
        for name in gradients.names:
            self._unscaled.pop(name, None)
        if not self._warned_of_norms and self._norms_checked_in_epoch != trainer.current_epoch:
            self._norms_checked_in_epoch = trainer.current_epoch
            self._warned_of_norms = warn_of_untrained_norms(pl_module, trainer.optimizers)
        if not (self._logs and trainer.loggers and trainer.is_global_zero):
            return
        if trainer._logger_connector.should_update_logs:
            metrics = gradients.to_dict()
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step=trainer.fit_loop.epoch_loop._batches_that_stepped)


def _check_optimizer(trainer: pl.Trainer, optimizer: Optimizer) -> None:
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    unscales_inside = getattr(optimizer, "_step_supports_amp_scaling", False)
    if unscales_inside and scaler is not None and scaler.is_enabled():
        raise MisconfigurationException(
            f"AdaptiveLearningRate: the fused {type(optimizer).__name__} unscales fp16 gradients "
            "inside its step, so the rule would act on scaled ones. Create it with fused=False, or "
            'train with precision="bf16-mixed"'
        )
    if name := rescaling(optimizer):
        rank_zero_warn(
            f"{name} rescales gradients itself and so cancels the adaptive learning rate of the "
            "adder layers. Use SGD with momentum"
        )


def rescaling(optimizer: Optimizer) -> str | None:
    """The name of what rescales gradients: the optimizer's class, or that of one that it holds."""
    for each in (optimizer, *(getattr(optimizer, name, None) for name in _HELD)):
        names = [kind.__name__.lower() for kind in type(each).__mro__]
        if any(n in _RESCALING or any(f in n for f in _RESCALING_FAMILIES) for n in names):
            return type(each).__name__
    return None
