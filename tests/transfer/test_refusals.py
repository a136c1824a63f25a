"""What a transfer refuses, and how its report reads."""

from __future__ import annotations

import copy
import csv
import io
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from adderize import AdderizeError, adderize
from adderize.transfer import LayerTransfer, TransferReport, match, reconstruct
from tests.transfer.networks import Block, Network, images, plain, teacher


@pytest.fixture
def original() -> nn.Module:
    return teacher(plain)


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 0}, {"steps": 1.5}, {"batch_size": 0}, {"images": 0}, {"images": -4},
        {"memory": 0}, {"seed": -1}, {"seed": 0.5}, {"gradient": "true"},
    ],
)  # fmt: skip
def test_options_out_of_range_are_refused(original: nn.Module, options: dict[str, Any]) -> None:
    model = adderize(original, inplace=False)
    (name,) = options
    with pytest.raises(AdderizeError, match=f"{name} is "):
        reconstruct(model, original, images(), **options)


def test_the_model_must_not_be_the_teacher(original: nn.Module) -> None:
    model = adderize(original)
    with pytest.raises(AdderizeError, match="inplace=False"):
        match(model, model, images())


@pytest.mark.parametrize(
    "computed",
    [
        lambda layer: parametrizations.weight_norm(layer),
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    ],
)
def test_filters_that_are_computed_cannot_be_set(
    original: nn.Module, computed: Callable[[nn.Module], Any]
) -> None:
    model = adderize(original, inplace=False)
    computed(model.get_submodule("blocks.0.conv"))
    before = copy.deepcopy(model.state_dict())
    for method in (match, reconstruct):
        with pytest.raises(AdderizeError, match=r"blocks\.0\.conv .* computes its filters"):
            method(model, original, images())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_teacher_of_adders_has_nothing_to_tell(original: nn.Module) -> None:
    model = adderize(original)
    with pytest.raises(AdderizeError, match="every adder of the model is an adder in the teacher"):
        match(copy.deepcopy(model), model, images())


def test_a_model_without_adders_is_refused(original: nn.Module) -> None:
    with pytest.raises(AdderizeError, match="no adder layers"):
        match(copy.deepcopy(original), original, images())


def test_another_network_as_teacher_is_refused(original: nn.Module) -> None:
    model = adderize(original, inplace=False)
    wider = teacher(lambda: Network(Block(nn.Conv2d(8, 11, 3), 11), channels=11))
    with pytest.raises(AdderizeError, match=r"blocks\.0\.conv has filters of .* \(11, 8, 3, 3\)"):
        match(model, wider, images())
    fewer = teacher(lambda: Network(Block(nn.Conv2d(8, 10, 3), 10), channels=10))
    with pytest.raises(AdderizeError, match=r"blocks\.1\.conv .* no such layer"):
        match(model, fewer, images())


def test_a_teacher_of_another_dtype_is_refused(original: nn.Module) -> None:
    model = adderize(original, inplace=False)
    with pytest.raises(AdderizeError, match=r"is on cpu in torch\.float32 and .* torch\.float64"):
        match(model, copy.deepcopy(original).double(), images())


def test_a_model_made_in_inference_mode_has_to_be_copied(original: nn.Module) -> None:
    with torch.inference_mode():
        model = adderize(original, inplace=False)
        for name, parameter in [*model.named_parameters()]:
            layer = model.get_submodule(name.rpartition(".")[0])
            setattr(layer, name.rpartition(".")[2], nn.Parameter(parameter.clone()))
    with pytest.raises(AdderizeError, match=r"made in inference mode.*copy the model"):
        match(model, original, images())
    match(copy.deepcopy(model), original, images(), progress=False)


def test_a_teacher_that_runs_otherwise_is_refused() -> None:
    class Twice(Network):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            return self.head(self.blocks[0](self.blocks[0](x)).mean((2, 3)))

    def once() -> nn.Module:
        return Network(Block(nn.Conv2d(8, 8, 3), 8), channels=8)

    model = adderize(teacher(once))
    twice = teacher(lambda: Twice(Block(nn.Conv2d(8, 8, 3), 8), channels=8))
    with pytest.raises(AdderizeError, match="called 1 times in the model and 2 times"):
        match(model, twice, images())


@pytest.mark.parametrize("batches", [[], [torch.zeros(0, 3, 10, 10)]])
def test_no_images_are_refused(original: nn.Module, batches: Any) -> None:
    with pytest.raises(AdderizeError, match="no images"):
        match(adderize(original, inplace=False), original, batches)


