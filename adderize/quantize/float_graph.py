"""A float network as a graph of plain calls without changes in place."""

from __future__ import annotations

import contextlib
import copy
import operator
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx import Node
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils import _pytree as pytree

from adderize.dataflow.in_place import (
    PLAIN_OPERATORS,
    changed_in_place,
    inplace_position,
    thread_changes,
)
from adderize.dataflow.nodes import function_name
from adderize.errors import AdderizeError
from adderize.quantize.calls import is_foldable, is_plain, module_of, operation, read_layers
from adderize.quantize.fake_layers import FakeQuantize
from adderize.quantize.float_tracer import FloatTracer, Hooked
from adderize.quantize.positional import put_operands_first

# What a model says about its inputs.
_STATEMENTS = {"default_cfg", "example_input_array", "image_size", "input_size", "pretrained_cfg"}
# The share of eps below which a variance is a constant's: it shows as 1 % of the norm's scale.
_CONSTANT = 1e-4
_NOT_IN_PLACE = {"bernoulli", "normal", "requires_grad"}  # other functions than with an underscore


def float_graph(
    model: nn.Module,
    inputs: Tensor | None = None,
    hooked: Hooked | None = None,
    *,
    trains: bool = False,
) -> tuple[fx.GraphModule, Hooked]:
    """The model in evaluation mode as a graph, and the forward hooks of blocks in it.

    What does nothing in evaluation is left out, kept convolutions take their batch norms in, and
    changes in place become values of their own. The model's modules are used, not copied.

    Args:
        inputs: a batch to look for changes in place on that the graph does not show.
        hooked: see :class:`FloatTracer`.
        trains: keep the norms of convolutions, and dropout layers: :func:`settle` does the rest.

    Raises:
        Exception: whatever tracing the model raises.
    """
    tracer = FloatTracer(hooked or {})
    with _split_norm_activations(model):
        graph = tracer.graph_of(model)
        with _attached(model, tracer.layers):
            traced = fx.GraphModule(model, graph)
    put_operands_first(traced.graph)
    _leave_out_identities(traced, keep=_DropoutNd if trains else ())
    if inputs is not None:
        _ChangeChecker(traced).run(inputs.clone())
    _make_functional(traced)
    # A channels_last tensor has the same values in another order of memory.
    for node in traced.graph.find_nodes(op="call_method", target="view"):
        is_cast = any(isinstance(argument, torch.dtype) for argument in node.args)
        node.target = "view" if is_cast else "reshape"
    if not trains:
        _fold_into_convolutions(traced)
    traced.graph.lint()
    traced.recompile()
    for name in _STATEMENTS & vars(model).keys() | _STATEMENTS & vars(type(model)).keys():
        setattr(traced, name, getattr(model, name))
    return traced, tracer.hooked


def settle(traced: fx.GraphModule) -> None:
    """Give a graph that was made to train the form of one that was not, in place.

    What was rounded is noted in ``meta["qparams"]`` of its node.
    """
    traced.eval()
    for node in traced.graph.nodes:
        if isinstance(grid := module_of(node), FakeQuantize):
            node.args[0].meta["qparams"] = grid.qparams
    _leave_out_identities(traced)
    _fold_into_convolutions(traced)
    traced.delete_all_unused_submodules()
    traced.graph.lint()
    traced.recompile()


def _leave_out_identities(traced: fx.GraphModule, keep: type[nn.Module] | tuple[()] = ()) -> None:
    for node in traced.graph.nodes:
        if _is_identity(node) and not isinstance(module_of(node), keep):
            _take_out(node, node.args[0])


def _take_out(node: Node, source: Node) -> None:
    """Let what reads a node read what it reads, which is rounded as it was."""
    if "qparams" in node.meta:
        source.meta["qparams"] = node.meta["qparams"]
    node.replace_all_uses_with(source)
    node.graph.erase_node(node)


@contextlib.contextmanager
def _attached(model: nn.Module, layers: Mapping[str, nn.Module]) -> Iterator[None]:
    """Further layers of a model, by the names that they are called by."""
    places = {name: model.get_submodule(name.rpartition(".")[0]) for name in layers}
    for name, layer in layers.items():
        places[name].add_module(name.rpartition(".")[2], layer)
    try:
        yield
    finally:
        for name, place in places.items():
            del place._modules[name.rpartition(".")[2]]


@contextlib.contextmanager
def _split_norm_activations(model: nn.Module) -> Iterator[None]:
    """timm's batch norms with an activation inside are a batch norm and the activation."""
    whole = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent._modules.items()
        if f"{type(child).__module__}.{type(child).__name__}" == _NORM_ACTIVATION
    ]
    parts: dict[nn.Module | None, nn.Module] = {}
    for parent, name, child in whole:
        if child not in parts:
            parts[child] = _norm_then_activation(child)
        setattr(parent, name, parts[child])
    try:
        yield
    finally:
        for parent, name, child in whole:
            setattr(parent, name, child)


def _norm_then_activation(whole: Any) -> nn.Sequential:
    norm = nn.BatchNorm2d(0, device="meta").eval()
    for table in ("_parameters", "_buffers"):
        norm.__dict__[table] = whole.__dict__[table]
    for key in ("num_features", "eps", "momentum", "affine", "track_running_stats"):
        setattr(norm, key, getattr(whole, key))
    return nn.Sequential(norm, whole.drop, whole.act)


