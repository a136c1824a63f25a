"""Networks whose structure asks for care: each stays as close to its float form as any other."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from adderize import (
    AdderConv2d,
    AdderizeError,
    AdderLinear,
    adderize,
    load_model,
    recalibrate,
    save_model,
)
from adderize.quantize import prepare_qat, quantize, quantize_report
from tests.quantize.networks import Residual, Two, conv, prepared, relative_error, trained

X = torch.randn(32, 3, 12, 12, generator=torch.Generator().manual_seed(1))


class Body(nn.Module):
    """A stem, and three adders with their norms for `forward` to call."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU())
        self.a, self.b, self.c = conv(8, 8), conv(8, 8), conv(8, 8)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(3))
        self.act = nn.ReLU(inplace=True)

    def first(self, x: Tensor) -> Tensor:
        return F.relu(self.norms[0](self.a(self.stem(x))))

    def last(self, x: Tensor) -> Tensor:
        return self.norms[1](self.b(x))


class AsksDtype(Body):
    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.last(y).mean((2, 3)).to(y.dtype)


class LargestChannel(Body):
    """torch.max gives two tensors."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.last(torch.cat([y[:, :7], torch.max(y, 1)[0].unsqueeze(1)], 1))


class SwappedHalves(Body):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.cat(torch.split(self.first(x), 4, 1)[::-1], 1))


class PoolsAll(Body):
    """A pooling window of the image's size."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.last(F.max_pool2d(y, y.shape[-2:]))


class TakenName(Body):
    """The name of a second call's layer would be another layer's."""

    def __init__(self) -> None:
        super().__init__()
        self.b_1, self.b_3 = nn.Conv2d(8, 8, 1), conv(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norms[2](self.b_3(self.first(x))))
        return self.b_1(self.last(F.relu(self.last(x))))


class SharedActivation(Body):
    """What a shared in-place activation changed is read later."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norms[0](self.a(self.stem(x))))
        y = self.norms[1](self.b(x))
        z = self.norms[2](self.c(self.act(y)))
        return z + y


class AddsMask(Body):
    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.last(y) + (y > 0.5)


class FiltersParameter(Body):
    """An adder whose input does not depend on the network's input."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, 8, 12, 12))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x) + self.norms[2](self.c(self.query)))


ODD = [
    AddsMask,
    FiltersParameter,
    AsksDtype,
    LargestChannel,
    pytest.param(
        SwappedHalves,
        marks=pytest.mark.skipif(
            torch.__version__ < (2, 7), reason="fx of torch 2.6 traces no list in torch.cat"
        ),
    ),
    PoolsAll,
    TakenName,
    SharedActivation,
]


