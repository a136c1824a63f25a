"""What a type checker sees of the package, which is called: read by mypy, run by nothing."""

from __future__ import annotations

from typing import assert_type

from torch import nn

from adderize import AdderConv2d, adderize, plan
from adderize.surgery import Plan

model = nn.Sequential()
assert_type(adderize(model), nn.Module)
assert_type(adderize.plan(model), Plan)
assert_type(adderize.AdderConv2d(1, 1, 1), AdderConv2d)
assert_type(plan(model).converted, list[str])
# An error that mypy did not find would leave these comments unused, which it tells.
adderize(model, stem="yes")  # type: ignore[arg-type]
adderize.binarize("model")  # type: ignore[arg-type]
