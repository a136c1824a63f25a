"""How well a network does at each stage on its way from convolutions to adders."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from adderize.errors import AdderizeError, failing
from adderize.evaluation import device_of, evaluation
from adderize.progress import steps
from adderize.tables import Report, Table, csv_text, shape_text

_BATCH = 100


@dataclass(frozen=True)
class Stage:
    """
    Attributes:
        top1: in percent; None without labels.
        agreement: images (of maps: places) for which the network decides as its teacher does, in
            percent.
    """

    name: str
    top1: float | None
    agreement: float


@dataclass
class Stages(Report):
    """Decisions on the same images, stage by stage; prints as a table.

    Args:
        teacher: the trained network, the first stage.
        images: (N, C, H, W).
        labels: (N,) int64, or None; left out for maps.
        maps: also take networks that decide place by place, whose logits are (N, classes, ...).

    Raises:
        AdderizeError: the network fails on the images, or gives something else than logits.
    """

    teacher: nn.Module
    images: Tensor
    labels: Tensor | None
    maps: bool = False
    rows: list[Stage] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._expected = self._decisions(self.teacher)
        if self._expected.ndim > 1:
            self.labels = None
        self.rows.append(self._stage("trained network", self._expected))

    def add(self, name: str, model: nn.Module) -> Stage:
        self.rows.append(self._stage(name, self._decisions(model)))
        return self.rows[-1]

    def _stage(self, name: str, decisions: Tensor) -> Stage:
        right = None if self.labels is None else _percentage(decisions == self.labels)
        return Stage(name, right, _percentage(decisions == self._expected))

    @torch.no_grad()
    def _decisions(self, model: nn.Module) -> Tensor:
        device = device_of(model)
        found = []
        with evaluation(model):
            for batch in steps(self.images.split(_BATCH), "comparing"):
                with failing(f"the network fails on images {shape_text(batch.shape)}"):
                    logits = model(batch.to(device, copy=True))
                dimensions = (2, 3, 4) if self.maps else (2,)
                if not isinstance(logits, Tensor) or logits.ndim not in dimensions:
                    shape = f" of {tuple(logits.shape)}" if isinstance(logits, Tensor) else ""
                    raise AdderizeError(
                        f"the network gives a {type(logits).__name__}{shape}; expected logits "
                        "(N, classes): use adderize.transfer from Python for other networks"
                    )
                found.append(logits.argmax(1).cpu())
        return torch.cat(found)

    def to_dict(self) -> dict[str, Any]:
        return {"images": len(self.images), "stages": [vars(row) for row in self.rows]}

    def to_csv(self) -> str:
        return csv_text(_HEADER, [[row.name, row.top1, row.agreement] for row in self.rows])

    def to_markdown(self) -> str:
        return self._table().markdown()

    def __str__(self) -> str:
        what = "places decided" if self._expected.ndim > 1 else "decided"
        found = f"{len(self.images):,} images; agreement: {what} as by the trained network"
        return f"{self._table().text()}\n\n{found}"

    def _table(self) -> Table:
        header = _HEADER if self.labels is not None else (_HEADER[0], _HEADER[2])
        rows = [
            [row.name, *(f"{x:.2f}" for x in (row.top1, row.agreement) if x is not None)]
            for row in self.rows
        ]
        return Table(header, rows, texts=1)


_HEADER = ("stage", "top-1, %", "agreement, %")


def _percentage(hits: Tensor) -> float:
    return 100 * float(hits.double().mean())
