"""The dense kernels in all forms that layers ask for, with the tiles that each may take."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from adderize.ops.triton.kernels import forward, input_gradient, sign_filter_gradient
from adderize.ops.triton.tiles import (
    FORWARD,
    FORWARD_ODD,
    INPUT_GRADIENT,
    SIGN_FILTER_GRADIENT,
    SIGN_POSITIONS,
    Tile,
)
from benchmarks.machine_code.compiling import Code, compile_tile

DEVICES = 80, 90, 100


class Form(NamedTuple):
    """A kernel and what is compiled into it; `even`: what is summed is a multiple of 4."""

    kernel: Any
    tiles: tuple[Tile, ...]
    flags: dict[str, int]
    dtype: str = "fp32"
    even: bool = True

    def compile(self, tile: Tile, sm: int) -> Code:
        return compile_tile(self.kernel, tile, sm, self.dtype, self.even, **self.flags)


_FORWARD = Form(forward.forward, FORWARD, {"OUT_NHWC": True})
_INPUT = Form(
    input_gradient.input_gradient, INPUT_GRADIENT, {"OUT_NHWC": True, "SIGN": False, "CHUNK": 8}
)
_SIGNS = Form(sign_filter_gradient.dense, SIGN_FILTER_GRADIENT, {"POSITIONS": SIGN_POSITIONS})

FORMS = {
    "forward": _FORWARD,
    "forward, bf16": _FORWARD._replace(dtype="bf16"),
    "forward, NCHW": _FORWARD._replace(flags={"OUT_NHWC": False}),
    "forward, odd channels": _FORWARD._replace(tiles=FORWARD_ODD, even=False),
    "input gradient": _INPUT,
    "input gradient, bf16": _INPUT._replace(dtype="bf16"),
    "input gradient, NCHW": _INPUT._replace(flags=_INPUT.flags | {"OUT_NHWC": False}),
    "input gradient, filters by four": _INPUT._replace(flags=_INPUT.flags | {"CHUNK": 4}),
    "input gradient, odd channels": _INPUT._replace(flags=_INPUT.flags | {"CHUNK": 4}, even=False),
    "input gradient, sign": _INPUT._replace(flags=_INPUT.flags | {"SIGN": True}),
    "filter gradient, sign": _SIGNS,
    "filter gradient, sign, bf16": _SIGNS._replace(dtype="bf16"),
}


def every_combination() -> Iterator[tuple[str, Tile, int]]:
    """Form, tile and device: all tiles on each for the plain forms, the first elsewhere for others.

    Where the layout comes from, the intermediate code, sm_80 to sm_100 hardly differ.
    """
    for sm in DEVICES:
        for name, form in FORMS.items():
            plain = "," not in name or sm == 90
            for tile in form.tiles if plain else form.tiles[:1]:
                yield name, tile, sm
