"""The rule in two gloo processes against one process with the whole batch."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from adderize import AdaptiveLearningRate
from tests import ranks
from tests.training import two_ranks
from tests.training.tiny_lit import (
    FILTERS,
    Lit,
    batches,
    check_equal,
    check_norms,
    seen_by_optimizer,
    trainer,
)

Results = list[dict[str, Any]]
OLD = torch.__version__ < (2, 7)
WITHOUT_FSDP2 = pytest.mark.skipif(OLD, reason="FSDP2 of torch 2.6 needs a GPU")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder: Path = tmp_path_factory.mktemp("ranks")
    ranks.run(two_ranks.main, folder)
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


def of_job(results: Results, name: str) -> list[Any]:
    for result in results:
        assert not (isinstance(result[name], str) and "Traceback" in result[name]), result[name]
    return [result[name] for result in results]


@pytest.fixture(scope="module")
def one_process() -> Lit:
    """Two ranks that take two of every four images see together what this one sees."""
    module = Lit(frozen_statistics=True)
    trainer(AdaptiveLearningRate()).fit(module, batches(3, 4))
    return module


@pytest.mark.parametrize("job", ["lightning_ddp", "lightning_ddp_manual"])
def test_ddp(results: Results, one_process: Lit, job: str) -> None:
    expected = seen_by_optimizer(one_process)
    for steps in of_job(results, job):
        assert len(steps) == len(expected) == 3
        for step, by_one in zip(steps, expected, strict=True):
            check_norms(step)
            check_equal(step, by_one)


def test_ddp_with_accumulation(results: Results) -> None:
    module = Lit(frozen_statistics=True)
    trainer(AdaptiveLearningRate()).fit(module, batches(1, 12))
    expected = seen_by_optimizer(module)
    for steps in of_job(results, "lightning_ddp_accumulating"):
        assert len(steps) == 1
        check_norms(steps[0])
        check_equal(steps[0], expected[0])


def test_plain_ddp(results: Results) -> None:
    module = Lit(frozen_statistics=True)
    images, labels = next(iter(batches(1, 8)))
    (2 * torch.nn.functional.cross_entropy(module(images), labels)).backward()
    raw = {name: p.grad for name, p in module.named_parameters()}
    for (step,) in of_job(results, "plain_ddp"):
        check_norms(step)
        for name, gradient in raw.items():
            scale = step[name].norm() / gradient.norm() if name in FILTERS else 1.0
            torch.testing.assert_close(step[name], gradient * scale, rtol=1e-4, atol=1e-6)


@WITHOUT_FSDP2
def test_fsdp2(results: Results, one_process: Lit) -> None:
    expected = seen_by_optimizer(one_process)
    for result in of_job(results, "lightning_fsdp2"):
        assert result["filters_here"] == 2
        assert len(result["steps"]) == len(expected)
        for step, by_one in zip(result["steps"], expected, strict=True):
            check_norms(step)
            check_equal(step, by_one)
        for name, weight in one_process.named_parameters():
            torch.testing.assert_close(result["weights"][name], weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("job", "collectives"),
    # torch 2.6 sends something to a group of one rank, too.
    [("fsdp2_one_dimension", 1), ("fsdp2_hybrid_replicated", +OLD), ("fsdp2_hybrid_sharded", 1)],
)
def test_fsdp2_norms_take_at_most_one_collective(
    results: Results, job: str, collectives: int
) -> None:
    for result in of_job(results, job):
        assert result["collectives"] == collectives
        norms = [gradient.norm() for gradient in result["expected"]]
        torch.testing.assert_close(result["norms"], torch.stack(norms))
        for found, gradient in zip(result["gradients"], result["expected"], strict=True):
            wanted = gradient * 0.2 * math.sqrt(gradient.numel()) / gradient.norm()
            torch.testing.assert_close(found, wanted)


def test_fsdp1_strategy_is_refused(results: Results) -> None:
    for message in of_job(results, "lightning_fsdp1"):
        assert "cannot work with CpuFSDP" in message and "ModelParallelStrategy" in message


def test_what_has_no_global_norm_is_refused(results: Results) -> None:
    for original, flat, partial in of_job(results, "refused"):
        assert "FSDP1" in original and "FSDP1" in flat
        assert "partial sum" in partial


@WITHOUT_FSDP2
def test_rounded_scales_stay_where_fsdp2_has_gathered_the_weights(results: Results) -> None:
    for scales in of_job(results, "shift_norms_fsdp2"):
        exponents = scales.abs().log2()
        torch.testing.assert_close(exponents, exponents.round(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "job", ["recalibration_ddp", pytest.param("recalibration_fsdp2", marks=WITHOUT_FSDP2)]
)
def test_recalibration_averages_over_ranks(results: Results, job: str) -> None:
    first, second = of_job(results, job)
    assert torch.equal(first, second)
    mean, variance, weight = first[:3], first[3:6], first[6:].view(3, 1, 3, 3)
    images = torch.cat([batch for batch, _ in batches(4, 4)])
    seen = [batch for rank in (0, 1) for batch in images[rank::2].split(4)]
    outputs = [torch.nn.functional.conv2d(batch, weight, padding=1) for batch in seen]
    variances = torch.stack([output.var((0, 2, 3)) for output in outputs])
    torch.testing.assert_close(variance, variances.mean(0))
    means = torch.stack([output.mean((0, 2, 3)) for output in outputs])
    torch.testing.assert_close(mean, means.mean(0))
