"""Parameters that start at zero and so keep the gradient from the layers before them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import nn
from torch.nn.parameter import is_lazy

from adderize.dataflow import Flow, Node
from adderize.errors import listed
from adderize.surgery.functions import SCALINGS


@dataclass(frozen=True)
class ZeroScale:
    """A parameter of zeros that multiplies what layers give before it reaches the output.

    Attributes:
        name: qualified name.
        layers: names of the layers that get no gradient in the first step.
    """

    name: str
    parameter: nn.Parameter
    layers: tuple[str, ...]

    @property
    def is_gamma(self) -> bool:
        """Whether it is the scale of a norm, which one may start at 1 instead."""
        return self.name.rpartition(".")[2] == "weight" and self.parameter.dim() == 1

    def __str__(self) -> str:
        return (
            f"{self.name} starts at zero: no gradient reaches {listed(self.layers)} in the first "
            "step; start it at a small value"
        )


def find_zero_scales(
    model: nn.Module, flows: Sequence[Flow], layers: Mapping[nn.Module, str]
) -> list[ZeroScale]:
    """Those behind the given layers (which start anew), by what they keep from them."""
    zeros = {
        parameter: name
        for name, parameter in model.named_parameters()
        if not name.endswith("bias") and _is_zero(parameter)
    }
    blocked: dict[nn.Parameter, list[str]] = {}
    for flow in flows if zeros else ():
        scales = {node: _scales_of(node, zeros, layers) for node in flow.nodes}
        learning: set[Node] = set()
        for node in reversed(flow.nodes):
            if node.name == "output" or any(
                user in learning and not scales[user] for user in node.users
            ):
                learning.add(node)
        for layer, name in layers.items():
            calls = flow.calls(layer)
            if learning.isdisjoint(calls):
                for parameter in _first_behind(calls, scales):
                    blocked.setdefault(parameter, []).append(name)
    return [
        ZeroScale(zeros[parameter], parameter, tuple(dict.fromkeys(names)))
        for parameter, names in blocked.items()
    ]


def _is_zero(parameter: nn.Parameter) -> bool:
    if is_lazy(parameter):  # drawn, or ones, once there is a batch
        return False
    values = parameter.detach()
    if values.is_meta or not values.numel() or not values.is_floating_point():
        return False
    # One element tells nearly always, without reading all of a large tensor.
    return not bool(values[(0,) * values.dim()]) and not bool(values.any())


def _scales_of(
    node: Node, zeros: Collection[nn.Parameter], fresh: Collection[nn.Module]
) -> list[nn.Parameter]:
    if node.module is None:
        return [p for p in node.parameters if p in zeros] if node.name in SCALINGS else []
    weight = node.module._parameters.get("weight")
    return [weight] if weight is not None and weight in zeros and node.module not in fresh else []


def _first_behind(
    calls: Sequence[Node], scales: Mapping[Node, Sequence[nn.Parameter]]
) -> Iterator[nn.Parameter]:
    waiting, seen = [*calls], {*calls}
    while waiting:
        for user in waiting.pop().users:
            if user not in seen:
                seen.add(user)
                yield from scales[user]
                if not scales[user]:
                    waiting.append(user)
