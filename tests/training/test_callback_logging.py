"""What reaches the loggers, when, and at which cost."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import Logger

from adderize import AdaptiveLearningRate
from adderize.training.adaptive_rate import AdderGradients
from tests.training.tiny_lit import FILTERS, Lit, ManualLit, batches, gradients_by_hand, trainer

KEYS = {f"{kind}/{layer}" for kind in ("grad_norm", "adaptive_lr") for layer in ("net.3", "net.6")}


class ListLogger(Logger):
    name, version = "list", 0

    def __init__(self) -> None:
        self.rows: list[tuple[int | None, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if KEYS & metrics.keys():
            self.rows.append((step, metrics))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


@pytest.fixture
def synchronisations(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    to_dict = AdderGradients.to_dict
    monkeypatch.setattr(AdderGradients, "to_dict", lambda self: calls.append(1) or to_dict(self))
    return calls


@pytest.mark.parametrize("kind", [Lit, ManualLit])
def test_logs_every_n_steps(kind: type[Lit], synchronisations: list[int]) -> None:
    loggers = [ListLogger(), ListLogger()]
    trainer(AdaptiveLearningRate(), logger=loggers, log_every_n_steps=3).fit(kind(), batches(8))
    assert len(synchronisations) == 2
    for logger in loggers:
        assert [step for step, _ in logger.rows] == [2, 5]
        assert all(metrics.keys() == KEYS for _, metrics in logger.rows)


def test_logs_norm_before_and_factor(tmp_path: Path) -> None:
    expected = gradients_by_hand(Lit(), next(iter(batches())))
    logger = CSVLogger(tmp_path)
    trainer(AdaptiveLearningRate(), logger=logger, log_every_n_steps=1).fit(Lit(), batches())
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    first = {key: float(rows[0][key]) for key in KEYS}
    for parameter in FILTERS:
        layer = parameter.removesuffix(".weight")
        product = first[f"grad_norm/{layer}"] * first[f"adaptive_lr/{layer}"]
        assert product == pytest.approx(expected[parameter].norm().item(), rel=1e-5)
        assert first[f"adaptive_lr/{layer}"] != pytest.approx(1.0)
    assert len(rows) == 4


@pytest.mark.parametrize(
    ("log", "options"),
    [(True, {"logger": False}), (False, {}), (True, {"log_every_n_steps": 100})],
)
def test_no_synchronisation_without_need(
    log: bool, options: dict[str, Any], synchronisations: list[int]
) -> None:
    logger = ListLogger()
    options = {"logger": logger, "log_every_n_steps": 1} | options
    trainer(AdaptiveLearningRate(log=log), **options).fit(Lit(), batches())
    assert synchronisations == [] and logger.rows == []


def test_barebones_trainer() -> None:
    module = Lit()
    options = {"barebones": True, "logger": None, "enable_progress_bar": None}
    options |= {"enable_model_summary": None, "enable_checkpointing": None}
    trainer(AdaptiveLearningRate(), **options).fit(module, batches())
    assert module.trainer.global_step == 4
