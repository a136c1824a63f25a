"""How a network was quantized: what it carries along, and what its manifest keeps."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from adderize.errors import AdderizeError
from adderize.quantize.float_tracer import Hooked
from adderize.quantize.memory_formats import use_channels_last
from adderize.quantize.qparams import QParams
from adderize.quantize.quantization_report import QuantizationReport
from adderize.quantize.traced import TracedNetwork
from adderize.quantize.untraced import UntracedNetwork
from adderize.surgery.records import attach, attached

_KEY = "adderize_quantization"


@dataclass(frozen=True)
class Quantization:
    """Everything about a quantized network that its state dict does not hold.

    Attributes:
        report: for people.
        qparams: of each group of byte tensors, or of each layer's input, by name.
        absorbed: the nodes that each adder call took in; None for layer by layer.
        apart: the nodes that join or part tensors of unlike ranges, and therefore in floats.
        entries: the manifest's entries of the float network's adders; None where it had some that
            no manifest describes.
        hooked: how many forward pre-hooks and hooks blocks had.
        settings: of the float network's layers; None where an earlier version kept none.
        kept_inputs: the smallest and the largest input of each call of a kept layer on the
            calibration data, by the names of the calls; none of layers that it did not reach, or
            where an earlier version kept none.
    """

    report: QuantizationReport
    qparams: dict[str, QParams]
    absorbed: dict[str, list[str]] | None
    apart: tuple[str, ...]
    entries: dict[str, dict[str, Any]] | None
    hooked: Hooked = field(default_factory=dict)
    settings: dict[str, dict[str, Any]] | None = None
    kept_inputs: dict[str, tuple[float, float]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, without the entries of the adders."""
        return {
            "grids": {name: asdict(qparams) for name, qparams in self.qparams.items()},
            "absorbed": self.absorbed,
            "apart": list(self.apart),
            "hooked": {name: list(counts) for name, counts in self.hooked.items()},
            "settings": self.settings,
            "kept_inputs": {name: list(ends) for name, ends in self.kept_inputs.items()},
            "report": self.report.to_dict(),
        }

    @classmethod
    def from_dict(cls, content: Any, entries: dict[str, dict[str, Any]]) -> Quantization:
        """Raises AdderizeError where the content is damaged."""
        try:
            qparams = {name: QParams(**values) for name, values in content["grids"].items()}
            if not all(map(_are_qparams, qparams.values())):
                raise TypeError("expected a scale, a zero point and bits")
            report = QuantizationReport.from_dict(content["report"])
            absorbed = content["absorbed"]
            if absorbed is not None:
                absorbed = {name: list(followers) for name, followers in absorbed.items()}
                if not all(isinstance(x, str) for names in absorbed.values() for x in names):
                    raise TypeError("expected the names of nodes that adder calls took in")
            # Folders of earlier versions say nothing of hooks.
            hooked = {name: (int(a), int(b)) for name, (a, b) in content.get("hooked", {}).items()}
            settings = content.get("settings")
            if settings is not None:
                settings = {name: dict(values) for name, values in settings.items()}
            kept_inputs = {
                name: (float(low), float(high))
                for name, (low, high) in content.get("kept_inputs", {}).items()
            }
            if not all(low <= high for low, high in kept_inputs.values()):
                raise ValueError("expected ranges of kept layers' inputs")
            return cls(
                report, qparams, absorbed, tuple(content["apart"]), entries, hooked, settings,
                kept_inputs,
            )  # fmt: skip
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise AdderizeError(f"the manifest's quantization is damaged: {error!r}") from error


def _are_qparams(qparams: QParams) -> bool:
    kinds = [type(value) for value in (qparams.scale, qparams.zero_point, qparams.bits)]
    if kinds != [float, int, int] or not abs(qparams.zero_point) < 2**63:
        return False
    return 0 < qparams.scale < math.inf and 2 <= qparams.bits <= 8


def finished(model: nn.Module, record: Quantization) -> nn.Module:
    """The quantized network ready for use, with its record."""
    use_channels_last(model)
    model.eval().requires_grad_(False)
    attach(model, _KEY, record)
    return model


def quantization_of(model: nn.Module) -> Quantization | None:
    """The record of a quantized network; None for any other."""
    return attached(model, _KEY, Quantization)


def rebuild(model: nn.Module, record: Quantization) -> nn.Module:
    """A float network in the form that a record describes; filters and scales are still to load.

    Args:
        model: with the adders of the float network; its modules are used, not copied.

    Raises:
        AdderizeError: the network is built otherwise than the recorded one.
    """
    network: TracedNetwork | UntracedNetwork
    if record.absorbed is None:
        network = UntracedNetwork(model)
        network.fuse()
    else:
        try:
            network = TracedNetwork.of(model.eval(), hooked=record.hooked)
        except Exception as error:
            raise AdderizeError(
                f"the model cannot be traced as the saved one was: {error}"
            ) from error
        # Nothing moved the tensor that a grid is named after: earlier versions moved fewer bytes.
        network.fuse_as(record.absorbed, (*record.apart, *record.qparams))
    return finished(network.convert(record.qparams), record)
