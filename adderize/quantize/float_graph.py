"""A float network as a graph of plain calls without changes in place."""

from __future__ import annotations

import contextlib
import copy
import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.fx import Node
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.utils.fusion import fuse_conv_bn_eval

from adderize.dataflow.symbolic import LayerTracer
from adderize.errors import AdderizeError
from adderize.quantize.calls import has_hooks, is_foldable, module_of, operation

_IN_PLACE: dict[Any, Callable[..., Any]] = {
    operator.iadd: torch.add,
    operator.isub: torch.sub,
    operator.imul: torch.mul,
    operator.itruediv: torch.div,
    torch.relu_: torch.relu,
}
# What a model says about its inputs.
_STATEMENTS = {"default_cfg", "example_input_array", "image_size", "input_size", "pretrained_cfg"}


def float_graph(model: nn.Module) -> fx.GraphModule:
    """The model in evaluation mode as a graph; raises whatever tracing it raises.

    What does nothing in evaluation is left out, kept convolutions take their batch norms in, and
    changes in place become values of their own. The model's modules are used, not copied.
    """
    with _split_norm_activations(model):
        traced = fx.GraphModule(model, LayerTracer().trace(model))
    _make_functional(traced)
    for node in traced.graph.nodes:
        if _is_identity(node):
            node.replace_all_uses_with(node.args[0])
            traced.graph.erase_node(node)
        # A channels_last tensor has the same values in another order of memory.
        elif (node.op, node.target) == ("call_method", "view"):
            is_cast = any(isinstance(argument, torch.dtype) for argument in node.args)
            node.target = "view" if is_cast else "reshape"
    _fold_into_convolutions(traced)
    traced.graph.lint()
    traced.recompile()
    for name in _STATEMENTS & vars(model).keys() | _STATEMENTS & vars(type(model)).keys():
        setattr(traced, name, getattr(model, name))
    return traced


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


def _make_functional(traced: fx.GraphModule) -> None:
    """What reads a tensor after it was changed in place reads the result of the change."""
    order = {node: position for position, node in enumerate(traced.graph.nodes)}
    if any(node.target is operator.setitem for node in order):
        raise AdderizeError("it assigns parts of a tensor (x[...] = y)")
    in_place = {node for node in order if getattr(module_of(node), "inplace", False)}
    for node, position in order.items():
        changed = _changed(node, traced, node in in_place)
        if changed is not None:
            later = {user for user in changed.users if order[user] > position}
            changed.replace_all_uses_with(node, delete_user_cb=later.__contains__)


def _changed(node: Node, traced: fx.GraphModule, by_module: bool) -> Node | None:
    """The tensor that a node changes in place, None if none; the node then no longer does."""
    module, changes = module_of(node), by_module
    if by_module:
        functional = copy.copy(module)
        functional.inplace = False  # type: ignore[union-attr]
        traced.set_submodule(str(node.target), functional)  # type: ignore[arg-type]
    elif node.kwargs.get("inplace"):
        changes, node.kwargs = True, {**node.kwargs, "inplace": False}
    elif node.op == "call_function" and node.target in _IN_PLACE:
        changes, node.target = True, _IN_PLACE[node.target]
    elif node.op == "call_method" and str(node.target).endswith("_"):
        changes, plain = True, str(node.target).rstrip("_")
        if hasattr(torch.Tensor, plain):
            node.target = plain
    first = node.args[0] if node.args else None
    return first if changes and isinstance(first, Node) else None


def _is_identity(node: Node) -> bool:
    module = module_of(node)
    if module is not None:
        return isinstance(module, (nn.Identity, _DropoutNd))
    name = operation(node)
    if "dropout" in name or name == "stochastic_depth":
        return node.kwargs.get("training") is False or False in node.args[1:]
    return False


def _fold_into_convolutions(traced: fx.GraphModule) -> None:
    calls = [module_of(node) for node in traced.graph.nodes]
    for node in list(traced.graph.nodes):
        norm = module_of(node)
        if not isinstance(norm, nn.BatchNorm2d) or not is_foldable(norm):
            continue
        (source,) = node.all_input_nodes
        convolution = module_of(source)
        once = len(source.users) == 1 and calls.count(convolution) == 1
        if type(convolution) is nn.Conv2d and once and not has_hooks(convolution):
            traced.set_submodule(str(source.target), fuse_conv_bn_eval(convolution, norm))
            node.replace_all_uses_with(source)
            traced.graph.erase_node(node)
