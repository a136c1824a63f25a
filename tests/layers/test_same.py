"""Networks with TensorFlow's padding under torch.fx and timm's extraction of features."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from adderize import adderize
from adderize.layers import AdderConv2dSame

timm = pytest.importorskip("timm")


def _model(name: str) -> nn.Module:
    torch.manual_seed(0)
    return adderize(timm.create_model(name, num_classes=5)).eval()


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "tf_mobilenetv3_small_minimal_100"])
@pytest.mark.filterwarnings("ignore:.*jit.*:FutureWarning")
def test_networks(name: str) -> None:
    from timm.models import create_feature_extractor
    from timm.models._features_fx import get_graph_node_names, get_notrace_modules

    class Tracer(torch.fx.Tracer):
        """timm's own layers of this kind, such as the stem that stays, are leaves."""

        def is_leaf_module(self, m: nn.Module, qualname: str) -> bool:
            return type(m) in get_notrace_modules() or super().is_leaf_module(m, qualname)

    model, images = _model(name), torch.randn(2, 3, 64, 50)
    assert any(isinstance(module, AdderConv2dSame) for module in model.modules())
    expected = model(images)
    traced = torch.fx.GraphModule(model, Tracer().trace(model))
    torch.testing.assert_close(traced(images), expected)
    other = torch.randn(2, 3, 33, 47)
    torch.testing.assert_close(traced(other), model(other))
    last = get_graph_node_names(model)[1][-1]
    extractor = create_feature_extractor(model, {last: "last"}).eval()
    torch.testing.assert_close(extractor(images)["last"], expected)
    scripted = torch.jit.script(model.eval())
    torch.testing.assert_close(scripted(other), model(other), rtol=1e-4, atol=1e-4)


def test_a_network_of_nothing_else_is_traced_by_torch_alone() -> None:
    from torchvision.models.feature_extraction import create_feature_extractor

    net = nn.Sequential(AdderConv2dSame(3, 4, 3, 2), nn.BatchNorm2d(4), AdderConv2dSame(4, 4, 5, 3))
    images = torch.randn(1, 3, 17, 20)
    traced = torch.fx.symbolic_trace(net.eval())
    torch.testing.assert_close(traced(images), net(images))
    torch.testing.assert_close(traced(images[..., 3:]), net(images[..., 3:]))
    torch.testing.assert_close(create_feature_extractor(net, {"2": "y"})(images)["y"], net(images))
    dynamic = ({2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(net, (images,), dynamic_shapes=dynamic).module()
    torch.testing.assert_close(program(images[..., 4:]), net(images[..., 4:]))
