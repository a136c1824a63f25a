"""Models whose forward goes on until values allow it to end, traced without values."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from adderize import AdderConv2d, adderize, plan


class Adaptive(nn.Module):
    """Adaptive computation time: a block runs again and again, as its results say."""

    def __init__(self, goes_on: Callable[[Tensor, Tensor], bool]) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)
        self.goes_on = goes_on

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        halted = torch.zeros_like(x)
        while self.goes_on(halted, x):
            x = self.norm(self.conv(x)).relu()
            halted = halted + x.sigmoid()
        return self.head(x)


LOOPS: dict[str, Callable[[Tensor, Tensor], bool]] = {
    "any": lambda halted, x: bool((halted < 0.99).any()),
    "not all": lambda halted, x: not (halted >= 0.99).all(),
    "count": lambda halted, x: int((halted < 0.99).sum()) > 0,
    "residual": lambda halted, x: (1 - halted).clamp(min=0).norm().item() > 1e-3,
    "confidence": lambda halted, x: halted.mean().item() < 5,
    "comparison": lambda halted, x: bool(halted.mean() < 0.99),
}


@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_that_values_end(name: str) -> None:
    model = Adaptive(LOOPS[name])
    row = plan(model).rows[1]
    if name != "not all":  # whose first answer ends it
        assert (row.decision, row.norm, row.method) == ("convert", "norm", "hooks")
        assert isinstance(adderize(model).conv, AdderConv2d)
    assert model(torch.randn(1, 3, 6, 6)).shape == (1, 2, 4, 4)


def test_a_loop_that_no_values_end() -> None:
    with pytest.warns(UserWarning, match="could not be traced, so the order of registration"):
        model = adderize(Adaptive(lambda halted, x: bool(x.mean() < 9) or bool(x.mean() > 5)))
    assert isinstance(model.conv, AdderConv2d)


def test_many_questions_of_one_line_have_the_usual_answer() -> None:
    class Asking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convs = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(31))

        def forward(self, x: Tensor) -> Tensor:
            for conv in self.convs:
                x = conv(x) if x.max() > x.min() else x
            return x

    assert [row.method for row in plan(Asking()).rows] == ["hooks"] * 31
