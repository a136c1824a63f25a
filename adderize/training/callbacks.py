"""The adaptive learning rate in Lightning's Trainer."""

from __future__ import annotations

from collections import deque
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from lightning.pytorch.utilities import rank_zero_warn
from torch.optim import Optimizer

from adderize.errors import AdderizeError
from adderize.training.adaptive_rate import (
    adder_filters,
    check_eta,
    held_filters,
    scale_adder_gradients_,
)
from adderize.training.norm_watch import (
    check_recalibration,
    recalibrate_before_validation,
    warn_of_untrained_norms,
)

# Class names in lower case, of torch, timm, apex, DeepSpeed, bitsandbytes, Transformers and others:
# also subclasses of theirs.
_RESCALES_GRADIENTS = frozenset({
    "adabelief", "adadelta", "adafactor", "adafactorbigvision", "adagrad", "adahessian", "adam",
    "adam8bit", "adamax", "adamp", "adamw", "adamw8bit", "adamwlegacy", "adan", "ademamix", "adopt",
    "came", "deepspeedcpuadam", "distributedfusedadam", "fusedadam", "fusedlamb", "fusednovograd",
    "kron", "lamb", "lamb8bit", "laprop", "lars", "lars8bit", "lion", "lion8bit", "madgrad", "mars",
    "muon", "nadam", "nadamlegacy", "nadamw", "novograd", "nvnovograd", "pagedadam", "pagedadamw",
    "pagedadamw8bit", "pagedlion", "prodigy", "radam", "radamlegacy", "rmsprop", "rmsproptf",
    "rprop", "shampoo", "soap", "sophia", "sophiag", "sparseadam", "yogi",
})  # fmt: skip


