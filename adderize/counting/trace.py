"""One forward pass on meta tensors, every operator call with the layer that made it.

No weight is read, no kernel runs, nothing is allocated: a large network takes a fraction of a
second and the model itself is left alone.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

from adderize.counting.operators import Numbers, count_call
from adderize.dataflow import blank_input
from adderize.dataflow.snapshot import Snapshot
from adderize.errors import AdderizeError, first_line
from adderize.formulas import Operations, Shape


class Call(NamedTuple):
    """One operator call.

    Attributes:
        layer: name of the module whose forward was running; "" is the model itself.
        operator: name with its namespace, such as ``aten::convolution``.
        arguments: in schema order, tensors as shapes.
        output: shape of the (first) result.
        operations: None where no formula is known.
        dtype: format of the numbers, the widest that takes part, as
            :data:`adderize.counting.costs.ENERGY` names it.
    """

    layer: str
    operator: str
    arguments: Sequence[Any]
    output: Shape
    operations: Operations | None
    dtype: str


def blank_copy(model: nn.Module, device: str = "meta") -> nn.Module:
    """A copy of zeros, by default without storage, in evaluation mode, without the user's hooks.

    Raises:
        AdderizeError: a lazy module that has not seen a batch, or a module that cannot be copied.
    """
    memo: dict[int, Any] = {}
    for name, module in model.named_modules():
        own = (vars(module), module._parameters, module._buffers)
        for attribute, value in (item for values in own for item in values.items()):
            if is_lazy(value):
                raise AdderizeError(
                    f"{name}.{attribute} has no shape yet: run one batch through lazy modules first"
                )
    for tensor in Snapshot(model, values=False).tensors:
        memo[id(tensor)] = _blank(tensor, device)
    try:
        twin = copy.deepcopy(model, memo)
    except Exception as error:
        raise AdderizeError(
            f"{type(model).__name__} cannot be copied ({error}): pass the plain module, without "
            "wrappers such as DistributedDataParallel"
        ) from error
    for module in twin.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    return twin.eval()


def _blank(tensor: Tensor, device: str) -> Tensor:
    blank = torch.zeros_like(tensor, device=device, requires_grad=False)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(blank, requires_grad=tensor.requires_grad)
    return blank


def trace(model: nn.Module, input_size: Sequence[int]) -> list[Call]:
    """Calls of one forward pass, in order.

    Args:
        model: on meta, as :func:`blank_copy` gives it.
        input_size: of one example, without the batch.

    Raises:
        AdderizeError: the model does not accept such an input, or needs its values.
    """
    recorder, example = _Recorder(), blank_input(model, input_size)
    with ExitStack() as hooks:
        for name, module in model.named_modules():
            hooks.enter_context(module.register_forward_pre_hook(recorder.entering(name)))
            hooks.enter_context(module.register_forward_hook(recorder.leaving))
        try:
            with torch.no_grad(), without_fast_attention(), recorder:
                model(example)
        except Exception as error:
            where = _described(model, recorder.layers[-1] if recorder.layers else "")
            raise untraceable(input_size, where, error) from error
    return recorder.calls


@contextmanager
def without_fast_attention() -> Iterator[None]:
    """Attention as its products and its softmax, not as one operator of a whole layer."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def untraceable(input_size: Sequence[int], where: str, error: Exception) -> AdderizeError:
    reason = first_line(error).rstrip(".")
    return AdderizeError(
        f"an input of {tuple(input_size)} cannot be traced through {where}: {reason}. Is the size "
        "right: (C, H, W), without the batch? Counting runs without data: the model must take one "
        "tensor, and its control flow must not depend on values"
    )


def _described(model: nn.Module, name: str) -> str:
    module = model.get_submodule(name)
    leaf = next(module.children(), None) is None
    text = str(module) if leaf else type(module).__name__
    return f"{name}, {text}" if name else text


def _numbers(tensors: Sequence[Tensor]) -> Numbers:
    if any(tensor.is_complex() for tensor in tensors):
        return "complex"
    return "real" if any(tensor.is_floating_point() for tensor in tensors) else "integer"


def _dtype(tensors: Sequence[Tensor]) -> str:
    sizes = [tensor.itemsize for tensor in tensors if tensor.is_floating_point()]
    return "float16" if max(sizes, default=4) <= 2 else "float32"


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Call] = []
        self.layers: list[str] = []

    def entering(self, name: str) -> Any:
        return lambda module, inputs: self.layers.append(name)

    def leaving(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.layers.pop()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
        if any(tensor.is_meta for tensor in tensors):
            # Constants that the model made on another device, such as index tables.
            args, kwargs = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), (args, kwargs))
        result = function(*args, **kwargs)
        results = [value for value in tree_flatten(result)[0] if isinstance(value, Tensor)]
        if results:
            numbers, dtype = _numbers((*tensors, *results)), _dtype((*tensors, results[0]))
            self._record(function, args, kwargs, results[0].shape, numbers, dtype)
        return result

    def _record(
        self,
        function: Any,
        args: Sequence[Any],
        kwargs: Any,
        output: Shape,
        numbers: Numbers,
        dtype: str,
    ) -> None:
        schema = function._schema
        values = [
            args[i] if i < len(args) else kwargs.get(argument.name, argument.default_value)
            for i, argument in enumerate(schema.arguments)
        ]
        arguments = tree_map_only(Tensor, lambda tensor: tuple(tensor.shape), values)
        operations = count_call(schema.name, arguments, output, numbers)
        layer = self.layers[-1] if self.layers else ""
        self.calls.append(Call(layer, schema.name, arguments, tuple(output), operations, dtype))
