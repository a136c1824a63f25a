"""The norm after an adder, or before a binary layer: found or inserted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from adderize.dataflow import NORMS, Flow, Node, is_leaf
from adderize.layers import AdderLinear, BinaryConv2d, Converted

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
    seen: set[Node] = set()
    stack = list(flow.calls(layer))
    while stack:
        neighbours: list[Node] = getattr(stack.pop(), side)
        for node in neighbours:
            if node in seen:
                continue
            seen.add(node)
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


def is_norm(module: nn.Module) -> bool:
    return isinstance(module, NORMS) or type(module).__name__.startswith("FrozenBatchNorm")


def is_trainable_norm(module: nn.Module) -> bool:
    """Batch, group, layer or instance norm that is not frozen (one without gamma cannot be)."""
    return isinstance(module, NORMS) and all(p.requires_grad for p in module.parameters())


def keeps_channels_apart(norm: nn.Module) -> bool:
    """Whether a norm takes each channel's own mean away, as those of batches and instances do.

    The outputs of an adder lie far below zero, each channel's elsewhere. To a layer or group norm
    that is most of what it sees, and what an image changes is lost beside it.
    """
    if isinstance(norm, nn.GroupNorm):
        return norm.num_groups == norm.num_channels
    return not isinstance(norm, nn.LayerNorm)


def find_norm_by_order(model: nn.Module, layer: nn.Module) -> list[nn.Module]:
    """The norm registered right after a layer, if it has as many channels; the last resort."""
    leaves = [module for module in model.modules() if is_leaf(module)]
    position = next(i for i, module in enumerate(leaves) if module is layer)
    channels = output_channels(layer)
    for module in leaves[position + 1 :]:
        if is_trainable_norm(module) and _channels(module) == channels:
            return [module]
        if not isinstance(module, _PASSING_MODULES):
            return []
    return []


def output_channels(layer: nn.Module) -> int:
    """Of a convolution, linear layer or adder; filters of transposed ones start with the inputs."""
    own: Any = layer
    return int(own.out_features if hasattr(own, "out_features") else own.out_channels)


def _channels(norm: nn.Module) -> Any:
    if isinstance(norm, nn.LayerNorm):
        return norm.normalized_shape[-1]
    return norm.num_channels if isinstance(norm, nn.GroupNorm) else norm.num_features


def insert_norm(layer: Converted, **options: Any) -> None:
    """Give a layer a batch norm of its own, on its filters' device, in its mode; options are those
    of ``nn.BatchNorm2d``."""
    kind = nn.BatchNorm1d if isinstance(layer, AdderLinear) else nn.BatchNorm2d
    weight = layer.weight
    channels = layer.in_channels if isinstance(layer, BinaryConv2d) else weight.shape[0]
    layer.norm = kind(channels, device=weight.device, dtype=weight.dtype, **options)
    layer.norm.train(layer.training)
