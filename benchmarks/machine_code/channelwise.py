"""python -m benchmarks.machine_code.channelwise [--sm 90]: depthwise layers and small groups.

What their kernels compile to, and a time that follows: the longer of what the memory takes for
reading and writing every tensor once (3 TB/s), and of what the instructions take to issue (132
multiprocessors, four a clock, 1.755 GHz: an H100). A computation, not a measurement.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

from adderize.ops.triton import channelwise as launches
from adderize.ops.triton.layer import Layer
from benchmarks.machine_code import sass
from benchmarks.machine_code.compiling import compile_kernel

KERNELS = "forward", "input_gradient", "filter_gradient"
_BYTES_A_SECOND = 3e12
_ISSUED_A_SECOND = 132 * 4 * 1.755e9


def layer(channels: int, groups: int, size: int, kernel: int = 3, stride: int = 1) -> Layer:
    """64 images of size x size under square kernels, padded by half of these."""
    out, group = (size - 1) // stride + 1, channels // groups
    pairs = (kernel, kernel, stride, stride, kernel // 2, kernel // 2, 1, 1)
    return Layer(64, size, size, out, out, group, group, groups, *pairs)


LAYERS = {
    "depthwise 3x3, 96 channels, 112x112": layer(96, 96, 112),
    "depthwise 3x3, 96 channels, 112x112, stride 2": layer(96, 96, 112, stride=2),
    "depthwise 5x5, 240 channels, 28x28": layer(240, 240, 28, 5),
    "depthwise 7x7, 96 channels, 56x56": layer(96, 96, 56, 7),
    "32 groups of 4, 3x3, 56x56": layer(128, 32, 56),
    "32 groups of 8, 3x3, 28x28": layer(256, 32, 28),
}


class Forecast(NamedTuple):
    machine: sass.Machine
    launch: launches.Launch
    pairs: float
    """Of an input and a filter value, that a thread has."""
    bytes: int

    @property
    def instructions(self) -> float:
        """Of a thread: its innermost loop as often as it turns, all others once."""
        inside = self.machine.loop.total()
        return self.machine.whole.total() + inside * (self.launch.turns - 1)

    @property
    def memory_ms(self) -> float:
        return self.bytes / _BYTES_A_SECOND * 1e3

    @property
    def issue_ms(self) -> float:
        warps = self.launch.programs * self.launch.options["num_warps"]
        return self.instructions * warps / _ISSUED_A_SECOND * 1e3


def forecast(of: Layer, kernel: str, sm: int = 90, dtype: str = "fp32", **flags: Any) -> Forecast:
    """Flags: OUT_NHWC and SIGN."""
    flags = {"OUT_NHWC": True, "SIGN": False, **flags}
    launch_of: dict[str, Callable[[Layer], Any]] = {
        "forward": launches.forward_launch,
        "input_gradient": launches.input_gradient_launch,
        "filter_gradient": lambda of: launches.filter_gradient_launch(of, flags["SIGN"]),
    }
    launch = launch_of[kernel](of)
    options = {name: value for name, value in launch.options.items() if name.islower()}
    tile = {name: value for name, value in launch.options.items() if name.isupper()}
    compiled = compile_kernel(launch.kernel, {**tile, **flags}, options, sm, dtype)
    machine = sass.disassemble(compiled.asm["cubin"])
    pairs = of.positions * of.groups * of.filters * of.channels * of.taps
    threads = 32 * options["num_warps"] * launch.programs
    return Forecast(machine, launch, pairs / threads, _bytes(of, kernel, dtype))


def _bytes(of: Layer, kernel: str, dtype: str) -> int:
    channels, filters = of.groups * of.channels, of.groups * of.filters
    width = 4 if dtype == "fp32" else 2
    images = of.images * of.height * of.width * channels * width
    outputs = of.positions * filters * 4
    return outputs + images * (2 if kernel == "input_gradient" else 1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, prog="python -m benchmarks.machine_code.channelwise"
    )
    parser.add_argument("--sm", type=int, nargs="+", default=[90], help="default: 90")
    parser.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), default="fp32")
    arguments = parser.parse_args()
    print("| layer | kernel | device | instructions a pair | registers | spills | memory, ms "
          "| issue, ms |")  # fmt: skip
    print("|---|---|---|" + "--:|" * 5)
    for sm in arguments.sm:
        for name, of in LAYERS.items():
            for kernel in KERNELS:
                found = forecast(of, kernel, sm, arguments.dtype)
                cells = (
                    name,
                    kernel.replace("_", " "),
                    f"sm_{sm}",
                    f"{found.instructions / found.pairs:.1f}",
                    found.machine.registers,
                    found.machine.spills,
                    f"{found.memory_ms:.3f}",
                    f"{found.issue_ms:.3f}",
                )
                print("| " + " | ".join(map(str, cells)) + " |", flush=True)


if __name__ == "__main__":
    main()
