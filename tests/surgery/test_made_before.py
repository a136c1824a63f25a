"""What was made for a model before its conversion: optimizers are in test_refusals.py."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from adderize import adderize
from tests.surgery.test_adderize import small_cnn


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
    assert not recwarn.list
    with pytest.warns(
        UserWarning,
        match=r"DistributedDataParallel .*lacks 2\.0\.norm\.weight.*wrap the model after",
    ) as caught:
        adderize(model)
    assert len(caught) == 1 and caught[0].filename == __file__
    assert wrapper(torch.randn(2, 3, 8, 8)).shape == (2, 4)
    del broken
