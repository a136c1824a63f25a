"""Quantization-aware training: a network in floats that computes what its integers will."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from adderize.dataflow.undisturbed import restored
from adderize.errors import AdderizeError
from adderize.quantize.constants import centre_constants
from adderize.quantize.fake_layers import check_no_fakes
from adderize.quantize.float_graph import settle
from adderize.quantize.float_tracer import Hooked
from adderize.quantize.observe import calibration_inputs
from adderize.quantize.start import Observed, Ranges, check_values, copied, observed, some_of
from adderize.quantize.traced import TracedNetwork, values_of
from adderize.quantize.untraced import UntracedNetwork
from adderize.surgery.records import attach, attached

_KEY = "adderize_aware"


@dataclass(frozen=True)
class Preparation:
    """What a prepared network carries along until it is put into integers.

    Attributes:
        ranges: what :func:`prepare_qat` was asked for.
        absorbed, apart, hooked: as in :class:`adderize.quantize.record.Quantization`.
        remarks, entries, settings: as in :class:`adderize.quantize.start.Observed`.
    """

    ranges: Ranges
    absorbed: dict[str, list[str]] | None
    apart: tuple[str, ...]
    hooked: Hooked
    remarks: tuple[str, ...]
    entries: dict[str, dict[str, Any]] | None
    settings: dict[str, dict[str, Any]]


@torch.no_grad()
def prepare_qat(
    model: nn.Module,
    calibration: Iterable[Any],
    *,
    method: str = "minmax",
    bits: int = 8,
    filter_bits: int | None = None,
) -> nn.Module:
    """A copy of a network that trains with the rounding of :func:`quantize` in its forward.

    Every tensor that will be bytes is rounded to the values that these bytes will have, and every
    adder sees its filters rounded with the scale and zero point of its input. Filters beyond the
    input's range stay as they are: ``quantize`` clamps them, which moves distances by constants
    only. Scales and zero points are those that ``quantize`` would find for the same arguments, and
    stay fixed. Gradients pass the rounding straight through: to a tensor within its range, and to
    all filters.

    Train the result as any network, with :class:`adderize.AdaptiveLearningRate` or
    :func:`adderize.scale_adder_gradients_`; some epochs at a low learning rate will do. Then
    ``quantize(result, calibration)`` gives the network on bytes: what it computes is what the
    result computes in evaluation mode, within the rounding of float32. It keeps the scales.

    Args:
        model: a float32 network with adders, trained; it is left as it is.
        calibration, method, bits, filter_bits: as for :func:`quantize`.

    Returns:
        the prepared network in training mode: a ``torch.fx.GraphModule`` in which calls of
        functional dropout are left out (layers stay), or the model's own class where it cannot be
        traced. Parameters have the names that they have in `model`, but in a layer that is called
        on inputs of several scales.

    Raises:
        AdderizeError: as of :func:`quantize`.
    """
    ranges = Ranges(method, bits, filter_bits)
    start = observed(model, calibration, ranges, trains=True)
    network = start.network
    prepared = network.simulate(start.qparams, filter_bits)
    centre_constants(prepared, network.fusions, start.few)
    record = Preparation(
        ranges, network.absorbed, network.apart, network.hooked, start.remarks, start.entries,
        start.settings,
    )  # fmt: skip
    attach(prepared, _KEY, record)
    return prepared.train()


def preparation_of(model: nn.Module) -> Preparation | None:
    """The record of a prepared network; None for any other."""
    return attached(model, _KEY, Preparation)


def prepared_network(model: nn.Module, calibration: Iterable[Any], *, inplace: bool) -> Observed:
    """A prepared network as one that is ready to be put into integers, with its own scales."""
    record = preparation_of(model)
    assert record is not None
    check_values(model)
    model = (model if inplace else copied(model)).eval()
    batches = calibration_inputs(calibration, next(model.parameters()).device)
    inputs = next(batches)
    with restored(model):
        few = some_of(model, inputs)
    network: TracedNetwork | UntracedNetwork
    if isinstance(model, fx.GraphModule):
        assert record.absorbed is not None
        with restored(model):
            values = values_of(model, few, {[name, *f][-1] for name, f in record.absorbed.items()})
        settle(model)
        network = TracedNetwork(model, record.hooked)
        network.fuse_as(record.absorbed, record.apart)
        expected = {fusion: values[fusion.end.name] for fusion in network.fusions}
        with restored(model):
            network.observe_kept(itertools.chain([inputs], batches))
    else:
        network = UntracedNetwork(model)
        network.fuse_prepared()
        with restored(model):
            expected = network.outputs(few)
    qparams = network.noted_qparams
    return Observed(
        network, qparams, few, expected, record.remarks, record.entries, record.settings
    )


def check_same_ranges(asked: Ranges, model: nn.Module) -> Ranges:
    """Those that a network was prepared with; AdderizeError where others are asked for."""
    record = preparation_of(model)
    if record is None:
        check_no_fakes(model, "pass the whole network that it returned, not a part of it")
        return asked
    if asked not in (record.ranges, Ranges("minmax", 8, None)):
        raise AdderizeError(
            f"the model was prepared with {record.ranges}, and quantize() is given {asked}: leave "
            "method, bits and filter_bits out"
        )
    return record.ranges