class AdaptiveLearningRate(Callback):
    r"""Adaptive local learning rate of adder layers.

    Before each optimizer step the gradient of every adder filter tensor is scaled to the norm
    :math:`\eta \sqrt{k}`, k being the number of its elements (Chen et al., AdderNet, CVPR 2020,
    section 3.3). Without it adder filters hardly move: their gradients lie about two orders of
    magnitude below those of convolutions. All other parameters keep their gradients.

    The rule acts on what the optimizer is about to see: after accumulation, all-reduce, fp16
    unscaling and gradient clipping (your own ``configure_gradient_clipping`` too), before momentum
    and weight decay. Under manual optimisation it follows the module's
    ``on_before_optimizer_step``, and only the filters held by the optimizer that steps are scaled.
    DDP and FSDP2 (``ModelParallelStrategy``) give the norm of the whole, averaged gradient. Outside
    of Lightning's Trainer call :func:`adderize.scale_adder_gradients_`.

    Use it with SGD. Optimizers that rescale gradients themselves (Adam, AdamW, LAMB, Adafactor...)
    cancel the rule: a warning says so. Lightning's ``LRFinder`` and ``Tuner.lr_find`` remove all
    callbacks, so the learning rate that they suggest ignores the rule.

    Args:
        eta: root mean square of the scaled gradients, above 0; the authors' code uses 0.2, the
            paper's text says 0.1.
        log: whether to send ``grad_norm/<layer>`` (before the rule) and ``adaptive_lr/<layer>``
            (the factor) to the Trainer's loggers every ``log_every_n_steps`` steps, at the cost of
            one device synchronisation each time.
        recalibrate_before_validation: where N > 0, the statistics of all batch norms are
            re-estimated on the last N training batches before each validation of a fit
            (:func:`adderize.recalibrate`), averaged over the processes. Early in training the
            filters move faster than running statistics follow. The module's ``forward`` must take
            the input of a batch; the N batches stay on the device until then.

    Raises:
        AdderizeError: ``eta`` or ``recalibrate_before_validation`` out of range.
        MisconfigurationException: at the start of a fit: ``FSDPStrategy`` or ``DeepSpeedStrategy``;
            a model without adder layers, or whose trainable filters no optimizer holds; a fused
            optimizer together with a gradient scaler; ``recalibrate_before_validation`` without
            batch norms or without a ``forward``.

    Example::

        model = adderize(resnet18())
        trainer = Trainer(callbacks=[AdaptiveLearningRate(eta=0.2)], gradient_clip_val=5.0)
        trainer.fit(LitClassifier(model), datamodule)
    """

    def __init__(
        self, eta: float = 0.2, log: bool = True, *, recalibrate_before_validation: int = 0
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
        self._batches: deque[Any] = deque(maxlen=count)
        self._hook: _ScalingHook | None = None
        self._norms_checked_in_epoch: int | None = None
        self._warned_of_norms = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit" and isinstance(trainer.strategy, FSDPStrategy | DeepSpeedStrategy):
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
        if self.recalibrate_before_validation and trainer.enable_validation:
            check_recalibration(pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._release()
        self._norms_checked_in_epoch, self._warned_of_norms = None, False
        # Each is the last hook of the module that Lightning calls before the step.
        automatic = pl_module.automatic_optimization
        name = "configure_gradient_clipping" if automatic else "on_before_optimizer_step"
        self._hook = _ScalingHook(self, pl_module, name)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if self.recalibrate_before_validation and trainer.enable_validation:
            self._batches.append(batch)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._batches and not trainer.sanity_checking:
            recalibrate_before_validation(trainer, pl_module, list(self._batches))
            self._batches.clear()

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
        return {**vars(self), "_hook": None, "_batches": deque(maxlen=self._batches.maxlen)}

    def _release(self) -> None:
        self._batches.clear()
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _scale(self, pl_module: pl.LightningModule, optimizer: Optimizer) -> None:
        trainer = pl_module.trainer
        if not self._warned_of_norms and self._norms_checked_in_epoch != trainer.current_epoch:
            self._norms_checked_in_epoch = trainer.current_epoch
            self._warned_of_norms = warn_of_untrained_norms(pl_module)
        gradients = scale_adder_gradients_(pl_module, self.eta, optimizer=optimizer)
        if not (self._logs and gradients.names and trainer.loggers and trainer.is_global_zero):
            return
        if trainer._logger_connector.should_update_logs:
            metrics = gradients.to_dict()
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step=trainer.fit_loop.epoch_loop._batches_that_stepped)


class _ScalingHook:
    """Stands in for a hook of the module: calls that hook, then the rule.

    An object instead of a closure, so that the module pickles and deep-copies while it trains. A
    copy only calls the hook: the rule belongs to the module that trains.
    """

    def __init__(
        self, callback: AdaptiveLearningRate, module: pl.LightningModule, name: str
    ) -> None:
        self.callback: AdaptiveLearningRate | None = callback
        self.module = module
        self.name = name
        self.previous = vars(module).get(name)
        while isinstance(self.previous, _ScalingHook) and self.previous.callback is None:
            self.previous = self.previous.previous
        setattr(module, name, self)

    def __call__(self, optimizer: Optimizer, *args: Any, **kwargs: Any) -> None:
        hook = self.previous
        if hook is None:
            hook = getattr(type(self.module), self.name).__get__(self.module)
        hook(optimizer, *args, **kwargs)
        if self.callback is not None:
            self.callback._scale(self.module, optimizer)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "callback": None}

    def remove(self) -> None:
        self.callback = None
        if vars(self.module).get(self.name) is not self:
            return
        if self.previous is None:
            delattr(self.module, self.name)
        else:
            setattr(self.module, self.name, self.previous)


def _check_optimizer(trainer: pl.Trainer, optimizer: Optimizer) -> None:
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    unscales_inside = getattr(optimizer, "_step_supports_amp_scaling", False)
    if unscales_inside and scaler is not None and scaler.is_enabled():
        raise MisconfigurationException(
            f"AdaptiveLearningRate: the fused {type(optimizer).__name__} unscales fp16 gradients "
            "inside its step, so the rule would act on scaled ones. Create it with fused=False, or "
            'train with precision="bf16-mixed"'
        )
    if any(kind.__name__.lower() in _RESCALES_GRADIENTS for kind in type(optimizer).__mro__):
        rank_zero_warn(
            f"{type(optimizer).__name__} rescales gradients itself and so cancels the adaptive "
            "learning rate of the adder layers. Use SGD with momentum"
        )
