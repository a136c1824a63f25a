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
# Behind them, a channel of a norm may be made of several of the layer's.
_RESHAPES = frozenset({"Unflatten", "reshape", "unflatten", "view"})
_MOVES = _RESHAPES | {
    "PixelShuffle", "moveaxis", "movedim", "permute", "pixel_shuffle", "stack", "swapaxes",
    "transpose", "unsqueeze",
}  # fmt: skip


def find_norms_after(flow: Flow | None, layer: nn.Module, model: nn.Module) -> list[nn.Module]:
    """As :func:`find_norms`; where no flow is known, by the order of registration."""
    return find_norms(flow, layer) if flow else _find_norm_by_order(model, layer)


def find_norms(flow: Flow, layer: nn.Module) -> list[nn.Module]:
    """The trainable norms that all of a layer's output goes to, in every call of the layer.

    A norm counts where every path from the layer reaches it through identity, dropout, reshape,
    concatenation or pooling only. Of a batch or instance norm each channel must be of one of the
    layer's, which reshapes such as pixel shuffles do not leave so. It need not train where the
    layer's filters do not.

    Returns:
        the norms in order of execution; empty where some path meets an addition, an activation, a
        frozen norm or the model's output first.
    """
    channels = output_channels(layer)

    def counts(norm: nn.Module, moved: str) -> bool:
        if moved and keeps_channels_apart(norm):
            found = _channels(norm)
            if found % channels or (found != channels and moved not in _RESHAPES):
                return False
        return trains_with(norm, layer)

    return _find_norms(flow, layer, "users", _passes, counts)


def find_norms_before(flow: Flow, layer: nn.Module) -> list[nn.Module]:
    """The trainable norms that all of a layer's input comes from, in every call of the layer.

    As :func:`find_norms`, but a maximum of normalised values is not centred any more, and whichever
    channels they are of does not matter.
    """

    def passes(node: Node) -> bool:
        return _passes(node) and "max" not in node.name.lower()

    return _find_norms(flow, layer, "sources", passes, lambda norm, _: trains_with(norm, layer))


def _find_norms(
    flow: Flow,
    layer: nn.Module,
    side: str,
    passes: Callable[[Node], bool],
    counts: Callable[[nn.Module, str], bool],
) -> list[nn.Module]:
    found: list[Node] = []
    seen: set[tuple[Node, str]] = set()
    stack = [(call, "") for call in flow.calls(layer)]
    while stack:
        last, moved = stack.pop()
        neighbours: list[Node] = getattr(last, side)
        for node in neighbours:
            step = node, node.name if node.name in _MOVES else moved
            if step in seen:
                continue
            seen.add(step)
            if isinstance(node.module, NORMS) and counts(node.module, moved):
                found.append(node)
            elif passes(node):
                stack.append(step)
            else:
                return []
    found.sort(key=lambda node: node.position)
    return list(dict.fromkeys(node.module for node in found if node.module is not None))


def _passes(node: Node) -> bool:
    if node.module is None:
        return node.name in _PASSING_FUNCTIONS
    return isinstance(node.module, _PASSING_MODULES)


def is_norm(module: nn.Module) -> bool:
    return isinstance(module, NORMS) or type(module).__name__.startswith("FrozenBatchNorm")


def is_trainable_norm(module: nn.Module) -> bool:
    """Batch, group, layer or instance norm that is not frozen (one without gamma cannot be)."""
    return isinstance(module, NORMS) and all(p.requires_grad for p in module.parameters())


def trains_with(norm: nn.Module, layer: nn.Module) -> bool:
    """Whether a norm trains, or stands still as the layer's filters do.

    So that a frozen copy of a network, such as a momentum encoder, is converted as its original is.
    """
    filters = layer._parameters.get("weight")
    still = filters is not None and not filters.requires_grad
    return is_trainable_norm(norm) or (still and isinstance(norm, NORMS))


def keeps_channels_apart(norm: nn.Module) -> bool:
    """Whether a norm takes each channel's own mean away, as those of batches and instances do.

    The outputs of an adder lie far below zero, each channel's elsewhere. To a layer or group norm
    that is most of what it sees, and what an image changes is lost beside it.
    """
    if isinstance(norm, nn.GroupNorm):
        return norm.num_groups == norm.num_channels
    return not isinstance(norm, nn.LayerNorm)


def _find_norm_by_order(model: nn.Module, layer: nn.Module) -> list[nn.Module]:
    """The norm registered right after a layer, if it has as many channels; the last resort."""
    leaves = [module for module in model.modules() if is_leaf(module)]
    position = next(i for i, module in enumerate(leaves) if module is layer)
    channels = output_channels(layer)
    for module in leaves[position + 1 :]:
        if trains_with(module, layer) and _channels(module) == channels:
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
    """Give a layer a batch norm of its own, on its filters' device, in its mode, frozen where they
    are; options are those of ``nn.BatchNorm2d``."""
    kind = nn.BatchNorm1d if isinstance(layer, AdderLinear) else nn.BatchNorm2d
    weight = layer.weight
    channels = layer.in_channels if isinstance(layer, BinaryConv2d) else weight.shape[0]
    layer.norm = kind(channels, device=weight.device, dtype=weight.dtype, **options)
    layer.norm.train(layer.training).requires_grad_(weight.requires_grad)