@pytest.mark.parametrize("batches", [["photo.png"], [torch.tensor(3.0)], [{}]])
def test_batches_without_images_are_refused(original: nn.Module, batches: Any) -> None:
    with pytest.raises(AdderizeError, match="without images"):
        match(adderize(original, inplace=False), original, batches)


@pytest.mark.parametrize("shape", [(4, 5, 10, 10), (3, 10, 10)])
def test_batches_that_a_network_fails_on_are_named(
    shape: tuple[int, ...], original: nn.Module
) -> None:
    what = rf"fails on a tensor of shape \({', '.join(map(str, shape))}\) from a batch"
    with pytest.raises(AdderizeError, match=what):
        match(adderize(original, inplace=False), original, [torch.zeros(shape)])


@pytest.mark.parametrize("method", [match, reconstruct])
def test_one_image_is_too_few_for_a_linear_layer(method: Callable[..., TransferReport]) -> None:
    original = nn.Sequential(nn.Flatten(), nn.Linear(300, 8), nn.ReLU(), nn.Linear(8, 5)).eval()
    model = adderize(original, inplace=False, linear=True, stem=True)
    with pytest.raises(AdderizeError, match=r"1 gets one value of each channel.*more images"):
        method(model, original, images(1))


def test_images_that_are_not_finite_are_refused(original: nn.Module) -> None:
    x = images()
    x[3, 0, 0, 0] = torch.nan
    with pytest.raises(AdderizeError, match="the images hold NaN or infinity"):
        match(adderize(original, inplace=False), original, x)


@pytest.mark.parametrize("broken", ["model", "teacher"])
def test_networks_that_give_nan_are_refused(original: nn.Module, broken: str) -> None:
    model = adderize(original, inplace=False)
    with torch.no_grad():
        network = model if broken == "model" else original
        network.stem.norm.bias[0] = torch.nan  # type: ignore[union-attr,index]
    with pytest.raises(AdderizeError, match=rf"the {broken} gives NaN or infinity .*blocks\.0"):
        match(model, original, images())


def test_adders_that_are_not_called_are_named(original: nn.Module) -> None:
    model = adderize(original, inplace=False)
    original.blocks[1].spare = nn.Conv2d(3, 3, 3)  # type: ignore[union-attr,index]
    model.blocks[1].spare = adderize(  # type: ignore[union-attr,index]
        nn.Sequential(nn.Conv2d(3, 3, 3)), stem=True, head=True
    )[0]
    report = match(model, original, images())
    assert report.uncalled == ("blocks.1.spare",)
    assert "blocks.1.spare" not in {row.name for row in report.layers}
    assert "left as they were: blocks.1.spare" in str(report)


def _row(name: str, limit: float, after: float) -> LayerTransfer:
    return LayerTransfer(name, "AdderConv2d", (4, 2, 3, 3), limit, 0.1, after, after - 0.2)


def test_the_report_says_what_to_do_about_low_correlations() -> None:
    rows = (_row("good", 0.95, 0.9), _row("lossy", 0.9, 0.4), _row("behind it", 0.45, 0.4))
    report = TransferReport("reconstruct", 100, rows)
    assert report.low == ["lossy"]
    text = str(report)
    assert "exclude=['lossy']" in text
    lines = {line.split("  ")[0]: line for line in text.splitlines()}
    assert "keep it as a convolution" in lines["lossy"]
    assert "its inputs are no longer the teacher's" in lines["behind it"]
    assert "low" not in lines["good"]
    assert "correlation with the teacher 0.567" in text and "reconstruct()" not in text
    assert "reconstruct() fits each layer" in str(TransferReport("match", 100, rows))
    assert "reconstruct() fits" not in str(TransferReport("match", 100, rows[:1]))


def test_the_report_has_machine_readable_forms() -> None:
    report = TransferReport("match", 7, (_row("a", 0.95, 0.9), _row("b", 0.9, 0.4)), ("c",))
    content = json.loads(report.to_json())
    assert content["method"] == "match" and content["images"] == 7 and content["low"] == ["b"]
    assert content["layers"][0]["after"] == 0.9 and content["layers"][0]["shape"] == [4, 2, 3, 3]
    assert content["uncalled"] == ["c"]
    rows = list(csv.DictReader(io.StringIO(report.to_csv())))
    assert [row["name"] for row in rows] == ["a", "b"]
    assert float(rows[1]["after"]) == 0.4 and rows[0]["shape"] == "4x2x3x3"
    assert report.to_markdown().startswith("| layer | kind |")


def test_progress_stays_off_where_nobody_looks(
    original: nn.Module, capsys: pytest.CaptureFixture[str]
) -> None:
    match(adderize(original, inplace=False), original, images())
    output = capsys.readouterr()
    assert output.out == "" and output.err == ""
