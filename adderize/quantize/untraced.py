"""A network that cannot be traced on its way into integers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any, ClassVar

from torch import Tensor, nn

from adderize.errors import AdderizeError
from adderize.evaluation import first_input
from adderize.layers import pads_with_zeros
from adderize.quantize.byte_tensors import ByteGroup
from adderize.quantize.calls import adders_of
from adderize.quantize.convert import convert_layer
from adderize.quantize.fake_layers import FakeQuantAdder, FakeQuantize, fake_quantized
from adderize.quantize.float_tracer import Hooked
from adderize.quantize.fuse import Fusion
from adderize.quantize.observe import Observer, named_failures
from adderize.quantize.qparams import QParams


class UntracedNetwork:
    """Layer by layer: each adder makes bytes of its own input and gives float32.

    Args:
        model: its modules are used, not copied.

    Attributes:
        model: in floats until :meth:`convert`.
        fusions: the adders with their own norms; after :meth:`observe` those that were called.
    """

    absorbed = None
    apart: tuple[str, ...] = ()
    hooked: ClassVar[Hooked] = {}
    kept_inputs: ClassVar[dict[str, tuple[float, float]]] = {}

    def __init__(self, model: nn.Module, reason: str = "") -> None:
        self.model = model
        self.remarks = (f"layer by layer, since it cannot be traced: {reason}",)
        self.fusions: list[Fusion] = []

    def fuse(self) -> None:
        self.fusions = [Fusion(layer, name) for name, layer in adders_of(self.model).items()]
        self._made: dict[nn.Module, Fusion] = {fusion.layer: fusion for fusion in self.fusions}

    def fuse_prepared(self) -> None:
        """The same for a network in quantization-aware training."""
        self.fuse()
        self.fusions = [f for f in self.fusions if isinstance(f.layer, FakeQuantAdder)]

    @property
    def noted_qparams(self) -> dict[str, QParams]:
        fakes: Any = self.fusions
        return {fusion.name: fusion.layer.grid.qparams for fusion in fakes}

    @property
    def groups(self) -> list[ByteGroup]:
        return [
            ByteGroup(fusion.name, [fusion], pads_with_zeros(fusion.layer), inputs=True)
            for fusion in self.fusions
        ]

    def observe(self, batches: Iterable[Tensor]) -> dict[Any, Observer]:
        """The inputs of each adder that the model calls."""
        observers: dict[Any, Observer] = {}

        def look(fusion: Fusion, inputs: Tensor, output: Tensor) -> None:
            observers.setdefault(fusion, Observer()).update(inputs, fusion.name)

        self._watch(look, batches)
        self.fusions = list(observers)
        return observers

    def simulate(self, qparams: Mapping[str, QParams], filter_bits: int | None) -> nn.Module:
        """The network in floats that are rounded as those in integers will be, in place."""
        made: dict[nn.Module, nn.Module] = {}
        for fusion in self.fusions:
            grid = FakeQuantize(qparams[fusion.name])
            made[fusion.layer] = fake_quantized(fusion.layer, grid, filter_bits, rounds_input=True)
        self._replace(made)
        return self.model

    def convert(self, qparams: Mapping[str, QParams]) -> nn.Module:
        """The network in integers, in place; of a single layer its new form."""
        fusions = {fusion.name: fusion for fusion in self.fusions}
        made: dict[nn.Module, nn.Module] = {}
        for name, own in qparams.items():
            if name not in fusions:
                raise AdderizeError(f"the model has no adder {name} to put into integers")
            made[fusions[name].layer] = convert_layer(fusions[name], own)
        self._replace(made)
        self._made = {made[fusions[name].layer]: fusions[name] for name in qparams}
        return self.model

    def _replace(self, made: Mapping[nn.Module, nn.Module]) -> None:
        for parent in list(self.model.modules()):
            for name, child in list(parent._modules.items()):
                if child is not None and child in made:
                    setattr(parent, name, made[child])
        self.model = made.get(self.model, self.model)

    def layers(self) -> dict[Fusion, str]:
        """The names of the layers that the fusions became."""
        return {fusion: fusion.name for fusion in self._made.values()}

    def outputs(self, inputs: Tensor) -> dict[Fusion, Tensor]:
        """What the first call of each adder gives, and after :meth:`convert` of its layer."""
        found: dict[Fusion, Tensor] = {}

        def look(fusion: Fusion, _: Any, output: Tensor) -> None:
            found.setdefault(fusion, output)

        self._watch(look, [inputs])
        return found

    def _watch(
        self, look: Callable[[Fusion, Tensor, Tensor], None], batches: Iterable[Tensor]
    ) -> None:
        """Run the model and show a function each call of a layer: fusion, input, output."""

        def hook(layer: nn.Module, args: Any, kwargs: Mapping[str, Any], output: Tensor) -> None:
            look(self._made[layer], first_input(args, kwargs), output)

        with ExitStack() as hooks:
            for layer in self._made:
                hooks.enter_context(layer.register_forward_hook(hook, with_kwargs=True))
            for inputs in batches:
                with named_failures(f"a calibration batch of shape {tuple(inputs.shape)}"):
                    self.model(inputs.clone())
