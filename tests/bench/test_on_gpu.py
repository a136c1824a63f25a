"""What is measured on a CUDA device, and recipes there: whether it runs, and gives the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from adderize.bench.gpu_limits import limits
from adderize.bench.gpu_report import ON_CPU, write_report
from adderize.bench.gpu_steps import Network
from adderize.bench.tuning import kept, tune
from recipes import cifar
from tests.recipes.networks import arguments

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def test_both_limits_are_alike_but_for_packed_additions() -> None:
    found = limits("cuda")
    assert found is not None and found.input_gradient > 1e11
    assert 0.8 < found.forward / found.input_gradient < 2.2


def test_a_network_is_tuned_and_the_choices_are_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADDERIZE_CACHE", str(tmp_path))
    tuned = tune("resnet20", (3, 32, 32), 16, ("fp32", "bf16"))
    assert tuned.file is not None and tuned.file.is_file() and tuned.layers > 4
    assert kept() == tuned


def test_a_small_report_fails_nowhere(tmp_path: Path) -> None:
    settings = ON_CPU._replace(networks=(Network("resnet20", 16, (3, 32, 32)),), epochs=())
    report = write_report(tmp_path / "report.json", "cuda", 120.0, settings)
    assert report["failed"] == {} and report["left_out"] == []
    assert report["layers"][1]["forward"]["percent_of_limit"] > 0
    for row in report["steps"]:
        assert min(row["adder_phases_ms"].values()) > 0 and row["adder_peak_mb"] > 0


@pytest.mark.parametrize("more", [(), ("--accumulate", "3", "--ema", "0.8")])
def test_trainings_as_cuda_graphs_give_what_others_give(
    more: tuple[str, ...], tmp_path: Path
) -> None:
    more = ("--accelerator", "cuda", *more)
    graphs = ("--compile", "reduce-overhead", "--data-on-device")
    expected = cifar.train(arguments(tmp_path / "plain", *more))
    found = cifar.train(arguments(tmp_path / "graphs", *graphs, *more))
    for row, other in zip(found["history"], expected["history"], strict=True):
        for name in ("train/loss", "val/loss"):
            assert row[name] == pytest.approx(other[name], rel=0.05)
