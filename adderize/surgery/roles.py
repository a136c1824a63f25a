"""Stem, head and gates of a model, found by its data flow."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from torch import nn
from torch.nn.parameter import is_lazy

from adderize.dataflow import NORMS, Flow, Node
from adderize.surgery.functions import LAYERS, MULTIPLICATIONS

_POOLS = {"adaptive_avg_pool2d", "adaptive_max_pool2d"}


@dataclass
class Roles:
    """Which layers have a special place in the model, and whether its flow is known at all."""

    traced: bool = False
    called: set[nn.Module] = field(default_factory=set)
    stem: set[nn.Module] = field(default_factory=set)
    head: set[nn.Module] = field(default_factory=set)
    gates: set[nn.Module] = field(default_factory=set)
    inside_fast_path: set[nn.Module] = field(default_factory=set)


def find_roles(model: nn.Module, flows: Sequence[Flow], layers: Sequence[nn.Module]) -> Roles:
    """The roles of a model's layers.

    A stem layer reads nothing but the model's input; a head layer's output goes nowhere but into
    the model's output, both without another layer between. A gate works on a globally pooled vector
    and multiplies a feature map. Where no flow is known, the first convolution is the stem and the
    last layer the head.
    """
    roles = Roles(traced=bool(flows))
    for module in model.modules():
        if isinstance(module, (nn.TransformerEncoderLayer, nn.MultiheadAttention)):
            roles.inside_fast_path.update(module.modules())
    for flow in flows:
        roles.called |= flow.called
        roles.stem |= _layers_at("sources", "input", flow, layers)
        roles.head |= _layers_at("users", "output", flow, layers)
        roles.gates |= _gates(flow)
    if not flows and layers:
        convolutions = [layer for layer in layers if not isinstance(layer, nn.Linear)]
        roles.stem.add((convolutions or layers)[0])
        roles.head.add(layers[-1])
    return roles


def _layers_at(side: str, end: str, flow: Flow, layers: Iterable[nn.Module]) -> set[nn.Module]:
    """Layers all of whose paths to one side lead to an end, without another layer between."""
    open_ended: dict[Node, bool] = {}
    order = flow.nodes if side == "sources" else reversed(flow.nodes)
    for node in order:
        neighbours: list[Node] = getattr(node, side)
        open_ended[node] = node.name == end or (
            bool(neighbours)
            and all(open_ended[other] and not is_layer(other) for other in neighbours)
        )
    return {
        layer
        for layer in layers
        if flow.calls(layer) and all(open_ended[call] for call in flow.calls(layer))
    }


def is_layer(node: Node) -> bool:
    """Whether a call applies a weight matrix or filters."""
    if node.module is None:
        return node.name in LAYERS
    if isinstance(node.module, NORMS):
        return False
    return any(is_lazy(p) or p.dim() > 1 for p in node.module.parameters())


def _gates(flow: Flow) -> set[nn.Module]:
    pooled: set[Node] = set()
    gating: dict[Node, bool] = {}
    for node in flow.nodes:
        if _is_global_pool(node) or (node.sources and pooled.issuperset(node.sources)):
            pooled.add(node)
    for node in reversed(flow.nodes):
        gating[node] = any(
            gating[user] if user in pooled else user.name in MULTIPLICATIONS for user in node.users
        )
    return {
        node.module
        for node in flow.nodes
        if node.module is not None and node in pooled and gating[node] and is_layer(node)
    }


def _is_global_pool(node: Node) -> bool:
    if isinstance(node.module, (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)):
        return node.module.output_size in (1, (1, 1))
    if node.name in _POOLS:
        return bool(node.constants) and all(
            size == 1 for size in node.constants if isinstance(size, int) and size is not False
        )
    # A mean over channels alone leaves a map.
    return node.name in ("mean", "amax") and 1 not in node.constants[:2]
