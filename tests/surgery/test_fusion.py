"""Fusions that would take adders for convolutions raise, until the layers are restored."""

from __future__ import annotations

import copy
import pickle

import pytest
import timm
import torch
from timm.utils import reparameterize_model
from torch import nn
from torch.nn.utils import fuse_conv_bn_eval, fuse_linear_bn_eval

from adderize import AdderizeError, AdderLinear, adderize, binarize, load_model, plan, restore
from adderize import save_model as save
from tests.surgery.test_adderize import small_cnn

NAMES = ["repvgg_a0", "mobileone_s0", "fastvit_t8"]


@pytest.mark.parametrize("convert", [adderize, binarize])
def test_torch_does_not_fuse_converted_layers(convert):
    model = convert(small_cnn()).eval()
    with pytest.raises(AdderizeError, match=f"got a {type(model[1][0]).__name__}"):
        fuse_conv_bn_eval(*model[1][:2])
    fuse_conv_bn_eval(*model[0][:2])
    copy.deepcopy(model)
    pickle.loads(pickle.dumps(model[1][0]))
    fuse_conv_bn_eval(*restore(model)[1][:2])


def test_torch_does_not_fuse_linear_adders():
    with pytest.raises(AdderizeError, match="got a AdderLinear"):
        fuse_linear_bn_eval(AdderLinear(3, 4).eval(), nn.BatchNorm1d(4).eval())


@pytest.mark.parametrize("name", NAMES)
def test_blocks_do_not_merge_adders(name):
    model = timm.create_model(name, num_classes=4).eval()
    original = copy.deepcopy(model)
    remarks = [r for r in plan(model).remarks if "merges layers as if they were conv" in r]
    assert remarks and all("will raise: " in remark for remark in remarks)
    adderize(model)
    with pytest.raises(AdderizeError, match=r"restore\(\) the model first, or leave the block"):
        reparameterize_model(model)
    restore(model)
    assert model.state_dict().keys() == original.state_dict().keys()
    assert len([*reparameterize_model(model).modules()]) < len([*original.modules()])


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.fused = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), False

    def forward(self, x):
        return self.fuse(x, self.bn(self.conv(x)))

    def fuse(self, x, y):
        return x + y

    def switch_to_deploy(self):
        self.fused = True


def with_block() -> nn.Sequential:
    model = small_cnn()
    model.insert(1, Block())
    return model


def test_methods_that_fuse_features_stay(tmp_path):
    model = adderize(with_block())
    model(torch.randn(2, 3, 8, 8))
    with pytest.raises(AdderizeError, match=r"1\.switch_to_deploy\(\) merges layers"):
        model[1].switch_to_deploy()
    copied = pickle.loads(pickle.dumps(model))
    with pytest.raises(AdderizeError, match="merges layers"):
        copied[1].switch_to_deploy()
    save(model, tmp_path)
    with pytest.raises(AdderizeError, match="merges layers"):
        load_model(with_block(), tmp_path)[1].switch_to_deploy()
    restore(model)[1].switch_to_deploy()
    assert model[1].fused and vars(model[1]).keys() == vars(Block()).keys()


class LowRank(nn.Module):
    """A convolution with a low-rank adapter beside it, as PEFT makes them."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Conv2d(4, 4, 3, padding=1)
        self.down, self.up = nn.Conv2d(4, 2, 3, padding=1), nn.Conv2d(2, 4, 1)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))

    def merge(self, safe_merge=False, adapter_names=None):
        product = torch.einsum("orij,rchw->ochw", self.up.weight, self.down.weight)
        self.base.weight.data += product


def test_adapters_do_not_merge_into_adders():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), LowRank(), nn.Conv2d(4, 2, 3))
    adderize(model, exclude=["1.down", "1.up"])
    before = model[1].base.weight.clone()
    with pytest.raises(AdderizeError, match=r"1\.merge\(\) merges layers"):
        model[1].merge(safe_merge=True, adapter_names=["default"])
    assert torch.equal(model[1].base.weight, before)
    restore(model)[1].merge(True)
    assert not torch.equal(model[1].base.weight, before)


def test_blocks_without_adders_may_merge():
    model = adderize(with_block(), exclude="1.conv")
    model[1].switch_to_deploy()
    assert model[1].fused and plan(with_block(), exclude="1.conv").remarks == ()
