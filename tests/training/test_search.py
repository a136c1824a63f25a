"""Modules by kind, as torch's own search finds them."""

from __future__ import annotations

import pytest
from torch import nn

from adderize.models.by_name import build
from adderize.training.search import modules_of


def _shared() -> nn.Module:
    norm = nn.BatchNorm2d(2)
    model = nn.Sequential(nn.Sequential(norm, nn.ReLU()), nn.Conv2d(2, 2, 1), norm)
    model.register_module("absent", None)
    return model


@pytest.mark.parametrize("make", [_shared, lambda: build("resnet20"), lambda: nn.Conv2d(1, 1, 1)])
@pytest.mark.parametrize("kinds", [(nn.Conv2d,), (nn.BatchNorm2d, nn.ReLU), (nn.Module,)])
def test_modules_are_found_once_and_in_order(make: object, kinds: tuple[type, ...]) -> None:
    model = make()
    expected = [module for module in model.modules() if isinstance(module, kinds)]
    found = modules_of(model, *kinds)
    assert len(found) == len(expected)
    assert all(one is other for one, other in zip(found, expected, strict=True))
