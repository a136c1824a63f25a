"""fvcore's analysis of a network, which traces real kernels through TorchScript.

Importing this module teaches ``fvcore.nn.FlopCountAnalysis`` the adder and the binary ops: one
operation a pair, as it counts a convolution. :class:`FlopCountAnalysis` tells the operations apart.
The tracer sees other operators than the dispatcher does (``linear``, not ``addmm``; attention as a
whole), so that :mod:`adderize.counting.trace` is an independent count of the same network.
"""

from __future__ import annotations

import operator
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from adderize.arguments import check_choice, check_module
from adderize.counting.operators import FORMULAS, Numbers, count_call
from adderize.counting.trace import Call, blank_copy, untraceable, without_fast_attention
from adderize.counting.views import Reading
from adderize.dataflow import blank_input
from adderize.errors import AdderizeError
from adderize.formulas import KINDS, Operations, convolution_pairs

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)
    import fvcore.nn
    from fvcore.nn.activation_count import _DEFAULT_SUPPORTED_OPS as _ACTIVATION_HANDLES
    from fvcore.nn.flop_count import _DEFAULT_SUPPORTED_OPS as _FLOP_HANDLES
    from fvcore.nn.jit_handles import generic_activation_jit

View = Literal["before", "after"]
_FILTERS = {
    "adderize::adder_conv2d": 1,
    "adderize::adder_conv2d_u8": 1,
    "adderize::adder_conv2d_u8_packed": 2,
    "adderize::binary_conv2d": 1,
}
_FLOATING = ("BFloat", "Double", "Float", "Half")

_ON_SIZES: dict[str, Callable[..., int]] = {
    "aten::add": operator.add,
    "aten::sub": operator.sub,
    "aten::mul": operator.mul,
    "aten::floor_divide": operator.floordiv,
}


def register() -> None:
    """Make fvcore's own analyses count the ops: pairs as operations, outputs as activations."""
    for op, position in _FILTERS.items():
        name = op.removeprefix("adderize::")
        _FLOP_HANDLES[op] = _pairs_of(name, position)
        _ACTIVATION_HANDLES[op] = generic_activation_jit(name)


