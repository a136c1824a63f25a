"""Tensors as safetensors files hold them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from adderize.errors import AdderizeError

_DTYPES = frozenset({
    torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int8, torch.int16,
    torch.int32, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64,
    torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz,
    torch.complex64,
})  # fmt: skip


def storable(name: str, tensor: Tensor) -> Tensor:
    """The tensor as safetensors stores it: on the CPU, its values in order, nothing left to do.

    Raises:
        AdderizeError: one without values, or of a class, layout or dtype that the format lacks.
    """
    found = None
    if tensor.is_meta:
        raise AdderizeError(f"{name} is on the meta device and has no values to save")
    if type(tensor) not in (Tensor, nn.Parameter, nn.Buffer):
        found = f"a {type(tensor).__name__}"
    elif tensor.layout is not torch.strided:
        found = f"of the layout {tensor.layout}"
    elif tensor.dtype not in _DTYPES:
        found = f"of {tensor.dtype}"
    if found is not None:
        raise AdderizeError(
            f"{name} is {found}, which safetensors files do not hold; expected a dense torch.Tensor"
        )
    return tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()


def unshared(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Views of one storage become tensors of their own, which safetensors asks for."""
    seen: set[int] = set()
    for name, tensor in tensors.items():
        pointer = tensor.untyped_storage().data_ptr()
        if pointer in seen:
            tensors[name] = tensor.clone()
        seen.add(pointer)
    return tensors
