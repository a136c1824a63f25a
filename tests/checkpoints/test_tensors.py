"""Tensors of every kind: the same values of the same dtype, or refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from adderize import AdderizeError, load_model, save_model


class Holder(nn.Module):
    def __init__(self, **buffers: Tensor) -> None:
        super().__init__()
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor)


GENERAL = torch.tensor([[1.5, -2.0, 3.25], [0.0, -0.5, 4.0]])
TENSORS = {
    **{
        str(dtype): GENERAL.to(dtype)
        for dtype in (
            torch.bool, torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32,
            torch.uint32, torch.int64, torch.uint64, torch.float16, torch.bfloat16, torch.float32,
            torch.float64, torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64,
        )
    },
    "empty": torch.zeros(0, 3),
    "scalar": torch.tensor(2.5),
    "transposed": GENERAL.t(),
    "every second": torch.arange(10.0)[1::2],
    "expanded": torch.tensor([1.0, 2.0]).expand(3, 2),
    "conjugate": torch.tensor([1 + 2j, 3 - 1j]).conj(),
    "negative": torch.tensor([1 + 2j, 3 - 1j]).conj().imag,
    "channels last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
}  # fmt: skip


@pytest.mark.parametrize("name", TENSORS)
def test_every_kind_of_tensor_comes_back(name: str, tmp_path: Path) -> None:
    tensor = TENSORS[name]
    save_model(Holder(values=tensor), tmp_path)
    fresh = Holder(values=torch.zeros(tensor.shape, dtype=tensor.dtype))
    loaded = load_model(fresh, tmp_path).values
    assert loaded.dtype == tensor.dtype
    expected = tensor.clone().resolve_conj().resolve_neg()
    bits = torch.uint8 if tensor.element_size() == 1 and tensor.dtype.is_floating_point else None
    assert torch.equal(*((t.view(bits) if bits else t) for t in (loaded, expected)))


class Tagged(Tensor):
    pass


with torch.random.fork_rng():
    REFUSED = {
        "sparse": (GENERAL.to_sparse(), "layout torch.sparse_coo"),
        "complex128": (GENERAL.to(torch.complex128), "complex128"),
        "subclass": (GENERAL.as_subclass(Tagged), "a Tagged"),
        "lazy": (nn.UninitializedBuffer(), "lazy"),
        "meta": (torch.zeros(2, device="meta"), "meta device"),
    }


@pytest.mark.parametrize("name", REFUSED)
def test_other_tensors_are_refused_by_name(name: str, tmp_path: Path) -> None:
    tensor, found = REFUSED[name]
    with pytest.raises(AdderizeError, match=f"values is .*{found}"):
        save_model(Holder(values=tensor), tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_views_of_one_memory(tmp_path: Path) -> None:
    memory = torch.arange(6.0)
    saved = Holder(whole=memory, first=memory[:2], last=memory[4:], again=memory)
    save_model(saved, tmp_path)
    other = torch.zeros(6)
    fresh = Holder(whole=other, first=other[:2], last=other[4:], again=other)
    loaded = load_model(fresh, tmp_path)
    for name, tensor in saved.named_buffers(remove_duplicate=False):
        assert torch.equal(loaded.get_buffer(name), tensor)
    fresh.whole[0] = 7
    assert fresh.first[0] == 7


def test_views_cannot_be_kept_on_the_meta_device(tmp_path: Path) -> None:
    memory = torch.arange(6.0)
    save_model(Holder(whole=memory, first=memory[:2]), tmp_path)
    blank = torch.zeros(6, device="meta")
    with pytest.raises(AdderizeError, match=r"whole and first share memory.*on the CPU"):
        load_model(Holder(whole=blank, first=blank[:2]), tmp_path)


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (torch.uint8, torch.float32),
        (torch.float32, torch.uint8),
        (torch.complex64, torch.float32),
        (torch.float32, torch.complex64),
        (torch.float32, torch.bool),
    ],
    ids=str,
)
def test_numbers_of_another_kind_are_refused(
    stored: torch.dtype, expected: torch.dtype, tmp_path: Path
) -> None:
    save_model(Holder(values=torch.ones(2, dtype=stored)), tmp_path)
    fresh = Holder(values=torch.zeros(2, dtype=expected))
    with pytest.raises(AdderizeError, match=f"values holds {stored}, expected {expected}"):
        load_model(fresh, tmp_path)
    assert not fresh.values.any()


def test_floats_are_rounded_as_torch_rounds_them(tmp_path: Path) -> None:
    exact = torch.tensor([0.1, 1e-9], dtype=torch.float64)
    save_model(Holder(values=exact), tmp_path)
    loaded = load_model(Holder(values=torch.zeros(2)), tmp_path)
    assert torch.equal(loaded.values, exact.float())


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_the_default_device_and_dtype_do_not_matter(device: str, tmp_path: Path) -> None:
    saved = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    fresh = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    dtype = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        with torch.device(device):
            save_model(saved, tmp_path)
            load_model(fresh, tmp_path)
    finally:
        torch.set_default_dtype(dtype)
    for name, tensor in saved.state_dict().items():
        found = fresh.state_dict()[name]
        assert found.dtype == tensor.dtype and torch.equal(found, tensor)
