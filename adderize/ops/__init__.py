"""The ops: ``torch.ops.adderize`` is defined when this package is imported.

schemas.py                    the registry: schemas and fakes
operands.py, byte_operands.py what the ops accept
geometry.py                   stride, padding, dilation, groups and the output's size
gradients.py                  the gradient modes
choice.py                     which backend serves a device and dtype, and why
reference/, native/, triton/  the backends; `reference/` states the mathematics
autograd.py, transforms.py    gradients and autocast; torch.func
flops.py                      formulas of torch's FLOP counter
bytes.py, packing.py          what layers on bytes call
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from adderize.ops import autograd, choice, flops, reference, transforms
from adderize.ops.schemas import OPS, Op

_library = torch.library.Library("adderize", "DEF")


def _kernel(name: str, op: Op) -> Callable[..., Tensor]:
    operand = op.operand
    if operand is None:
        only: Callable[..., Tensor] = getattr(reference, name)
        return lambda *arguments: only(*op.accept(*arguments))

    def kernel(*arguments: Any) -> Tensor:
        accepted = op.accept(*arguments)
        return choice.kernel(name, accepted[operand])(*accepted)

    return kernel


def _fake(op: Op) -> Callable[..., Tensor]:
    return lambda *arguments: op.fake(*op.accept(*arguments))


for _name, _op in OPS.items():
    _library.define(f"{_name}({_op.arguments}) -> Tensor")
    _library.impl(_name, _kernel(_name, _op), "CompositeExplicitAutograd")
    torch.library.register_fake(f"adderize::{_name}", _fake(_op), lib=_library)
autograd.register(_library)
transforms.register(_library)
flops.register()