@pytest.mark.parametrize("network", ODD)
def test_odd_networks(network, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = trained(network(), tuple(X.shape), head=True)
    quantized = quantize(model, [X])
    given, expected = quantized(X), model(X)
    assert isinstance(quantized, fx.GraphModule) and given.dtype == torch.float32
    assert relative_error(given, expected) < 0.1
    save_model(quantized, tmp_path)
    assert torch.equal(load_model(network(), tmp_path)(X), given)


class Unlike(Body):
    """The small operand of a concatenation is read by itself, too."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.wide_norm = conv(16, 8), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x)
        small = F.relu(self.norms[0](self.a(x)))
        large = F.relu(self.norms[1](self.b(x)))
        joined = self.wide_norm(self.wide(torch.cat([small, large], 1)))
        return self.norms[2](self.c(small)), joined


def test_tensors_of_unlike_ranges_have_grids_of_their_own(tmp_path):
    model = trained(Unlike(), tuple(X.shape), head=True)
    for factor, large in ((1.0, "bytes"), (1e-3, "float32")):
        for parameter in model.norms[0].parameters():
            parameter.data *= factor
        recalibrate(model, [X]).eval()
        quantized = quantize(model, [X])
        for given, expected in zip(quantized(X), model(X), strict=True):
            assert relative_error(given, expected) < 0.1
        outputs = {row.layer: row.output for row in quantize_report(quantized).layers}
        assert outputs["b"] == large
        save_model(quantized, tmp_path)
        for given, loaded in zip(quantized(X), load_model(Unlike(), tmp_path)(X), strict=True):
            assert torch.equal(given, loaded)


def test_a_norm_that_sees_other_dimensions_than_the_adder_stays_float():
    """BatchNorm2d behind a linear adder of (N, 8, W, 8) normalises the first of the eights."""
    model = nn.Sequential(AdderLinear(8, 8), nn.BatchNorm2d(8), nn.ReLU())
    model[1].weight.data[::2] = -1
    images = torch.randn(16, 8, 3, 8)
    recalibrate(model, [images]).eval()
    quantized = quantize(model, [images])
    assert quantize_report(quantized).layers[0].fused == ()
    assert relative_error(quantized(images), model(images)) < 0.1


@pytest.mark.skipif(
    torch.__version__ < (2, 7), reason="torch 2.6 pickles no graph with annotations in words"
)
def test_pickling_keeps_the_network_and_its_report():
    quantized = quantize(trained(Residual()), [X])
    twin = copy.deepcopy(pickle.loads(pickle.dumps(copy.deepcopy(quantized))))
    assert torch.equal(twin(X), quantized(X))
    assert str(quantize_report(twin)) == str(quantize_report(quantized))


class Late(nn.Module):
    """The second adder is not called for the first batch."""

    def __init__(self) -> None:
        super().__init__()
        self.a = self.twin = AdderConv2d(3, 3, 3, padding=1)
        self.b = AdderConv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.twin(x)
        return self.b(y) if bool(x.abs().max() > 50) else y


def test_a_layer_that_the_first_images_do_not_reach():
    model = Late()
    quantized = quantize(model, [X, 20 * X])
    report = quantize_report(quantized)
    assert [row.error is None for row in report.layers] == [False, True] and "-" in str(report)
    assert not any(isinstance(layer, AdderConv2d) for layer in quantized.modules())


def test_single_images_without_a_batch():
    conv, image = AdderConv2d(8, 4, 3, padding=1), torch.randn(8, 9, 9)
    linear, row = AdderLinear(12, 4), torch.randn(12)
    for layer, x in ((conv, image), (linear, row)):
        assert float((quantize(layer, [x])(x) - layer(x)).abs().max()) < 1


def test_a_network_with_two_inputs_is_told_what_to_quantize() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return (self.body(a) - self.body(b)).abs().sum((1, 2, 3))

    torch.manual_seed(0)
    model = adderize(Pair())
    pairs = [torch.randn(8, 3, 8, 8) for _ in range(2)]
    model(*pairs)
    model.eval()
    with pytest.raises(AdderizeError, match=r"called with one tensor.*quantize the part"):
        quantize(model, [pairs])
    expected = model(*pairs)
    model.body = quantize(model.body, pairs)
    assert torch.allclose(model(*pairs), expected, rtol=0.1)


class Reads(Two):
    """A penalty on filters, and a bias and a stem's filters that take part."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_of_stem = nn.BatchNorm2d(8)
        self.a.scale = nn.Parameter(torch.full((8, 1, 1), 0.5))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = F.relu(self.norm_of_stem(self.stem(x)))
        y = F.relu(self.na(self.a(y) * self.a.scale + self.a.bias.view(-1, 1, 1)))
        y = self.head(self.nb(self.b(y))) * self.stem.weight.abs().mean()
        return y, self.b.weight.abs().sum()


@pytest.mark.parametrize("trained", [False, True], ids=["calibrated", "trained with the rounding"])
def test_parameters_that_a_forward_reads_stay_floats(trained: bool, tmp_path) -> None:
    model = Reads()
    model.a.bias = nn.Parameter(torch.randn(8))
    prepared(model)
    quantized = quantize(prepare_qat(model, [X]).eval() if trained else model, [X])
    assert isinstance(quantized, fx.GraphModule), quantize_report(quantized).remarks
    assert len(quantize_report(quantized).layers) == 2
    with torch.no_grad():
        found, expected = quantized(X), model(X)
    assert relative_error(found[0], expected[0]) < 0.1
    assert torch.equal(found[1], expected[1])
    if not trained:
        save_model(quantized, tmp_path)
        fresh = Reads()
        fresh.a.bias = nn.Parameter(torch.zeros(8))
        assert torch.equal(load_model(fresh, tmp_path)(X)[0], found[0])
