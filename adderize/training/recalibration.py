"""The statistics of batch norms, estimated anew."""

from __future__ import annotations

import contextlib
import copy
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

from adderize.arguments import check_module
from adderize.errors import AdderizeError
from adderize.evaluation import evaluation
from adderize.progress import steps
from adderize.training.batches import model_of_input, moved


@torch.no_grad()
def recalibrate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    forward: Callable[[nn.Module, Any], Any] | None = None,
) -> nn.Module:
    """Re-estimate the statistics of every batch norm as the plain average over some batches.

    Running averages lag behind fast-moving adder filters: after a high learning rate the network
    may be fine and its statistics not. Only forward passes are made; filters, training mode and
    momenta stay as they were, and so do the statistics of norms that the forward does not call.

    Args:
        model: any module with batch norms, or instance norms, that track statistics.
        batches: as a DataLoader gives them; they are moved to the model's device. A tensor is one
            batch.
        forward: how the model takes a batch, such as ``lambda model, batch: model(**batch)``. By
            default the model is called with the batch, or with the first element of a tuple or
            list, as in ``(images, labels)``.

    Returns:
        the model itself.

    Raises:
        AdderizeError: no batch norm that tracks statistics, none that the forward calls, no
            batches, batches for which ``forward`` is needed or that give a norm one value of each
            channel, norms made in inference mode (outside of it), or statistics that are not
            finite; the statistics are then what they were.
    """
    check_module(model)
    norms = tracking_norms(model)
    if not norms:
        raise AdderizeError("the model has no batch norm with running statistics to recalibrate")
    made_so = any(buffer.is_inference() for norm in norms for buffer in norm.buffers())
    if made_so and not torch.is_inference_mode_enabled():
        raise AdderizeError(
            "the model's batch norms were made in inference mode, outside of which they cannot be "
            "changed: copy the model first (copy.deepcopy)"
        )
    iterator = iter([batches] if isinstance(batches, Tensor) else batches)
    first = next(iterator, None)
    if first is None:
        raise AdderizeError("recalibrate got no batches; expected at least one")
    tensors = itertools.chain(model.parameters(), model.buffers())
    device = next(tensors).device

    def run(batch: Any) -> Any:
        if forward is None:
            return model_of_input(model, batch, device)
        return forward(model, moved(batch, device))

    batches = itertools.chain([first], iterator)
    estimate_statistics(model, norms, batches, run, must_be_finite=True)
    return model


def tracking_norms(model: nn.Module) -> list[_NormBase]:
    """The batch norms, and instance norms, with running statistics."""
    return [m for m in model.modules() if isinstance(m, _NormBase) and m.track_running_stats]


def estimate_statistics(
    model: nn.Module,
    norms: Sequence[_NormBase],
    batches: Iterable[Any],
    run: Callable[[Any], Any],
    *,
    must_be_finite: bool = False,
) -> None:
    """Sets the statistics of ``norms`` from ``run(batch)``, all else of ``model`` in eval mode."""
    momenta = [norm.momentum for norm in norms]
    before = [copy.deepcopy(norm.state_dict()) for norm in norms]
    try:
        with evaluation(model), _uncompiled(), _variances(), contextlib.ExitStack() as hooks:
            for norm in norms:
                norm.train()
                norm.reset_running_stats()
                norm.momentum = None
                if isinstance(norm, _InstanceNorm):
                    hooks.enter_context(norm.register_forward_pre_hook(_weigh_next))
            for batch in steps(batches, "statistics of norms"):
                run(batch)
        uncalled = [norm.num_batches_tracked == 0 for norm in norms]
        if all(uncalled):
            raise AdderizeError(
                "the model's forward called none of its batch norms: pass the model that holds them"
            )
        for norm, state in itertools.compress(zip(norms, before, strict=True), uncalled):
            norm.load_state_dict(state)
        if must_be_finite:
            _check_finite(model, norms)
    except BaseException:
        for norm, state in zip(norms, before, strict=True):
            norm.load_state_dict(state)
        raise
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def _weigh_next(norm: nn.Module, inputs: Any) -> None:
    """What batch norms do by themselves: count the batches, each as much as the others."""
    assert isinstance(norm, _NormBase) and norm.num_batches_tracked is not None
    norm.num_batches_tracked += 1
    norm.momentum = 1 / int(norm.num_batches_tracked)


@contextlib.contextmanager
def _variances() -> Iterator[None]:
    """Say what to do where torch finds that a batch has none."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" in str(error):
            raise AdderizeError(
                f"a batch is too small for a batch norm ({error}): pass batches of several images; "
                "a DataLoader with drop_last=True leaves out a last batch of one"
            ) from error
        if "more than 1 spatial element" in str(error):
            raise AdderizeError(
                f"images are too small for an instance norm ({error}): pass larger ones"
            ) from error
        raise


def _uncompiled() -> contextlib.AbstractContextManager[Any]:
    """A norm without momentum reads its counter: torch.compile would break the graph at each."""
    if "torch._dynamo" not in sys.modules:
        return contextlib.nullcontext()
    stance: contextlib.AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


def _check_finite(model: nn.Module, norms: Iterable[_NormBase]) -> None:
    """Raise AdderizeError where statistics are not finite, as after a batch with NaN."""
    names = {module: name for name, module in model.named_modules()}
    for norm in norms:
        tensors = (norm.running_mean, norm.running_var)
        if not all(bool(t.isfinite().all()) for t in tensors if t is not None and not t.is_meta):
            raise AdderizeError(
                f"the statistics of {names[norm]} are not finite: a batch or a filter holds NaN or "
                "infinity, or a value too large; the old statistics are kept"
            )
