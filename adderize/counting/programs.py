"""Operation budgets of integer networks, from their programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from adderize.counting.budget import OpBudget
from adderize.counting.costs import CostTable
from adderize.counting.rows import Layer, Views, merged, sum_of
from adderize.errors import AdderizeError
from adderize.integer import IntegerNetwork
from adderize.integer.program_operations import operations_of

_KINDS = {
    "adder_conv": "adder",
    "adder_linear": "adder",
    "shift_conv": "convolution",
    "shift_linear": "linear",
}


def count_integers(
    network: IntegerNetwork,
    input_size: Sequence[int] | None,
    energy: Mapping[str, CostTable],
    latency: CostTable,
) -> OpBudget:
    """As :func:`adderize.count`; "before" has products in the place of shifts and of adders.

    Raises:
        AdderizeError: another input size than the network's.
    """
    program, size = network.program, network.input_size
    if input_size is not None and tuple(input_size) != size:
        raise AdderizeError(
            f"input_size is {tuple(input_size)}; an integer network is made for one, here {size}"
        )
    layers = [
        Layer(
            step.layer,
            _KINDS.get(step.kind, "other"),
            step.kind,
            program.slots[step.output].shape,
            merged([{"int32": views}]),
        )
        for step in program.instructions
        for views in [
            Views(operations_of(program, step, as_products=True), operations_of(program, step))
        ]
    ]
    shown = tuple(layer for layer in layers if layer.by_dtype)
    total = sum_of(layers, "")
    name = type(network).__name__
    return OpBudget(name, size, total, shown, (), energy, latency)
