"""Conversion in a LightningModule: in its constructor and in configure_model, one and two ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from adderize import plan
from tests import ranks as processes
from tests.surgery import two_lit_ranks as ranks
from tests.surgery.test_adderize import adder_names

KINDS = [ranks.ConvertedInInit, ranks.ConvertedInConfigureModel]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("lightning")
    processes.run(ranks.main, folder)
    return folder


def of_job(folder: Path, name: str) -> list[Any]:
    results = [torch.load(folder / f"{rank}.pt")[name] for rank in (0, 1)]
    for result in results:
        assert not (isinstance(result, str) and "Traceback" in result), result
    return results


@pytest.mark.parametrize("kind", KINDS)
def test_one_process_and_load_from_checkpoint(kind, tmp_path):
    module = kind()
    trainer = ranks.train(module)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    before = ranks.adderize(ranks.make_net())
    assert not torch.equal(module.net[1][0].weight, before[1][0].weight)
    loaded = kind.load_from_checkpoint(tmp_path / "a.ckpt").eval()
    assert adder_names(loaded) == ["net.1.0", "net.2.0"]
    images = next(iter(ranks.batches()))[0]
    assert torch.equal(loaded(images), module.eval()(images))


@pytest.mark.parametrize("kind", KINDS)
def test_ddp(folder, kind):
    first, second = (result[kind.__name__] for result in of_job(folder, "ddp"))
    start = dict(ranks.adderize(ranks.make_net()).named_parameters(prefix="net"))
    assert first.keys() == second.keys() == start.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    for name in ("net.1.0.weight", "net.2.0.weight", "net.2.0.norm.weight"):
        assert not torch.equal(first[name], start[name]), name
    loaded = kind.load_from_checkpoint(folder / f"{kind.__name__}.ckpt")
    for name, value in loaded.named_parameters():
        assert torch.equal(value, first[name]), name


@pytest.mark.skipif(torch.__version__ < (2, 7), reason="FSDP2 of torch 2.6 needs a GPU")
def test_fsdp2_trains_as_ddp_does(folder):
    sharded, _ = of_job(folder, "fsdp2")
    by_ddp = of_job(folder, "ddp")[0]["ConvertedInConfigureModel"]
    assert sharded.keys() == by_ddp.keys()
    for name, value in sharded.items():
        torch.testing.assert_close(value, by_ddp[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.skipif(torch.__version__ < (2, 7), reason="FSDP2 of torch 2.6 needs a GPU")
def test_fsdp2_from_the_meta_device(folder):
    first, second = of_job(folder, "fsdp2_from_meta")
    assert first == second
    assert 0 < first < float("inf")


def test_wrapped_and_sharded_models_are_refused(folder):
    for wrapped, sharded, part in of_job(folder, "refusals"):
        assert "convert the model before wrapping it" in wrapped
        assert "the model (FSDPSequential) is sharded" in sharded
        assert "1 (FSDPSequential) is sharded" in part


def test_a_whole_lightning_module_can_be_planned():
    module = ranks.ConvertedInInit()
    module.net = ranks.make_net()
    rows = {row.name: row for row in plan(module).rows}
    assert rows["net.0.0"].reason.startswith("stem")
    assert rows["net.1.0"].norm == "net.1.1"
    assert {row.method for row in rows.values()} == {"fx"}
