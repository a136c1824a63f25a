"""A converted ResNet-18 under everything that traces."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn
from torchvision.models import resnet18
from torchvision.models.feature_extraction import create_feature_extractor

from adderize import AdderConv2d, adderize

ADDERS = 19


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return adderize(resnet18(num_classes=10)).eval()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.slow
def test_compile_fullgraph(model: nn.Module, images: torch.Tensor) -> None:
    compiled = torch.compile(model, fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(images), model(images), rtol=1e-3, atol=1e-4)


def test_compiled_training_step_has_the_eager_gradients(images: torch.Tensor) -> None:
    torch.manual_seed(0)
    network = adderize(resnet18(num_classes=10), init="normal").train()
    state = {key: value.clone() for key, value in network.state_dict().items()}
    gradients = []
    for step in (network, torch.compile(network, fullgraph=True, backend="aot_eager")):
        network.load_state_dict(state)
        network.zero_grad()
        step(images).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in network.parameters()])
    for eager, compiled in zip(*gradients, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-3, atol=1e-4 * float(eager.abs().max()))


@pytest.mark.skipif(torch.__version__ < (2, 7), reason="not tried with compiled autograd before")
def test_compiled_autograd_traces_the_gradients_of_an_eager_layer(images: torch.Tensor) -> None:
    layer = AdderConv2d(3, 4, 3)
    loss = layer(images).square().sum()
    eager = torch.autograd.grad(loss, layer.weight, retain_graph=True)[0]
    whole = {"compiled_autograd": True, "compiled_autograd_kwargs_override": {"fullgraph": True}}
    with torch._dynamo.config.patch(whole):
        torch.compile(lambda: loss.backward(), backend="aot_eager")()
    torch.testing.assert_close(layer.weight.grad, eager)


def test_export_with_dynamic_batch_saved_and_loaded(model: nn.Module, images: torch.Tensor) -> None:
    program = torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    nodes = [str(node.target) for node in program.graph.nodes]
    assert nodes.count("adderize.adder_conv2d.default") == ADDERS
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    loaded = torch.export.load(buffer).module()
    batch = torch.randn(5, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(loaded(batch), model(batch))


def test_fx_traces_one_node_a_layer(model: nn.Module, images: torch.Tensor) -> None:
    traced = torch.fx.symbolic_trace(model)
    names = [getattr(node.target, "__name__", "") for node in traced.graph.nodes]
    assert names.count("adder_conv2d") == ADDERS
    with torch.no_grad():
        torch.testing.assert_close(traced(images), model(images))


def test_feature_extractor(model: nn.Module, images: torch.Tensor) -> None:
    extractor = create_feature_extractor(model, {"layer1": "low", "layer4.1.conv2": "adder"})
    with torch.no_grad():
        features = extractor(images)
        expected = model.layer1(model.maxpool(model.relu(model.bn1(model.conv1(images)))))
    assert features["adder"].shape == (2, 512, 2, 2)
    torch.testing.assert_close(features["low"], expected)


@pytest.mark.filterwarnings("ignore:.*jit.*deprecated:FutureWarning")
def test_jit_trace_sees_the_op(model: nn.Module, images: torch.Tensor) -> None:
    """What fvcore's counters are built on."""
    graph = torch.jit.trace(model, images).inlined_graph
    kinds = [node.kind() for node in graph.nodes()]
    assert kinds.count("adderize::adder_conv2d") == ADDERS
