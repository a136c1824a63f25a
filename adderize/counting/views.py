"""One traced adder network, read as a convolutional, an adder or a binary network."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from torch import nn

from adderize import formulas
from adderize.counting.operators import ADDER_FORMULAS
from adderize.counting.rows import Views
from adderize.counting.trace import Call, blank_copy
from adderize.dataflow import blank_input
from adderize.errors import AdderizeError
from adderize.formulas import FREE, Operations
from adderize.integer.integer_network import IntegerNetwork
from adderize.layers import Converted, ShiftAddAdaptiveAvgPool2d, ShiftAddAvgPool2d, ShiftAddMean
from adderize.layers.shift_add import Shifts
from adderize.quantize.byte_layers import QuantAdder
from adderize.surgery import adderize, plan
from adderize.surgery.engine import ADDER, converted_layers

ADDERS = (*ADDER.classes, QuantAdder)
SHIFT_LAYERS = (Shifts, ShiftAddMean, ShiftAddAvgPool2d, ShiftAddAdaptiveAvgPool2d)
_BINARY_OPERATOR = "adderize::binary_conv2d"
_FORMS = {
    "convolution": formulas.convolution,
    "adder": formulas.adder,
    "xnor": formulas.xnor,
}


def adder_twin(model: nn.Module, input_size: Sequence[int], **options: Any) -> nn.Module:
    """The adder form of a model on the meta device; unchanged layers where nothing converts."""
    twin = blank_copy(model)
    if not options and any(isinstance(module, (Converted, *ADDERS)) for module in twin.modules()):
        return twin
    options["example_input"] = blank_input(model, input_size)
    if plan(twin, **options).converted:
        with warnings.catch_warnings():
            # What is counted need not learn.
            warnings.filterwarnings("ignore", "adderize: the filters of .* are frozen")
            adderize(twin, **options)
    return twin.eval()


class Reading:
    """The calls of one model, as a convolutional network and as what it is."""

    def __init__(self, model: nn.Module) -> None:
        if any(isinstance(module, IntegerNetwork) for module in model.modules()):
            raise AdderizeError(
                "PyTorch's operations are not those of an IntegerNetwork: count(network) reads its "
                "program, where it is not part of another network"
            )
        self._added = own_norms(model)
        modules = dict(model.named_modules())
        self._terms = {n: m.terms for n, m in modules.items() if isinstance(m, SHIFT_LAYERS)}

    def before(self, call: Call) -> Operations:
        """Adders and binary layers as convolutions, without their own norms; shifts as products."""
        return FREE if call.layer in self._added else read_as(call, "convolution")

    def after(self, call: Call) -> Operations:
        operations = read_as(call, "adder")
        terms = self._terms.get(call.layer)
        return operations if terms is None else formulas.shift_add(operations, terms)

    def by_dtype(self, call: Call) -> dict[str, Views]:
        """Both views by the format of the numbers: the pairs of an adder on bytes are bytes, their
        scales and shifts are not; the bits that a binary layer counts make integers."""
        views = Views(self.before(call), self.after(call))
        if call.operator in ADDER_FORMULAS and "_u8" in call.operator:
            formula = ADDER_FORMULAS[call.operator]
            epilogue = formula(call.arguments, call.output, lambda *_: FREE)
            pairs = Views(*(view + -1 * epilogue for view in views))
            return {"int8": pairs, call.dtype: Views(epilogue, epilogue)}
        if call.operator == _BINARY_OPERATOR:
            input, weight, *_ = call.arguments
            pairs_of_bits = formulas.convolution_pairs(input, weight, call.output)
            counted = pairs_of_bits * formulas.XNOR_PAIR
            scaled = Views(views.before, views.after + -1 * counted)
            return {call.dtype: scaled, "int32": Views(FREE, counted)}
        return {call.dtype: views}


def own_norms(model: nn.Module) -> set[str]:
    """Names of the norms that converted layers own: a convolutional network does not have them."""
    return {f"{name}.norm".removeprefix(".") for name in converted_layers(model)}


def read_as(call: Call, form: str) -> Operations:
    """Operations of a call where adders count as `form`: convolution, adder or xnor.

    Binary layers become convolutions with them; otherwise they stay what they are.
    """
    if call.operator in ADDER_FORMULAS:
        return ADDER_FORMULAS[call.operator](call.arguments, call.output, _FORMS[form])
    if call.operator == _BINARY_OPERATOR and form == "convolution":
        input, weight, *_ = call.arguments
        return formulas.convolution(input, weight, call.output)
    return call.operations or FREE
