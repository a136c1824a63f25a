"""The norm after an adder, or before a binary layer: finding or inserting it, its statistics."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree

from adderize.binary import BinaryConv2d
from adderize.dataflow import NORMS, Flow, Node, is_leaf
from adderize.errors import AdderizeError
from adderize.layers import AdderConv2d, AdderLinear

_PASSING_MODULES = (
    nn.Identity, nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle,
    nn.modules.dropout._DropoutNd,
    nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd, nn.modules.pooling._AdaptiveAvgPoolNd,
)  # fmt: skip
_PASSING_FUNCTIONS = frozenset({
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_max_pool1d", "adaptive_max_pool2d",
    "alpha_dropout", "amax", "avg_pool1d", "avg_pool2d", "cat", "channel_shuffle", "chunk", "clone",
    "concat", "concatenate", "contiguous", "dropout", "dropout1d", "dropout2d", "expand",
    "feature_alpha_dropout", "flatten", "float", "getitem", "hstack", "max_pool1d", "max_pool2d",
    "mean", "moveaxis", "movedim", "permute", "pixel_shuffle", "pixel_unshuffle", "reshape",
    "split", "split_with_sizes", "squeeze", "stack", "stochastic_depth", "swapaxes",
    "tensor_split", "to", "transpose", "type", "type_as", "unbind", "unflatten", "unsqueeze",
    "view", "vstack",
})  # fmt: skip


def find_norms(flow: Flow, layer: nn.Module) -> list[nn.Module]:
    """The trainable norms that all of a layer's output goes to, in every call of the layer.

    A norm counts where every path from the layer reaches it through identity, dropout, reshape,
    concatenation or pooling only.

    Returns:
        the norms in order of execution; empty where some path meets an addition, an activation, a
        frozen norm or the model's output first.
    """
    return _find_norms(flow, layer, "users", _passes)


def find_norms_before(flow: Flow, layer: nn.Module) -> list[nn.Module]:
    """The trainable norms that all of a layer's input comes from, in every call of the layer.

    As :func:`find_norms`, but a maximum of normalised values is not centred any more.
    """
    return _find_norms(flow, layer, "sources", lambda node: _passes(node) and not _is_maximum(node))


def _find_norms(
    flow: Flow, layer: nn.Module, side: str, passes: Callable[[Node], bool]
) -> list[nn.Module]:
    found: list[Node] = []
    seen: set[int] = set()
    stack = list(flow.calls(layer))
    while stack:
        neighbours: list[Node] = getattr(stack.pop(), side)
        for node in neighbours:
            if id(node) in seen:
                continue
            seen.add(id(node))
            if node.module is not None and is_trainable_norm(node.module):
                found.append(node)
            elif passes(node):
                stack.append(node)
            else:
                return []
    found.sort(key=lambda node: node.position)
    return list(dict.fromkeys(node.module for node in found if node.module is not None))


def _is_maximum(node: Node) -> bool:
    return "max" in node.name.lower()


def _passes(node: Node) -> bool:
    if node.module is None:
        return node.name in _PASSING_FUNCTIONS
    return isinstance(node.module, _PASSING_MODULES)


def is_trainable_norm(module: nn.Module) -> bool:
    """Batch, group, layer or instance norm that is not frozen (one without gamma cannot be)."""
    return isinstance(module, NORMS) and all(p.requires_grad for p in module.parameters())


def find_norm_by_order(model: nn.Module, layer: nn.Module) -> list[nn.Module]:
    """The norm registered right after a layer, if it has as many channels; the last resort."""
    leaves = [module for module in model.modules() if is_leaf(module)]
    position = next(i for i, module in enumerate(leaves) if module is layer)
    channels = next(layer.parameters()).shape[0]
    for module in leaves[position + 1 :]:
        if is_trainable_norm(module) and _channels(module) == channels:
            return [module]
        if not isinstance(module, _PASSING_MODULES):
            return []
    return []


def _channels(norm: nn.Module) -> Any:
    if isinstance(norm, nn.LayerNorm):
        return norm.normalized_shape[-1]
    return norm.num_channels if isinstance(norm, nn.GroupNorm) else norm.num_features


def insert_norm(layer: AdderConv2d | AdderLinear | BinaryConv2d, **options: Any) -> nn.Module:
    """Give a layer a batch norm of its own, on its filters' device, in its mode; options are those
    of ``nn.BatchNorm2d``."""
    kind = nn.BatchNorm1d if isinstance(layer, AdderLinear) else nn.BatchNorm2d
    weight = layer.weight
    channels = layer.in_channels if isinstance(layer, BinaryConv2d) else weight.shape[0]
    layer.norm = kind(channels, device=weight.device, dtype=weight.dtype, **options)
    layer.norm.train(layer.training)
    return layer.norm


def reset_zero_gamma(norm: nn.Module) -> bool:
    """Set a zero-initialised gamma to 1: with zeros the first gradients of an adder vanish."""
    gamma = getattr(norm, "weight", None)
    if not isinstance(gamma, Tensor) or gamma.is_meta or bool(gamma.detach().any()):
        return False
    nn.init.ones_(gamma)
    return True


@torch.no_grad()
def recalibrate(model: nn.Module, batches: Iterable[Any]) -> nn.Module:
    """Re-estimate the statistics of every batch norm as the plain average over some batches.

    Running averages lag behind fast-moving adder filters: after a high learning rate the network
    may be fine and its statistics not. Only forward passes are made; filters, training mode and
    momenta stay as they were, and so do the statistics of norms that the forward does not call.

    Args:
        model: any module with batch norms that track statistics.
        batches: inputs as a DataLoader gives them: tensors, or tuples and lists whose first
            element is the input. They are moved to the model's device.

    Returns:
        the model itself.

    Raises:
        AdderizeError: no batch norm that tracks statistics, none that the forward calls, or no
            batches.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        raise AdderizeError("the model has no batch norm with running statistics to recalibrate")
    iterator = iter(batches)
    first = next(iterator, None)
    if first is None:
        raise AdderizeError("recalibrate got no batches; expected at least one")
    device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    modes = {module: module.training for module in model.modules()}
    momenta = [norm.momentum for norm in norms]
    before = [copy.deepcopy(norm.state_dict()) for norm in norms]
    try:
        model.eval()
        for norm in norms:
            norm.train()
            norm.reset_running_stats()
            norm.momentum = None
        for batch in itertools.chain([first], iterator):
            inputs = batch[0] if isinstance(batch, (tuple, list)) else batch
            model(pytree.tree_map_only(Tensor, lambda tensor: tensor.to(device), inputs))
        uncalled = [norm.num_batches_tracked == 0 for norm in norms]
        if all(uncalled):
            raise AdderizeError(
                "the model's forward called none of its batch norms: pass the model that holds them"
            )
        for norm, state in itertools.compress(zip(norms, before, strict=True), uncalled):
            norm.load_state_dict(state)
    except BaseException:
        for norm, state in zip(norms, before, strict=True):
            norm.load_state_dict(state)
        raise
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, training in modes.items():
            module.training = training
    return model
