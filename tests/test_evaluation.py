"""Evaluation mode for a while."""

from __future__ import annotations

import pytest
from torch import nn

from adderize.evaluation import evaluation


def test_each_module_gets_its_own_mode_back() -> None:
    first = nn.Sequential(nn.BatchNorm2d(2), nn.Sequential(nn.Dropout(), nn.ReLU()))
    first[1].eval()
    second = nn.Linear(1, 1).eval()
    modes = [module.training for module in first.modules()]
    with evaluation(first, second):
        assert not any(module.training for module in first.modules())
    assert [module.training for module in first.modules()] == modes
    assert not second.training


def test_an_error_passes_and_leaves_no_trace() -> None:
    model = nn.Sequential(nn.Dropout())
    with pytest.raises(KeyError), evaluation(model):
        raise KeyError
    assert model.training and model[0].training
