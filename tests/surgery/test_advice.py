"""What a conversion tells its caller: nothing new, frozen filters, what was made before it."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from adderize import adderize, binarize, plan
from tests.surgery.test_adderize import small_cnn


def test_a_second_call_warns_once_and_changes_nothing():
    model = adderize(small_cnn())
    before = copy.deepcopy(model.state_dict())
    with pytest.warns(UserWarning, match="nothing new to convert") as caught:
        assert adderize(model) is model
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_second_call_converts_what_is_left():
    model = adderize(small_cnn(), include="1.*")
    adderize(model, include="2.*")
    assert [row.decision for row in plan(model).rows] == ["keep", "adder", "adder", "keep"]


def test_an_optimizer_whose_constructor_failed_does_no_harm():
    broken = torch.optim.SGD.__new__(torch.optim.SGD)
    adderize(small_cnn())
    del broken


def test_an_older_optimizer_is_told_what_it_lacks():
    model = small_cnn()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    other = torch.optim.Adam(small_cnn().parameters())
    with pytest.warns(
        UserWarning, match=r"SGD .*lacks 2\.0\.norm\.weight, 2\.0\.norm\.bias"
    ) as caught:
        adderize(model)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert model[1][0].weight in set(optimizer.param_groups[0]["params"])
    del other


def test_an_older_optimizer_without_new_parameters_is_fine(recwarn):
    model = small_cnn()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    adderize(model, exclude="2.0")
    assert not recwarn.list
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    before = model[1][0].weight.detach().clone()
    optimizer.step()
    assert not torch.equal(before, model[1][0].weight)


@pytest.fixture
def process_group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_a_wrapper_that_does_not_know_the_inserted_norms(recwarn) -> None:
    model, other = small_cnn(), small_cnn()
    wrapper = DistributedDataParallel(model)
    broken = DistributedDataParallel.__new__(DistributedDataParallel)
    adderize(other)
    adderize(small_cnn().requires_grad_(False), exclude="2.0")
    assert not [warning for warning in recwarn if "made before" in str(warning.message)]
    with pytest.warns(
        UserWarning,
        match=r"DistributedDataParallel .*lacks 2\.0\.norm\.weight.*wrap the model after",
    ) as caught:
        adderize(model)
    assert len(caught) == 1 and caught[0].filename == __file__
    assert wrapper(torch.randn(2, 3, 8, 8)).shape == (2, 4)
    del broken


@pytest.mark.parametrize("convert", [adderize, binarize])
def test_frozen_filters_are_told_of(convert):
    model = small_cnn()
    model[1][0].requires_grad_(False)
    words = r"the filters of 1\.0 are frozen and would never learn"
    (remark,) = plan(model, target="binary" if convert is binarize else "adder").remarks
    assert re.match(words, remark)
    with pytest.warns(UserWarning, match=words) as caught:
        convert(model)
    assert caught[0].filename == __file__


def test_frozen_layers_that_stay_are_no_matter(recwarn):
    model = small_cnn().requires_grad_(False)
    model[2][0].requires_grad_(True)
    assert plan(model, exclude="1.0").remarks == ()
    adderize(model, exclude="1.0")
    assert not recwarn.list
