"""What the kernels for depthwise layers and small groups compile to; no GPU is needed."""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

from adderize.ops.triton.channelwise import filter_gradient_launch, forward_launch
from adderize.ops.triton.layer import Layer
from benchmarks.machine_code.channelwise import KERNELS, LAYERS, forecast, layer

_DEPTHWISE, _STRIDED, *_, _GROUPS_OF_4, _GROUPS_OF_8 = LAYERS
# Instructions of the innermost loop a pair of an input and a filter value.
_MOST_DEPTHWISE = {"forward": 4.5, "input_gradient": 6.6, "filter_gradient": 4.0}
_MOST_OF_LONG_STRIPS = 3.4
_MOST_GROUPED = {"forward": 3.2, "input_gradient": 4.25, "filter_gradient": 7.5}
# More of them on sm_80, for addresses, and on half precision, for its conversion.
_MORE_ON_SM_80, _MORE_FOR_HALF = 0.25, 0.7


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", [_DEPTHWISE, _GROUPS_OF_4])
def test_machine_code(name: str, kernel: str) -> None:
    _check(name, kernel, 90, "fp32")


@pytest.mark.slow
@pytest.mark.parametrize("sign", [False, True])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("sm", [80, 90, 100])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", LAYERS)
def test_machine_code_of_every_layer(
    name: str, kernel: str, sm: int, dtype: str, sign: bool
) -> None:
    _check(name, kernel, sm, dtype, sign)


def _check(name: str, kernel: str, sm: int, dtype: str, sign: bool = False) -> None:
    found = forecast(LAYERS[name], kernel, sm, dtype, SIGN=sign)
    loop, whole = found.machine.loop, found.machine.whole
    # A limit of registers, ours or the assembler's, may cost one instruction in a hundred before
    # and after the loop (of groups also Triton 3.6's, 8 in all); in the loop only that of the
    # filter gradient of fp16 or of many taps, where fewer blocks on a multiprocessor would cost
    # more (on sm_80 three in a hundred).
    grouped = LAYERS[name].channels > 1
    may_reload = kernel == "filter_gradient" and (dtype == "fp16" or LAYERS[name].kernel_height > 3)
    strict = sm >= 90 and dtype == "fp32" and not sign and not may_reload
    assert found.machine.spills <= (8 * grouped if strict else found.instructions // 100)
    most_reloads = (3 if sm == 80 else 1) * loop.total() // 100
    assert loop["LDL"] + loop["STL"] <= (most_reloads if may_reload else 0)
    assert not loop["LDS"] + loop["LDS.128"] + loop["BAR"], "a tile changes hands in the loop"
    # Four neighbours at once: 16 bytes of float32, 8 of half precision. Single values are filters',
    # which the input gradient looks at once more for NaN.
    singles = max(4, LAYERS[name].kernel_height) if kernel == "input_gradient" else 0
    assert loop["LDG.128"] > 0 and loop["LDG"] <= singles
    assert whole["STG.128"] + whole["STG.64"] > 0 and not whole["STG"]
    if dtype != "fp32":
        # The input gradient reads its input once, before the loop.
        assert (whole if kernel == "input_gradient" else loop)["LDG.64"] > 0
    if not sign and LAYERS[name].stride_h == 1:
        most = (_MOST_GROUPED if grouped else _MOST_DEPTHWISE)[kernel]
        if kernel == "filter_gradient" and LAYERS[name].kernel_height > 3:
            most = _MOST_OF_LONG_STRIPS
        most += _MORE_ON_SM_80 * (sm == 80) + _MORE_FOR_HALF * (dtype != "fp32")
        pairs = found.pairs / found.launch.turns
        assert loop.total() / pairs <= most


def test_results_in_contiguous_images_keep_the_loop() -> None:
    for name in (_DEPTHWISE, _GROUPS_OF_4):
        found = forecast(LAYERS[name], "forward", OUT_NHWC=False)
        assert found.machine.spills == 0
        assert not found.machine.loop["BAR"] and found.machine.loop["LDG.128"] > 0


@pytest.mark.parametrize(
    ("channels", "columns"), [(16, 16), (24, 32), (64, 64), (96, 32), (144, 16), (576, 64)]
)
def test_tiles_of_channels_waste_little(channels: int, columns: int) -> None:
    options = forward_launch(layer(channels, channels, 14)).options
    assert options["COLUMNS"] == columns and options["ROWS"] * columns == 512


@pytest.mark.parametrize(
    ("channels", "size", "kernel", "tile"),
    [(240, 28, 5, (7, 16, 32)), (96, 56, 7, (8, 16, 32)), (96, 7, 5, (7, 8, 64)),
     (24, 4, 5, (4, 16, 32)), (64, 32, 7, (8, 16, 32)), (96, 112, 3, (4, 16, 32))],
)  # fmt: skip
def test_filter_gradients_of_many_taps_take_long_strips(
    channels: int, size: int, kernel: int, tile: tuple[int, int, int]
) -> None:
    options = filter_gradient_launch(layer(channels, channels, size, kernel), sign=False).options
    assert (options["STRIP"], options["ROWS"], options["COLUMNS"]) == tile


def test_filter_gradients_fill_the_device_in_parts() -> None:
    for of in LAYERS.values():
        launch = filter_gradient_launch(of, sign=False)
        assert 528 <= launch.programs <= 1056 and launch.turns >= 4
    assert filter_gradient_launch(layer(8, 8, 1), sign=False).splits == 64 // 4


def _odd_layers() -> dict[str, Layer]:
    """Vectors of 1, 2 and 4, dilations, long strides, kernels that are not unrolled."""
    layers = {
        f"{channels} to {filters}": layer(3 * channels, 3, 9)._replace(filters=filters)
        for channels, filters in ((1, 2), (2, 1), (3, 3), (2, 4), (4, 2), (12, 1))
    }
    depthwise = layer(7, 7, 9)
    return layers | {
        "1x3": depthwise._replace(kernel_height=1, padding_h=0, out_height=9),
        "stride 3": depthwise._replace(stride_h=3, stride_w=3, out_height=3, out_width=3),
        "dilation 6": depthwise._replace(dilation_h=6, dilation_w=6, padding_h=6, padding_w=6),
        "6 channels": layer(6, 6, 9),
        "9x9": layer(7, 7, 9, 9),
    }


@pytest.mark.slow
@pytest.mark.parametrize("flags", [{}, {"OUT_NHWC": False, "SIGN": True}])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", _odd_layers())
def test_every_form_compiles(name: str, kernel: str, flags: dict[str, bool]) -> None:
    loop = forecast(_odd_layers()[name], kernel, dtype="bf16", **flags).machine.loop
    # Of a strip's sixteen rows at dilation 6 four addresses find no register: 4 in 2,009.
    crowded = (name, kernel, flags.get("SIGN")) == ("dilation 6", "filter_gradient", True)
    assert loop["LDL"] + loop["STL"] <= (4 if crowded else 0)
