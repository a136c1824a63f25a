"""Fresh batch-norm statistics before each validation, for the weights that it validates."""

from __future__ import annotations

import contextlib
import functools
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from adderize.errors import AdderizeError, classed_line, listed
from adderize.training.batches import model_of_input
from adderize.training.recalibration import estimate_statistics
from adderize.training.rerun import without_a_trace
from adderize.training.search import modules_of

_BEFORE_STEP = "on_train_batch_start"

RecalibrationForward = Callable[[Any, Any], Any]


class RecalibrationBeforeValidation:
    """Keeps the last training batches and re-estimates batch-norm statistics on them.

    The norms are those that train: statistics that are frozen in training stay.

    Args:
        count: the number of batches kept.
        forward: calls the network as training does, with the module and a batch; by default the
            module's ``training_step``, or its ``forward`` under manual optimisation.
    """

    def __init__(self, count: int, forward: RecalibrationForward | None) -> None:
        self.count = count
        self.forward = forward
        self._batches: deque[tuple[Any, int]] = deque(maxlen=count)
        self._norms: list[_NormBase] = []
        self._tried = self._trained = False
        self._strategy: Strategy | None = None

    def check(self, pl_module: pl.LightningModule) -> None:
        """Raises what is known before the first batch.

        Raises:
            MisconfigurationException: no batch norms; batches that cannot be kept; a module that
                does not say how it calls its network.
        """
        name = type(pl_module).__name__
        if not any(norm.track_running_stats for norm in modules_of(pl_module, _NormBase)):
            raise MisconfigurationException(
                f"recalibrate_before_validation is set, but {name} has no batch norm with running "
                "statistics; leave it at 0"
            )
        if is_param_in_hook_signature(pl_module.training_step, "dataloader_iter", explicit=True):
            raise MisconfigurationException(
                f"recalibrate_before_validation keeps training batches, but {name}.training_step "
                "takes dataloader_iter and fetches them itself; let it take the batch"
            )
        manual = not pl_module.automatic_optimization
        if manual and self.forward is None and not is_overridden("forward", pl_module):
            raise MisconfigurationException(
                f"recalibrate_before_validation calls {name}.forward with the input of a batch "
                f"under manual optimisation, but {name} defines no forward. {_ASK}"
            )

    def start(self, pl_module: pl.LightningModule) -> None:
        """Keeps batches from now on, as training steps get them.

        The module's ``on_train_batch_start`` and those of callbacks may change a batch in place,
        and so may the training step: the strategy's comes in between.
        """
        self._strategy = pl_module.trainer.strategy
        vars(self._strategy)[_BEFORE_STEP] = functools.partial(self._before_step, pl_module)

    def _before_step(self, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        strategy = pl_module.trainer.strategy
        type(strategy).on_train_batch_start(strategy, batch, batch_idx)
        norms = modules_of(pl_module, _NormBase)
        self._norms = [n for n in norms if n.track_running_stats and n.training]
        if batch_idx == 0 and not self._trained:
            # An epoch that ended with a validation left nothing that a resumed training would miss.
            self._batches.clear()
        self._batches.append((_copied(batch), batch_idx))
        self._trained = True
        if not self._takes_training_step(pl_module):
            self._try(pl_module)

    def after_step(self, pl_module: pl.LightningModule) -> None:
        self._try(pl_module)

    def run(self, pl_module: pl.LightningModule) -> None:
        """Re-estimates the statistics, averaged over the processes; once after some training."""
        if not (self._trained and self._norms):
            return
        self._trained = False
        self._estimate(pl_module, list(self._batches))
        if pl_module.trainer.world_size > 1:
            self._average(pl_module)

    def clear(self) -> None:
        if self._strategy is not None:
            vars(self._strategy).pop(_BEFORE_STEP, None)
            self._strategy = None
        self._batches.clear()
        self._norms = []
        self._tried = self._trained = False

    def __getstate__(self) -> dict[str, Any]:
        none = {
            "_batches": deque(maxlen=self.count),
            "_norms": [],
            "_trained": False,
            "_strategy": None,
        }
        return {**vars(self), **none}

    def _takes_training_step(self, pl_module: pl.LightningModule) -> bool:
        return self.forward is None and pl_module.automatic_optimization

    def _try(self, pl_module: pl.LightningModule) -> None:
        """Raises at the first batch what would else be raised by the first validation."""
        if self._tried or not self._norms:
            return
        self._tried = True
        own = "training_step" if pl_module.automatic_optimization else "forward"
        name = "recalibration_forward" if self.forward else f"{type(pl_module).__name__}.{own}"
        before = _places_of_frozen(pl_module)
        try:
            with _statistics_kept(self._norms):
                self._estimate(pl_module, list(self._batches)[:1])
        except AdderizeError as error:
            raise MisconfigurationException(f"recalibrate_before_validation: {error}") from error
        except Exception as error:
            raise MisconfigurationException(
                f"recalibrate_before_validation cannot run {name} on a batch in eval mode "
                f"and without gradients: {classed_line(error)}. {_ASK}"
            ) from error
        after = _places_of_frozen(pl_module)
        if changed := [key for key, place in before.items() if after.get(key, place) != place]:
            raise MisconfigurationException(
                f"recalibrate_before_validation runs {name} again, but that changes parameters "
                f"itself, as a momentum encoder's: {listed(changed)}. Change them in "
                f"on_train_batch_end. {_ASK}"
            )

    def _estimate(self, pl_module: pl.LightningModule, batches: list[tuple[Any, int]]) -> None:
        # Validation may run in inference mode, whose tensors could not be trained on afterwards.
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            pl_module.trainer.precision_plugin.train_step_context(),
            without_a_trace(pl_module, but=self._norms),
        ):
            estimate_statistics(
                pl_module, self._norms, batches, lambda item: self._call(pl_module, *item)
            )

    def _call(self, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> Any:
        batch, option = _copied(batch), "recalibration_forward"
        if self.forward:
            return self.forward(pl_module, batch)
        if not pl_module.automatic_optimization:
            return model_of_input(pl_module, batch, pl_module.device, option=option)
        step = pl_module.training_step
        takes_index = is_param_in_hook_signature(step, "batch_idx", min_args=2)
        return step(batch, batch_idx) if takes_index else step(batch)

    def _average(self, pl_module: pl.LightningModule) -> None:
        statistics = [b for n in self._norms for b in (n.running_mean, n.running_var)]
        buffers = [buffer for buffer in statistics if buffer is not None]
        mean = pl_module.trainer.strategy.reduce(torch.cat(buffers), reduce_op="mean")
        assert isinstance(mean, Tensor)
        for buffer, part in zip(buffers, mean.split([b.numel() for b in buffers]), strict=True):
            buffer.copy_(part)


_ASK = (
    "Pass recalibration_forward, such as recalibration_forward=lambda module, batch: "
    'module.net(batch["image"])'
)


def _places_of_frozen(module: pl.LightningModule) -> dict[str, tuple[int, int]]:
    """Memory and version of the parameters that no optimizer changes."""
    return {
        name: (weight.data_ptr(), weight._version)
        for name, weight in module.named_parameters()
        if type(weight) is nn.Parameter and not weight.requires_grad
    }


def _copied(batch: Any) -> Any:
    return apply_to_collection(batch, Tensor, Tensor.clone, allow_frozen=True)


@contextlib.contextmanager
def _statistics_kept(norms: list[_NormBase]) -> Iterator[None]:
    before = [{name: b.clone() for name, b in norm.named_buffers()} for norm in norms]
    try:
        yield
    finally:
        for norm, buffers in zip(norms, before, strict=True):
            for name, buffer in norm.named_buffers():
                buffer.copy_(buffers[name])