_NORM_ACTIVATION = "timm.layers.norm_act.BatchNormAct2d"


class _ChangeChecker(fx.Interpreter):
    """Runs a graph and raises where a change in place reaches further than the graph shows."""

    def run_node(self, n: Node) -> Any:
        before = {(node, leaf): leaf._version for node, leaf in self._tensors()}
        changed = changed_in_place(n, module_of(n))
        known = self.env.get(changed) if changed else None
        value = super().run_node(n)
        for (node, leaf), version in before.items():
            if leaf._version == version or node is changed or not _is_read_after(node, n):
                continue
            if not isinstance(known, Tensor) or _overlap(leaf, known):
                raise AdderizeError(f"{n.name} changes {node.name} in place, which is read later")
        return value

    def _tensors(self) -> Iterator[tuple[Node, Tensor]]:
        for node, value in self.env.items():
            for leaf in pytree.tree_leaves(value):
                if isinstance(leaf, Tensor):
                    yield node, leaf


def _is_read_after(node: Node, moment: Node) -> bool:
    return any(user > moment for user in node.users)


def _overlap(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors share elements of memory."""
    storage = a.untyped_storage()
    if storage.data_ptr() != b.untyped_storage().data_ptr():
        return False
    if a.dtype != b.dtype:
        return True
    mask = torch.zeros(storage.nbytes() // a.element_size(), dtype=torch.bool, device="cpu")
    mask.as_strided(a.size(), a.stride(), a.storage_offset()).fill_(True)
    return bool(mask.as_strided(b.size(), b.stride(), b.storage_offset()).any())


def _make_functional(traced: fx.GraphModule) -> None:
    """What reads a tensor after it was changed in place reads the result of the change."""
    in_place = {node: module_of(node) for node in traced.graph.nodes}
    for node, changed in thread_changes(traced.graph, in_place.get).items():
        if changed.op == "get_attr" or node.target is operator.setitem:
            raise AdderizeError(f"it changes {changed.target} in place")
        module, position = in_place[node], inplace_position(node)
        if module is not None:
            functional = copy.copy(module)
            functional.inplace = False  # type: ignore[assignment]
            traced.set_submodule(str(node.target), functional)
        elif "out" in node.kwargs:
            node.kwargs = {name: v for name, v in node.kwargs.items() if name != "out"}
        elif "inplace" in node.kwargs:
            node.kwargs = {**node.kwargs, "inplace": False}
        elif position is not None and len(node.args) > position:
            node.update_arg(position, False)
        elif (plain := _plain(node)) is not None:
            node.target = plain
        else:
            with traced.graph.inserting_before(node):
                twin = traced.graph.call_method("clone", (changed,))
            node.replace_input_with(changed, twin)


def _plain(node: Node) -> Any:
    """The function or method that does the same without changing anything."""
    if node.target in PLAIN_OPERATORS:
        return PLAIN_OPERATORS[node.target]
    name = function_name(node.target)
    if name in _NOT_IN_PLACE:
        return None
    if node.op == "call_method":
        return name if callable(getattr(Tensor, name, None)) else None
    return getattr(torch, name, None) or getattr(F, name, None)


def _is_identity(node: Node) -> bool:
    module = module_of(node)
    if module is not None:
        return isinstance(module, (nn.Identity, _DropoutNd, FakeQuantize)) and is_plain(module)
    name = operation(node)
    if "dropout" in name or name == "stochastic_depth":
        return node.kwargs.get("training") is False or False in node.args[1:]
    return False


def _fold_into_convolutions(traced: fx.GraphModule) -> None:
    calls = [module_of(node) for node in traced.graph.nodes]
    read = [traced.get_submodule(name) for name in read_layers(traced.graph)]
    for node in list(traced.graph.nodes):
        norm = module_of(node)
        if not isinstance(norm, nn.BatchNorm2d) or not is_foldable(norm):
            continue
        (source,) = node.all_input_nodes
        convolution = module_of(source)
        once = len(source.users) == 1 and calls.count(convolution) == 1
        alone = once and not any(convolution is layer for layer in read)
        if type(convolution) is nn.Conv2d and alone and is_plain(convolution):
            traced.set_submodule(str(source.target), _folded(convolution, norm))
            _take_out(node, source)


def _folded(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """A convolution with its norm. Channels that never vary give the norm's bias: scaled by
    1/sqrt(eps), their filters would take the bits of all others' where integers hold them."""
    fused, constant = fuse_conv_bn_eval(convolution, norm), never_vary(norm)
    assert fused.bias is not None
    bias = torch.zeros_like(fused.bias) if norm.bias is None else norm.bias
    with torch.no_grad():
        fused.weight.masked_fill_(constant.view(-1, 1, 1, 1), 0)
        fused.bias.copy_(torch.where(constant, bias, fused.bias))
    return fused


def never_vary(norm: _BatchNorm) -> Tensor:
    """The channels of which a norm saw constants only."""
    assert norm.running_var is not None
    return norm.running_var < _CONSTANT * norm.eps
