"""What `inspect` reports, against the formulas, and every finding on a network that deserves it."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from adderize import AdderConv2d, AdderizeError, AdderLinear, adderize, recalibrate
from adderize.inspection import Inspection, inspect
from adderize.inspection.histograms import input_histograms
from adderize.quantize import quantize


def network() -> nn.Sequential:
    """A convolution, an adder with a norm behind it, an adder with a norm of its own."""
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        AdderConv2d(6, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        AdderLinear(32, 5),
    )
    model[8].norm = nn.BatchNorm1d(5)
    return model


@pytest.fixture
def images() -> Tensor:
    return torch.randn(96, 3, 12, 12)


@pytest.fixture
def healthy(images: Tensor) -> nn.Sequential:
    model = network()
    recalibrate(model, images.split(32))
    return model


def kinds(found: Inspection) -> list[str]:
    return [finding.kind for finding in found.findings]


def test_numbers_of_a_layer(healthy: nn.Sequential, images: Tensor) -> None:
    healthy.train()
    before = {name: tensor.clone() for name, tensor in healthy.state_dict().items()}
    found = inspect(healthy, images)
    assert healthy.training and not any(m._forward_hooks for m in healthy.modules())
    assert all(torch.equal(before[name], t) for name, t in healthy.state_dict().items())
    assert [row.name for row in found.layers] == ["0", "3", "8"]
    assert found.findings == ()

    healthy.eval()
    with torch.no_grad():
        inputs = healthy[:3](images).double()
        patches = nn.functional.unfold(inputs, 3, padding=1)
    filters = healthy[3].weight.detach().double()
    outputs = -(patches[:, None] - filters.flatten(1)[None, :, :, None]).abs().sum(2)
    row = found.layers[1]
    assert row.kind == "AdderConv2d" and row.shape == (8, 6, 3, 3)
    assert row.filters == (filters.min(), filters.max())
    assert row.filter_std == pytest.approx(filters.std(correction=0).item())
    assert row.inputs == (0.0, inputs.max())
    outside = ((filters < 0) | (filters > inputs.max())).double().mean()
    assert row.outside == pytest.approx(outside.item())
    assert row.output_mean == pytest.approx(outputs.mean().item(), rel=1e-5)
    assert row.output_std == pytest.approx(outputs.std(correction=0).item(), rel=1e-4)
    assert row.norm is not None and row.norm.name == "4" and row.norm.batches == 3
    assert found.layers[0].outside is None


def test_outputs_are_taken_before_a_layers_own_norm(healthy: nn.Sequential, images: Tensor) -> None:
    row = inspect(healthy, images).layers[2]
    healthy.eval()
    with torch.no_grad():
        inputs = healthy[:8](images).double()
    layer = healthy[8]
    outputs = layer.bias.double() - (inputs[:, None] - layer.weight.double()).abs().sum(2)
    assert row.output_mean == pytest.approx(outputs.mean().item(), rel=1e-5)
    assert row.norm is not None and row.norm.name == "8.norm"
    first = outputs[:48]
    expected = torch.corrcoef(first.T)[~torch.eye(5, dtype=torch.bool)].mean()
    assert row.correlation == pytest.approx(expected.item(), abs=1e-4)


def test_the_input_range_holds_the_zeros_of_the_padding() -> None:
    images = torch.rand(20, 2, 4, 4) + 5
    for padding, least in ((0, images.min().item()), (1, 0.0), ("same", 0.0), ("valid", None)):
        model = nn.Sequential(AdderConv2d(2, 4, 3, padding=padding), nn.BatchNorm2d(4))
        (row,) = inspect(model, images).layers
        assert row.inputs == (images.min().item() if least is None else least, images.max().item())


def test_stale_statistics_in_numbers(healthy: nn.Sequential, images: Tensor) -> None:
    norm = healthy[4]
    norm.running_mean += 2 * norm.running_var.sqrt()
    found = inspect(healthy, images)
    (stale,) = (finding for finding in found.findings if finding.kind == "stale statistics")
    assert stale.name == "4" and "means 2 deviations off" in stale.detail
    assert "recalibrate" in stale.advice
    state = found.layers[1].norm
    assert state is not None and state.mean_shift == pytest.approx(2, rel=0.05)
    norm.running_mean -= 2 * norm.running_var.sqrt()
    norm.running_var *= 9
    found = inspect(healthy, images)
    assert kinds(found) == ["stale statistics"]
    state = found.layers[1].norm
    assert state is not None and state.variance_ratio == pytest.approx(1 / 9, rel=0.05)
    assert inspect(healthy, images[:8]).layers[1].norm.mean_shift is None  # type: ignore[union-attr]


def _zero_gamma(model: nn.Sequential) -> None:
    nn.init.zeros_(model[4].weight[2:4])


def _never_positive(model: nn.Sequential) -> None:
    nn.init.constant_(model[4].bias[2:4], -1e3)


def _equal_outputs(model: nn.Sequential) -> None:
    nn.init.zeros_(model[0].weight[2:4])


def _nan(model: nn.Sequential) -> None:
    model[3].weight[0, 0, 0, :2] = torch.nan


def _saturated(model: nn.Sequential) -> None:
    model[3].weight.mul_(1e3)


def _small(model: nn.Sequential) -> None:
    model[3].weight.mul_(1e-3)


def _no_norm(model: nn.Sequential) -> None:
    model[4] = nn.Identity()


def _norm_of_all_channels(model: nn.Sequential) -> None:
    model[4] = nn.GroupNorm(1, 8)


def _frozen(model: nn.Sequential) -> None:
    model[4].requires_grad_(False)


def _new_norm(model: nn.Sequential) -> None:
    model[4].reset_running_stats()


def _dead_input(model: nn.Sequential) -> None:
    nn.init.constant_(model[1].bias, -1e3)


@pytest.mark.parametrize(
    ("spoil", "kind", "name", "detail"),
    [
        (_zero_gamma, "dead filters", "3", "2 of 8 channels: 2, 3"),
        (_never_positive, "dead filters", "3", "2 of 8 channels: 2, 3"),
        (_equal_outputs, "dead filters", "0", "2 of 6 channels: 2, 3"),
        (_nan, "not finite", "3.weight", "2 of 432 values"),
        (_saturated, "saturated layer", "3", "% outside"),
        (_small, "channels alike", "3", "correlation"),
        (_no_norm, "missing norm", "3", ""),
        (_norm_of_all_channels, "missing norm", "3", "GroupNorm takes the channels together"),
        (_frozen, "frozen norm", "4", ""),
        (_new_norm, "untrained statistics", "4", ""),
        (_dead_input, "dead input", "3", "always 0"),
    ],
)
@torch.no_grad()
def test_every_finding(
    spoil: Callable[[nn.Sequential], None],
    kind: str,
    name: str,
    detail: str,
    healthy: nn.Sequential,
    images: Tensor,
) -> None:
    spoil(healthy)
    found = inspect(healthy, images)
    matching = [f for f in found.findings if (f.kind, f.name) == (kind, name)]
    assert len(matching) == 1 and detail in matching[0].detail
    assert f"{kind}: {name}" in str(found)
    assert json.loads(found.to_json())["findings"]


def test_a_norm_stands_still_with_its_filters(healthy: nn.Sequential, images: Tensor) -> None:
    healthy.requires_grad_(False)
    assert "frozen norm" not in {f.kind for f in inspect(healthy, images).findings}


def test_a_residual_sum_revives_a_channel(images: Tensor) -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = AdderConv2d(3, 3, 3, padding=1)
            self.bn = nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.relu(self.bn(self.conv(x)) + x)

    model = Residual()
    nn.init.constant_(model.bn.bias, -100)
    assert "dead filters" not in kinds(inspect(model, images))


def test_one_image_makes_no_classifier_dead(healthy: nn.Sequential, images: Tensor) -> None:
    model = nn.Sequential(*healthy[:8], nn.Linear(32, 5))
    assert kinds(inspect(model, images[:1])) == []


def test_new_norms_are_not_blamed_on_the_layers_behind_them(images: Tensor) -> None:
    model = network()
    model[3].weight.data.mul_(1e-3)
    found = inspect(model, images)
    assert set(kinds(found)) == {"untrained statistics", "channels alike"}


def test_without_images_nothing_is_made_up(healthy: nn.Sequential) -> None:
    found = inspect(healthy)
    assert all(row.inputs is row.outside is row.output_std is None for row in found.layers)
    assert "without images" in str(found) and "input range" not in str(found)
    assert "nothing to warn of" in str(found)
    fresh = inspect(adderize(network()[:3], stem=True, head=True))
    assert kinds(fresh) == ["untrained statistics"]


ODD = {
    "transposed": nn.ConvTranspose2d(3, 6, 3, groups=3),
    "over one dimension": nn.Sequential(nn.Flatten(2), nn.Conv1d(3, 6, 5)),
    "over three dimensions": nn.Sequential(nn.Unflatten(1, (1, 3)), nn.Conv3d(1, 6, 3)),
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("count", [6, 24])
def test_channels_of_other_convolutions(kind: str, count: int) -> None:
    layer = ODD[kind]
    norm = {4: nn.BatchNorm2d, 3: nn.BatchNorm1d, 5: nn.BatchNorm3d}
    images = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    outputs = layer(images).detach()
    model = nn.Sequential(layer, norm[outputs.ndim](6))
    recalibrate(model, [images])
    with torch.no_grad():
        model[1].weight[4] = 0.0
    found = inspect(model, images)
    (row,) = found.layers
    rows = outputs.movedim(1, 0).flatten(1).double()
    pairs = torch.corrcoef(rows).triu(1)
    assert row.correlation == pytest.approx(pairs.sum().item() / 15, abs=1e-4)
    assert row.output_std == pytest.approx(rows.std(correction=0).item(), rel=1e-4)
    assert [finding.detail for finding in found.findings] == ["1 of 6 channels: 4"]


def test_layers_that_are_not_called_or_called_twice(images: Tensor) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)
            self.unused = AdderConv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.conv(x))

    model = Twice()
    found = inspect(model, images)
    called, unused = found.layers
    assert found.findings == ()
    assert unused.inputs is None and unused.output_mean is None
    once = model.conv(images)
    both = torch.cat([once, model.conv(once)])
    assert called.output_mean == pytest.approx(both.mean().item(), rel=1e-4)
    assert called.inputs == (
        min(images.min(), once.min()).item(), max(images.max(), once.max()).item()
    )  # fmt: skip


def test_forms(healthy: nn.Sequential, images: Tensor) -> None:
    found = inspect(healthy, images, name="mine")
    assert str(found).startswith("mine, 3 layers, measured on 96 images\n")
    content = json.loads(found.to_json())
    assert content["layers"][1]["inputs"]["min"] == 0
    assert content["layers"][1]["norm"]["name"] == "4"
    rows = list(csv.DictReader(found.to_csv().splitlines()))
    assert [row["name"] for row in rows] == ["0", "3", "8"]
    assert float(rows[1]["outside"]) == found.layers[1].outside
    assert rows[1]["norm.name"] == "4" and rows[0]["outside"] == ""
    lines = found.to_markdown().splitlines()
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1


def test_refusals(images: Tensor) -> None:
    with pytest.raises(AdderizeError, match="ReLU holds no convolution"):
        inspect(nn.ReLU())
    with pytest.raises(AdderizeError, match=r"images is a list; expected one tensor"):
        inspect(network(), [images])
    trained = recalibrate(network(), [images])
    with pytest.raises(AdderizeError, match="is quantized: inspect the float network"):
        inspect(quantize(trained, [images]))
    with pytest.raises(AdderizeError, match="meta device"):
        inspect(network().to("meta"))
    with pytest.raises(AdderizeError, match="fails on images 96x1x12x12"):
        inspect(network(), images[:, :1])


@pytest.mark.parametrize(("deviation", "gradient"), [(50.0, "full"), (0.1, "sign_input")])
def test_the_gradient_that_fits_the_filters(
    deviation: float, gradient: str, healthy: nn.Sequential, images: Tensor
) -> None:
    for index in (3, 8):
        nn.init.normal_(healthy[index].weight, std=deviation)
        if gradient == "sign_input":
            healthy[index].weight.data += 0.5
    found = inspect(healthy, images)
    sizes = {"3": 8 * 6 * 9, "8": 5 * 32}
    total = sum(
        size * (row.outside or 0)
        for row in found.layers
        for n, size in sizes.items()
        if n == row.name
    )
    assert found.outside == pytest.approx(total / sum(sizes.values()))
    assert found.gradient == gradient == found.to_dict()["gradient"]
    assert inspect(healthy).gradient is inspect(healthy).gradient_advice is None
    for modes, has in [
        ((gradient, gradient), "and the adders have it"),
        (("sign", "sign"), "but the adders have 'sign'"),
        ((gradient, "sign"), f"but the adders have '{gradient}' (1), 'sign' (1)"),
    ]:
        for index, mode in zip((3, 8), modes, strict=True):
            healthy[index].gradient = mode
        advice = f"gradient='{gradient}' fits them, {has}"
        assert f"the range of their inputs: {advice}\n" in str(inspect(healthy, images))
    assert [row.gradient for row in inspect(healthy).layers if row.kind.startswith("Adder")] == [
        gradient,
        "sign",
    ]


@pytest.mark.parametrize(
    ("outside", "gradient"),
    [(0.3, "sign_input"), (0.31, None), (0.5, None), (0.69, None), (0.7, "full")],
)
def test_no_gradient_is_advised_where_neither_clearly_fits(
    outside: float, gradient: str | None, healthy: nn.Sequential, images: Tensor
) -> None:
    healthy[8].gradient = "sign_input"
    found = inspect(healthy, images)
    rows = (replace(row, outside=None if row.outside is None else outside) for row in found.layers)
    found = replace(found, layers=tuple(rows))
    assert found.gradient == gradient
    if gradient is None:
        has = "either gradient may fit; the adders have 'full' (1), 'sign_input' (1)"
        assert found.gradient_advice == has


def test_layers_that_get_their_input_by_name(healthy: nn.Sequential, images: Tensor) -> None:
    class ByName(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = healthy

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x) if isinstance(layer, nn.Flatten) else layer(input=x)
            return x

    named, plain = inspect(ByName(), images), inspect(healthy, images)
    assert [(r.inputs, r.output_mean, r.outside) for r in named.layers] == [
        (r.inputs, r.output_mean, r.outside) for r in plain.layers
    ]
    assert input_histograms(ByName(), images, named.layers).keys() == {
        f"layers.{name}" for name in input_histograms(healthy, images, plain.layers)
    }


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_images_that_are_not_finite_are_refused(
    healthy: nn.Sequential, images: Tensor, value: float
) -> None:
    images[3, 0, 0, 0] = value
    with pytest.raises(AdderizeError, match="images hold NaN or infinity"):
        inspect(healthy, images)
