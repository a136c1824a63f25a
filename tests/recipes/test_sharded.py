"""A recipe with FSDP2 in two processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from adderize import load_model
from adderize.models.by_name import build
from recipes import cifar
from tests import ranks
from tests.recipes.networks import BATCH_NORMS, arguments


@pytest.mark.skipif(torch.__version__ < (2, 7), reason="FSDP2 of torch 2.6 needs a GPU")
def test_norms_are_rounded_as_in_unsharded_networks(tmp_path: Path) -> None:
    models = [_trained(tmp_path / strategy, strategy) for strategy in ("fsdp", "ddp")]
    for name, tensor in models[0].state_dict().items():
        torch.testing.assert_close(tensor, models[1].state_dict()[name], rtol=1e-4, atol=1e-5)
    norm = models[0].get_submodule("4")
    scales = norm.weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()
    powers = scales.abs().log2()
    torch.testing.assert_close(powers, powers.round(), rtol=0, atol=1e-5)


def _trained(folder: Path, strategy: str) -> torch.nn.Module:
    # Long steps make much of the last digits, in which the two differ.
    more = ("--shift-norm-terms", "1", "--shift-norm-after", "0.5", "--lr", "0.01")
    machine = ("--devices", "2", "--accelerator", "cpu", "--strategy", strategy)
    ranks.train(cifar.train, arguments(folder, *more, *machine))
    assert json.loads((folder / "metrics.json").read_text())["steps"] > 1
    return load_model(build(BATCH_NORMS), folder / "model")
