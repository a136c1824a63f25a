"""The statistics of batch norms, estimated anew."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import inspect
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils import _pytree as pytree

from adderize.arguments import check_module
from adderize.errors import AdderizeError, classed_line
from adderize.evaluation import evaluation
from adderize.progress import steps


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


def model_of_input(
    model: nn.Module, batch: Any, device: torch.device, *, option: str = "forward"
) -> Any:
    """``model(input)`` of batches that need no ``option``, or an error that asks for it."""
    name = type(model).__name__
    ask = f'pass {option}, such as {option}=lambda model, batch: model(batch["image"])'
    several = isinstance(batch, (tuple, list))
    if several and not batch:
        raise AdderizeError("a batch is empty; expected a tensor, or a tuple that starts with one")
    if several and len(batch) > 2 and (names := _inputs(model)[1:]):
        raise AdderizeError(
            f"a batch holds {len(batch)} elements and {name}.forward takes {', '.join(names)} "
            f"beside its first input, so what it gets of them is not clear; {ask}"
        )
    inputs = moved(batch[0] if several else batch, device)
    try:
        return model(inputs)
    except Exception as error:
        if isinstance(inputs, Tensor) and not isinstance(error, TypeError):
            raise
        raise AdderizeError(
            f"{name} cannot be called with {described(inputs)} from a batch: "
            f"{classed_line(error)}. If its input is another, {ask}"
        ) from error


def _inputs(model: nn.Module) -> list[str]:
    """The names of what ``forward`` takes by position."""
    try:
        parameters = list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError):
        return []
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [parameter.name for parameter in parameters if parameter.kind in by_position]


def described(inputs: Any) -> str:
    """What a batch gives a network, for errors."""
    if isinstance(inputs, Tensor):
        return f"a tensor of shape {tuple(inputs.shape)}"
    if isinstance(inputs, Mapping):
        return f"a {type(inputs).__name__} of {list(inputs)}"
    return f"a {type(inputs).__name__}"


def moved(batch: Any, device: torch.device) -> Any:
    """``batch`` with its tensors on ``device``: in containers, dataclasses, whatever has ``to``."""

    def leaf(value: Any) -> Any:
        if callable(getattr(value, "to", None)):
            return value.to(device)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = [field.name for field in dataclasses.fields(value) if field.init]
            return dataclasses.replace(
                value, **{name: moved(getattr(value, name), device) for name in fields}
            )
        return value

    return pytree.tree_map(leaf, batch)
