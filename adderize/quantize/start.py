"""How every quantization starts: a network that was checked, copied, traced and observed."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adderize.arguments import check_choice
from adderize.dataflow.undisturbed import restored
from adderize.errors import AdderizeError
from adderize.layers import Adder
from adderize.layers.settings import settings_of
from adderize.progress import steps
from adderize.quantize.byte_layers import QuantAdder
from adderize.quantize.calls import why_float
from adderize.quantize.fake_layers import check_no_fakes
from adderize.quantize.float_tracer import hook_owner
from adderize.quantize.fuse import Fusion
from adderize.quantize.observe import METHODS, Observer, calibration_inputs
from adderize.quantize.prepare import prepare
from adderize.quantize.qparams import QParams
from adderize.quantize.traced import TracedNetwork
from adderize.quantize.untraced import UntracedNetwork
from adderize.surgery.checks import check_model
from adderize.surgery.entries import entries_or_none

_COMPARED_IMAGES = 4


@dataclass(frozen=True)
class Ranges:
    """How a network is rounded.

    Attributes:
        method: how ranges follow from values.
        bits: of inputs and filters.
        filter_bits: of filters, where fewer; else None.
    """

    method: str
    bits: int
    filter_bits: int | None

    def check(self) -> None:
        """Raise AdderizeError for what is none."""
        check_choice("method", self.method, METHODS)
        if type(self.bits) is not int or not 2 <= self.bits <= 8:
            raise AdderizeError(f"bits is {self.bits!r}; expected an integer from 2 to 8")
        few = self.filter_bits
        if few is not None and (type(few) is not int or not 1 <= few <= self.bits):
            raise AdderizeError(
                f"filter_bits is {few!r}; expected an integer from 1 to bits, {self.bits}"
            )

    @property
    def remarks(self) -> list[str]:
        few = self.filter_bits
        return [] if few is None else [f"filters of {few} bits: {2**few} of the bytes a layer"]


@dataclass(frozen=True)
class Observed:
    """A float network that is ready to be put into integers.

    Attributes:
        network: with its fusions.
        qparams: of each group of byte tensors, by its name.
        few: some calibration images.
        expected: what each fusion gives for these in floats.
        remarks: on what stays float.
        entries: the manifest's entries of the adders; None where no manifest describes them.
        settings: of the layers.
    """

    network: TracedNetwork | UntracedNetwork
    qparams: dict[str, QParams]
    few: Tensor
    expected: dict[Fusion, Tensor]
    remarks: tuple[str, ...]
    entries: dict[str, dict[str, Any]] | None
    settings: dict[str, dict[str, Any]]


def observed(
    model: nn.Module,
    calibration: Iterable[Any],
    ranges: Ranges,
    *,
    inplace: bool = False,
    trains: bool = False,
) -> Observed:
    """See :func:`adderize.quantize.quantize` for the arguments and errors.

    Args:
        trains: see :func:`adderize.quantize.float_graph.float_graph`.
    """
    _check(model, ranges)
    model = (model if inplace else copied(model)).eval()
    adders, entries, settings = _adders(model), entries_or_none(model), settings_of(model)
    batches = calibration_inputs(calibration, next(model.parameters()).device)
    first = next(batches)
    network = prepare(model, first, trains=trains)
    with restored(model):
        few = some_of(model, first)

    network.fuse()
    with restored(model):
        expected = network.outputs(few)
    with restored(model):
        observers = network.observe(steps(itertools.chain([first], batches), "calibration"))
    for fusion in network.fusions:
        fusion.filter_bits = ranges.filter_bits
    qparams = {
        group.name: Observer.union(observers[tensor] for tensor in group.read).qparams(
            ranges.method, ranges.bits if group.inputs else 8, with_zero=group.with_zero
        )
        for group in network.groups
    }
    remarks = (*_remarks(adders, network.fusions), *network.remarks, *ranges.remarks)
    return Observed(network, qparams, few, expected, remarks, entries, settings)


def _check(model: nn.Module, ranges: Ranges) -> None:
    ranges.check()
    check_model(model)
    if any(isinstance(layer, QuantAdder) for layer in model.modules()):
        raise AdderizeError("the model is quantized already: quantize the float model")
    check_no_fakes(model, "prepare the float model, once")
    if not _adders(model):
        raise AdderizeError("the model has no adder layers: convert and train it first (adderize)")
    check_values(model)


def check_float32(model: nn.Module) -> None:
    """Raise AdderizeError for weights of other dtypes, or without values."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise AdderizeError(f"{name} is on the meta device and has no values")
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise AdderizeError(f"{name} has {tensor.dtype}; expected float32: use model.float()")


def check_values(model: nn.Module) -> None:
    """Raise AdderizeError for weights that are not finite float32 values."""
    check_float32(model)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise AdderizeError(f"{name} holds NaN or infinity; expected finite weights")


def copied(model: nn.Module) -> nn.Module:
    """A copy with the model's very hooks: what they collect goes to where it went before."""
    own = set(model.modules())
    hooks = [
        hook
        for module in own
        for table in (module._forward_hooks, module._forward_pre_hooks)
        for hook in table.values()
        if hook_owner(hook) not in own
    ]
    try:
        return copy.deepcopy(model, {id(hook): hook for hook in hooks})
    except Exception as error:
        raise AdderizeError(
            f"the model cannot be copied ({error}): remove what it keeps of earlier calls, or pass "
            "inplace=True if it is not needed afterwards"
        ) from error


def _adders(model: nn.Module) -> dict[str, Adder]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, Adder)}


def some_of(model: nn.Module, inputs: Tensor) -> Tensor:
    """Some images of a batch; all of it where the model takes no part, as of a single image."""
    try:
        model(inputs[:_COMPARED_IMAGES].clone())
    except Exception:
        return inputs
    return inputs[:_COMPARED_IMAGES]


def _remarks(adders: dict[str, Adder], fusions: Iterable[Fusion]) -> list[str]:
    """Which adders stay float32, and why; AdderizeError where all do."""
    called = {fusion.layer for fusion in fusions}
    reasons = {name: why_float(layer) for name, layer in adders.items()}
    remarks = [f"{name} stays float32: {why}" for name, why in reasons.items() if why]
    if not called:
        raise AdderizeError(
            "none of the model's adders is called in its forward, or none has a form in "
            f"integers: {'; '.join(remarks) or 'pass the model that calls them'}"
        )
    return remarks + [
        f"{name} stays float32: it is not called, or not on what the model's input decides"
        for name, layer in adders.items()
        if reasons[name] is None and layer not in called
    ]
