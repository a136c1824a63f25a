"""Networks without multiplications in folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from adderize import AdderizeError, adderize, load_model, recalibrate, save_model
from adderize.integer import multiplication_free, shift_report
from adderize.models import lenet5_bn, resnet20


@pytest.mark.parametrize("linear", [False, True])
def test_a_network_without_multiplications_is_saved_and_loaded(
    tmp_path: Path, linear: bool
) -> None:
    model, x = adderize(lenet5_bn(), linear=linear), torch.randn(4, 1, 32, 32)
    network = multiplication_free(recalibrate(model, [x]).eval(), norm_terms=2, filter_terms=1)
    save_model(network, tmp_path)
    loaded = load_model(lenet5_bn(), tmp_path)
    assert torch.equal(loaded(x), network(x))
    assert shift_report(loaded) == shift_report(network)
    with torch.device("meta"):
        empty = lenet5_bn()
    assert torch.equal(load_model(empty, tmp_path)(x), network(x))
    save_model(loaded, tmp_path / "again")
    assert torch.equal(load_model(lenet5_bn(), tmp_path / "again")(x), network(x))


def test_exponents_and_signs_are_what_is_saved(tmp_path: Path) -> None:
    network = multiplication_free(adderize(resnet20()).eval())
    save_model(network, tmp_path)
    floats = {n for n, t in network.state_dict().items() if t.is_floating_point()}
    assert all(name.endswith((".bias", ".weight")) for name in floats)
    assert not any("bn" in name and name.endswith("weight") for name in floats)


def test_damaged_reports_and_other_networks_are_refused(tmp_path: Path) -> None:
    save_model(multiplication_free(adderize(lenet5_bn()).eval()), tmp_path)
    with pytest.raises(AdderizeError):
        load_model(resnet20(), tmp_path)
    path = tmp_path / "adderize.json"
    manifest = json.loads(path.read_text())
    manifest["shifts"] = {"norm_terms": 3}
    path.write_text(json.dumps(manifest))
    with pytest.raises(AdderizeError, match="damaged"):
        load_model(lenet5_bn(), tmp_path)


def test_networks_that_compute_otherwise_are_refused(tmp_path: Path) -> None:
    save_model(multiplication_free(adderize(lenet5_bn()).eval()), tmp_path)
    other = lenet5_bn()
    other.conv2.padding = (1, 1)
    with pytest.raises(AdderizeError, match="conv2"):
        load_model(other, tmp_path)