def _pairs_of(name: str, filters: int) -> Any:
    def pairs(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
        shapes = (_value(inputs[0]), _value(inputs[filters]), _value(outputs[0]))
        return Counter({name: convolution_pairs(*shapes)})

    return pairs


class FlopCountAnalysis(fvcore.nn.FlopCountAnalysis):  # type: ignore[misc]
    """fvcore's analysis with this package's formulas, which tell kinds of operations apart.

    ``by_operator()`` has the keys ``multiplications``, ``additions``, ``shifts``, ``xnors``,
    ``comparisons`` and ``other`` instead of names of operators; :mod:`adderize.formulas` has every
    convention. ``total()``, ``by_module()`` and fvcore's tables sum up the kinds asked for::

        analysis = FlopCountAnalysis(model, torch.zeros(1, 3, 224, 224))
        analysis.operations("layer1")                          # Operations(multiplications=...)
        print(flop_count_table(analysis))                      # all operations
        only = FlopCountAnalysis(model, inputs, kinds=["multiplications"])
        print(flop_count_table(only))                          # multiplications

    fvcore's own class counts one operation for a pair of a filter tap and an input value, and
    neither biases nor activations; it knows adders too, after ``import adderize.counting``.

    Args:
        model: converted or not, in evaluation mode, with real weights.
        inputs: what the model is called with.
        view: "after" counts adders, binary layers and shifts as what they are; "before" as the
            convolutions and products that they replaced, without the norms that adders own.
        kinds: of :class:`adderize.formulas.Operations`; others are left out.

    Raises:
        AdderizeError: an unknown view or kind.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Tensor | tuple[Tensor, ...],
        *,
        view: View = "after",
        kinds: Collection[str] = KINDS,
    ) -> None:
        check_module(model)
        super().__init__(model, inputs)
        check_choice("view", view, get_args(View))
        unknown = [kind for kind in kinds if kind not in KINDS]
        if isinstance(kinds, str) or unknown:
            raise AdderizeError(f"kinds is {kinds!r}; expected some of {', '.join(KINDS)}")
        self._view, self._kinds = view, tuple(kinds)
        reading = Reading(model)
        self._read = reading.before if view == "before" else reading.after
        self._calls: list[Call] = []
        names = [name if "::" in name else f"aten::{name}" for name in FORMULAS]
        self._op_handles = {f"{name}{end}": self._count for name in names for end in ("", "_")}
        self._ignored_ops: set[str] = set()

    def operations(self, module_name: str = "") -> Operations:
        """Those of the network, or of one module; what :meth:`unsupported_ops` lists is missing."""
        counts = self.by_operator(module_name)
        return Operations(**{kind: counts[kind] for kind in KINDS})

    def calls(self) -> list[Call]:
        """Every operator call in order, those without a formula too."""
        self._analyze()
        return self._calls

    def copy(
        self,
        new_model: nn.Module | None = None,
        new_inputs: Tensor | tuple[Tensor, ...] | None = None,
    ) -> FlopCountAnalysis:
        """The same settings for another model or other inputs."""
        model = self._model if new_model is None else new_model
        inputs = self._inputs if new_inputs is None else new_inputs
        twin = FlopCountAnalysis(model, inputs, view=self._view, kinds=self._kinds)
        twin.unsupported_ops_warnings(self._enable_warn_unsupported_ops)
        twin.uncalled_modules_warnings(self._enable_warn_uncalled_mods)
        twin.tracer_warnings(self._warn_trace).ancestor_mode(self._ancestor_mode)
        return twin

    def _analyze(self) -> Any:
        if self._stats is None:
            self._calls = []
            for ignored in self._ignored_ops:
                self._op_handles.pop(ignored, None)
        with without_fast_attention():
            return super()._analyze()

    def _count(self, inputs: list[Any], outputs: list[Any]) -> Counter[str]:
        counts = self._read(self._record(outputs[0].node())).by_kind()
        return Counter({kind: counts[kind] for kind in self._kinds if counts[kind]})

    def _should_ignore_node(self, node: Any) -> bool:
        """Asked for operators without a handle."""
        if super()._should_ignore_node(node) or not node.outputsSize():
            return True
        return self._record(node).operations is not None

    def _warn_unsupported_ops(self, operators: Counter[str]) -> None:
        """Add calls of known operators whose arguments no formula is known for."""
        for call in self._calls:
            if call.operations is None and call.operator in self._op_handles:
                for module in self._get_all_ancestors(call.layer):
                    self._stats.unsupported_ops[module][call.operator] += 1
        super()._warn_unsupported_ops(operators)

    def _record(self, node: Any) -> Call:
        inputs, outputs = list(node.inputs()), list(node.outputs())
        arguments, result = [_value(value) for value in inputs], _value(outputs[0])
        output = result if isinstance(result, tuple) else ()
        numbers = "integer" if _computes_sizes(node) else _numbers(inputs + outputs)
        layer = self.canonical_module_name(node.scopeName().split("/")[-1])
        operations = count_call(node.kind(), arguments, output, numbers)
        dtype = _dtype(inputs + outputs[:1])
        self._calls.append(Call(layer, node.kind(), arguments, output, operations, dtype))
        return self._calls[-1]


def trace(model: nn.Module, input_size: Sequence[int]) -> list[Call]:
    """Calls of one forward pass as fvcore's tracer sees them, in order.

    Args:
        model: on any device; a copy of zeros is traced.
        input_size: of one example, without the batch.

    Raises:
        AdderizeError: the model cannot be traced with such an input.
    """
    blank = blank_copy(model, "cpu")
    analysis = FlopCountAnalysis(blank, blank_input(blank, input_size, "cpu"))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    try:
        with torch.no_grad():
            return analysis.calls()
    except Exception as error:
        raise untraceable(input_size, type(model).__name__, error) from error


def _value(value: Any) -> Any:
    """A traced value as the formulas take it: tensors as shapes, constants as they are."""
    if value.node().kind() == "prim::ListConstruct":
        return [_value(item) for item in value.node().inputs()]
    if isinstance(value.type(), torch.TensorType):
        sizes = value.type().sizes()
        return None if sizes is None else tuple(sizes)
    return value.toIValue() if value.node().kind() == "prim::Constant" else _size(value)


def _size(value: Any) -> int | None:
    """A number that the network computes from sizes of tensors, such as that of a window."""
    kind, inputs = value.node().kind(), list(value.node().inputs())
    if kind == "prim::Constant":
        return int(value.toIValue())
    if kind == "aten::size":
        size: int = _value(inputs[0])[inputs[1].toIValue()]
        return size
    if kind in ("prim::NumToTensor", "aten::Int"):
        return _size(inputs[0])
    if kind in _ON_SIZES:
        numbers = [_size(number) for number in inputs[:2]]
        return None if None in numbers else _ON_SIZES[kind](*numbers)
    return None


def _computes_sizes(node: Any) -> bool:
    """Arithmetic on the sizes of tensors, which the tracer records as if it were on tensors."""
    return _origins(next(node.outputs())) == {"size"}


def _origins(value: Any) -> set[str]:
    """What a single number is computed from, constants aside: sizes, values of tensors."""
    found: set[str] = set()
    waiting, seen = [value], set[str]()
    while waiting:
        value = waiting.pop()
        if value.debugName() in seen:
            continue
        seen.add(value.debugName())
        kind, result = value.node().kind(), value.type()
        if kind == "aten::size":
            found.add("size")
        elif kind == "prim::Param" or (
            isinstance(result, torch.TensorType) and result.sizes() != []
        ):
            found.add("tensor")
        elif kind != "prim::Constant":
            waiting += value.node().inputs()
    return found


def _numbers(values: Sequence[Any]) -> Numbers:
    kinds = set().union(*map(_scalar_kinds, values))
    if any(kind.startswith("Complex") for kind in kinds):
        return "complex"
    return "real" if any(kind.startswith(_FLOATING) for kind in kinds) else "integer"


def _dtype(values: Sequence[Any]) -> str:
    kinds = set().union(*map(_scalar_kinds, values))
    wide = not kinds.isdisjoint(("Float", "Double"))
    narrow = any(kind.startswith(("BFloat16", "Half", "Float8")) for kind in kinds)
    return "float16" if narrow and not wide else "float32"


def _scalar_kinds(value: Any) -> set[str]:
    """As TorchScript names the types of a tensor's numbers, or of those in a list."""
    if value.node().kind() == "prim::ListConstruct":
        return set().union(*map(_scalar_kinds, value.node().inputs()))
    kind = value.type()
    return {kind.scalarType() or ""} if isinstance(kind, torch.TensorType) else set()


register()
