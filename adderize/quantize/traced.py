"""A network that torch.fx traces on its way into integers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx import Node

from adderize.dataflow.graphs import module_of, watched
from adderize.errors import AdderizeError
from adderize.quantize.byte_tensors import ByteGroup, ByteTensors
from adderize.quantize.convert import GraphConversion
from adderize.quantize.dropouts import Dropouts
from adderize.quantize.fake_layers import FakeQuantize
from adderize.quantize.float_graph import float_graph
from adderize.quantize.float_tracer import Hooked
from adderize.quantize.fuse import Fusion, fits_shapes, fuse
from adderize.quantize.memory_formats import keep_formats
from adderize.quantize.observe import Extremes, Observer, named_failures
from adderize.quantize.qparams import QParams
from adderize.quantize.simulate import simulate

_UNLIKE = 8


class TracedNetwork:
    """The adders hand bytes to each other; what follows them becomes part of them.

    Attributes:
        model: the graph, in floats until :meth:`convert`.
        hooked: how many forward hooks blocks had.
        fusions: what becomes a layer.
        apart: the nodes that join or part tensors of unlike ranges, and therefore in floats.
        kept_inputs: the smallest and the largest input that each call of a kept layer was observed
            with, by the names of the calls.
    """

    @classmethod
    def of(
        cls,
        model: nn.Module,
        inputs: Tensor | None = None,
        hooked: Hooked | None = None,
        *,
        trains: bool = False,
    ) -> TracedNetwork:
        """
        Args:
            model: in evaluation mode; its modules are used, not copied.
            inputs, hooked, trains: see :func:`float_graph`.

        Raises:
            Exception: whatever tracing the model raises.
        """
        network = cls(*float_graph(model, inputs, hooked, trains=trains))
        network._dropouts = Dropouts(network.model) if trains else None
        return network

    def __init__(self, model: fx.GraphModule, hooked: Hooked) -> None:
        self.model, self.hooked = model, hooked
        self._dropouts: Dropouts | None = None
        self.fusions: list[Fusion] = []
        self.apart: tuple[str, ...] = ()
        self.kept_inputs: dict[str, tuple[float, float]] = {}

    @property
    def remarks(self) -> tuple[str, ...]:
        names = ", ".join(name or "the model" for name in self.hooked)
        return (f"the forward hooks of {names} run on float32 tensors",) if names else ()

    def run(self, inputs: Tensor) -> Any:
        """The float network's output; notes the shapes of its float32 tensors for :meth:`fuse`."""
        return watched(self.model, inputs, _note_shape)

    def fuse(self) -> None:
        """Find the fusions, and which tensors become bytes."""
        self._describe(fuse(self.model.graph, fits_shapes))

    def fuse_as(self, absorbed: Mapping[str, Sequence[str]], apart: Collection[str]) -> None:
        """The same with the fusions of another time; AdderizeError where there are others."""
        names = {name for followers in absorbed.values() for name in followers}
        self._describe(fuse(self.model.graph, lambda _, node: node.name in names), apart)
        if self.absorbed != absorbed:
            raise AdderizeError(_OTHERWISE)

    def _describe(self, fusions: list[Fusion], apart: Collection[str] = ()) -> None:
        self.fusions, self.apart = fusions, tuple(apart)
        self._tensors = ByteTensors(self.model.graph, fusions, apart)
        self._made = {fusion.end: fusion for fusion in fusions}

    @property
    def groups(self) -> list[ByteGroup]:
        return list(self._tensors.groups.values())

    @property
    def absorbed(self) -> dict[str, list[str]]:
        """What each adder call took in, by the names of the nodes."""
        return {f.call.name: [node.name for node in f.nodes[1:]] for f in self.fusions}

    def observe(self, batches: Iterable[Tensor]) -> dict[Any, Observer]:
        """The values of each tensor that may become bytes."""
        observers = {node: Observer() for node in self._tensors}
        self._watch(batches, observers)
        self._part(observers)
        return observers

    def observe_kept(self, batches: Iterable[Tensor]) -> None:
        """The inputs of kept layers alone."""
        self._watch(batches, {})

    def _watch(self, batches: Iterable[Tensor], observers: Mapping[Node, Observer]) -> None:
        sources = {
            node.name: node.all_input_nodes[0]
            for node in self.model.graph.nodes
            if isinstance(module_of(node), (nn.Conv2d, nn.Linear))
        }
        ends = {source: Extremes() for source in sources.values()}

        def update(node: Node, value: Any) -> None:
            for seen in (observers, ends):
                if node in seen and isinstance(value, Tensor):
                    seen[node].update(value, node.name)

        for inputs in batches:
            with named_failures(f"a calibration batch of shape {tuple(inputs.shape)}"):
                watched(self.model, inputs, update)
        self.kept_inputs = {
            name: (ends[source].low, ends[source].high)
            for name, source in sources.items()
            if ends[source].low <= ends[source].high
        }

    def _part(self, observers: Mapping[Any, Observer]) -> None:
        """Tensors of unlike ranges get parameters of their own.

        With those of a tensor that is eight times as wide the other one would keep 5 bits.
        """
        apart: set[str] = set()
        for group in self.groups:
            seen = [observers[node] for node in group.read]
            whole = Observer.union(seen).width(group.with_zero)
            alive = [part for part in seen if (part.low, part.high) != (0, 0)]
            if any(_UNLIKE * part.width(group.with_zero) < whole for part in alive):
                apart |= self._tensors.joints(group)
        if apart:
            self._describe(self.fusions, sorted(apart))

    @property
    def noted_qparams(self) -> dict[str, QParams]:
        """Those of each group of byte tensors, from what :func:`settle` noted."""
        made = (node for node in self._tensors if node not in self._tensors.moving)
        return {self._tensors.group(node).name: node.meta["qparams"] for node in made}

    def simulate(self, qparams: Mapping[str, QParams], filter_bits: int | None) -> fx.GraphModule:
        """The network in floats that are rounded as those in integers will be, in place."""
        simulate(self.model, self._tensors, self.fusions, qparams, filter_bits)
        if self._dropouts is not None:
            self._dropouts.put_back()
        return self.model

    def convert(self, qparams: Mapping[str, QParams]) -> fx.GraphModule:
        """The network in integers, in place."""
        if {group.name for group in self.groups} != qparams.keys():
            raise AdderizeError(_OTHERWISE)
        calls = GraphConversion(self.model, self._tensors, qparams).calls
        self._made = {call: fusion for fusion, call in calls.items()}
        keep_formats(self.model)
        return self.model

    def layers(self) -> dict[Fusion, str]:
        """The names of the layers that the fusions became, in the order of their results."""
        return {fusion: str(call.target) for call, fusion in self._made.items()}

    def outputs(self, inputs: Tensor) -> dict[Fusion, Tensor]:
        """What each fusion gives, and after :meth:`convert` its layer."""
        found: dict[Fusion, Tensor] = {}

        def keep(node: Node, value: Any) -> None:
            if node in self._made:
                found[self._made[node]] = value

        watched(self.model, inputs, keep)
        return found


_OTHERWISE = (
    "the model is built otherwise than the quantized one that was saved: its layers follow each "
    "other in another way"
)


def values_of(network: fx.GraphModule, inputs: Tensor, names: Collection[str]) -> dict[str, Any]:
    """The values of a network's nodes of these names; rounded where that comes next."""
    found: dict[str, Any] = {}

    def keep(node: Node, value: Any) -> None:
        is_rounded = isinstance(module_of(node), FakeQuantize)
        name = node.all_input_nodes[0].name if is_rounded else node.name
        if name in names:
            found[name] = value

    watched(network, inputs, keep)
    return found


def _note_shape(node: Node, value: Any) -> None:
    if isinstance(value, Tensor) and value.dtype == torch.float32:
        node.meta["shape"] = tuple(value.shape)
