"""What a transfer did to each layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from adderize.tables import Report, Table, csv_text, layer_text, lines_text, markdown, shape_text

_LOW = 0.6
_OWN_LOSS = 0.1


@dataclass(frozen=True)
class LayerTransfer:
    """One adder and how far its outputs correlate with those of the teacher's layer.

    Each correlation is taken channel by channel over images and positions, between what the adder
    gives on the model's own inputs, those that the layers before it give by now, and what the
    teacher's layer gives in the teacher; the mean over channels.

    Attributes:
        name, kind, shape: qualified name, class name, shape of the filters.
        limit: the correlation of the teacher's own layer on the model's inputs: what is lost there,
            earlier layers have lost.
        before: with the filters as they were.
        after: with the filters as they are.
        minimum: over the channels, after.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    limit: float
    before: float
    after: float
    minimum: float

    @property
    def remark(self) -> str:
        """What to think of a low correlation; empty where it is not low."""
        if self.after >= _LOW:
            return ""
        if self.limit - self.after >= _OWN_LOSS:
            return "low: keep it as a convolution"
        return "low: its inputs are no longer the teacher's"


@dataclass(frozen=True)
class TransferReport(Report):
    """The layers in order of execution; prints as a table.

    Attributes:
        method: ``"match"`` or ``"reconstruct"``.
        images: how many were used.
        layers: one entry an adder.
        uncalled: adders that the forward does not call; they stayed as they were.
    """

    method: str
    images: int
    layers: tuple[LayerTransfer, ...]
    uncalled: tuple[str, ...] = ()

    @property
    def correlation(self) -> float:
        """The mean over the layers, after."""
        return sum(layer.after for layer in self.layers) / len(self.layers)

    @property
    def low(self) -> list[str]:
        """The layers that lose so much that they had better stay convolutions."""
        return [layer.name for layer in self.layers if layer.remark.endswith("convolution")]

    def to_dict(self) -> dict[str, Any]:
        layers = [{**asdict(layer), "remark": layer.remark} for layer in self.layers]
        return {
            "method": self.method,
            "images": self.images,
            "correlation": self.correlation,
            "layers": layers,
            "uncalled": list(self.uncalled),
            "low": self.low,
        }

    def to_csv(self) -> str:
        names = [field.name for field in fields(LayerTransfer)]
        rows = [
            [*({**asdict(layer), "shape": shape_text(layer.shape)}[n] for n in names), layer.remark]
            for layer in self.layers
        ]
        return csv_text([*names, "remark"], rows)

    def to_markdown(self) -> str:
        return "\n\n".join([self._table().markdown(), *map(markdown, self._sentences())])

    def __str__(self) -> str:
        return "\n".join([self._table().text(), "", lines_text(self._sentences())])

    def _table(self) -> Table:
        header = ["layer", "kind", "shape", "remark", "limit", "before", "after", "minimum"]
        rows = [
            [
                layer_text(layer.name), layer.kind, shape_text(layer.shape), layer.remark,
                *(f"{x:.3f}" for x in (layer.limit, layer.before, layer.after, layer.minimum)),
            ]
            for layer in self.layers
        ]  # fmt: skip
        return Table(header, rows, texts=4)

    def _sentences(self) -> list[str]:
        sentences = [
            f"{self.method}: {len(self.layers)} adders on {self.images} images, correlation with "
            f"the teacher {self.correlation:.3f}"
        ]
        if self.low:
            sentences.append(
                f"{len(self.low)} lose much of what the teacher knows: convert a copy of the "
                f"teacher without them (exclude={self.low!r}), and transfer again"
            )
        if self.method == "match" and any(layer.remark for layer in self.layers):
            sentences.append("reconstruct() fits each layer to the teacher's outputs besides")
        if self.uncalled:
            sentences.append(f"not called, and left as they were: {', '.join(self.uncalled)}")
        return sentences


def row_from(content: Mapping[str, Any]) -> LayerTransfer:
    """The entry that a state file holds."""
    values = {**content, "shape": tuple(content["shape"])}
    return LayerTransfer(**{field.name: values[field.name] for field in fields(LayerTransfer)})


def mean_of(values: Sequence[float]) -> float:
    """The mean over the channels that vary; 0 where none does."""
    found = [value for value in values if value == value]
    return sum(found) / len(found) if found else 0.0
