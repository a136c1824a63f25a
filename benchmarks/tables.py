"""The tables of documentation that hold figures, from machines' files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from adderize.bench.layers import PASSES
from adderize.ops.native.register_loops import LOOPS
from adderize.tables import Table, shape_text
from benchmarks.cells import (
    GIGA,
    TERA,
    Row,
    chosen,
    is_grouped,
    layer,
    network,
    network_and_batch,
    network_and_size,
    number,
    ratio,
    span,
    speedups,
    two_digits,
)
from benchmarks.machines import Machine

_INT8_CNN = "cnn int8, onnxruntime"


def overview(machines: Mapping[str, Machine], *archs: str) -> Table:
    """Steps of these networks, and 8-bit inference of ResNet-18, on every machine that has them."""
    machines = {name: each for name, each in machines.items() if "step" in each or "int8" in each}
    rows: list[tuple[str, Callable[[Machine, str], str], str]] = [
        (f"training step, {network({'arch': arch})}: times the CNN's", _step_cell, arch)
        for arch in archs
    ]
    faster = "times faster than torch's float32 CNN"
    rows += [
        (f"8-bit ResNet-18, batch 1 and 8: {faster}", _int8_cell, "adder int8"),
        (f"int8 CNN in onnxruntime: {faster}", _int8_cell, _INT8_CNN),
    ]
    return Table(
        ["", *(machine["machine"]["name"] for machine in machines.values())],
        [[title, *(cell(m, key) for m in machines.values())] for title, cell, key in rows],
    )


def _step_cell(machine: Machine, arch: str) -> str:
    for row in _of(machine.get("step", ()), arch):
        if "ratio" in row:
            return span(row["ratio"])
        pairs = ("adder_ms", "cnn_tf32_ms", ""), ("adder_bf16_ms", "cnn_bf16_ms", " in bf16")
        return "; ".join(
            f"{row[adder] / row[cnn]:.1f}{text}" for adder, cnn, text in pairs if adder in row
        )
    for row in _of(machine.get("cuda_graph", ()), arch):
        if "cnn_s_per_epoch" in row:
            return f"{row['adder_s_per_epoch'] / row['cnn_s_per_epoch']:.1f}, as a CUDA graph"
    return ""


def _int8_cell(machine: Machine, name: str) -> str:
    rows = chosen(machine.get("int8", ()), arch="resnet18", instruction_set=None)
    most = max((row["threads"] for row in rows), default=0)
    figures = [speedups(row).get(name) for row in chosen(rows, threads=most)]
    return ", ".join(ratio(round(each, 2)) for each in figures if each)


def _of(rows: Sequence[Row], arch: str) -> list[Row]:
    return [row for row in rows if network(row) == network({"arch": arch})]


def facts(machine: Machine) -> Table:
    """What was measured on, and what is not known of it."""
    about = machine["machine"]
    texts = {
        "processor": about.get("processor"),
        "GPU": about.get("gpu"),
        "threads": about.get("threads"),
        "features": ", ".join(about.get("features", ())),
        "versions": ", ".join(f"{name} {version}" for name, version in about["versions"].items()),
        "measured": about.get("date", "on an unknown day"),
        "notes": " ".join(about.get("notes", ())),
    }
    return Table(["", about["name"]], [[name, str(text)] for name, text in texts.items() if text])


def step(machine: Machine) -> Table:
    rows = machine["step"]
    header = ["training step", "CNN, ms", "adder, ms", "time", "peak memory"]
    limits = any("percent_of_limit" in row for row in rows)
    return Table(
        header + ["of the limit"] * limits,
        [
            [
                f"{network(row)}, {shape_text(row['input_size'][1:])}, batch {row['batch']}",
                number(row["cnn_ms"]),
                number(row["adder_ms"]),
                _times(row["ratio"]),
                _times(row["memory_ratio"]),
                *([_percent(row)] if limits else []),
            ]
            for row in rows
        ],
    )


def _percent(row: Row) -> str:
    return f"{row['percent_of_limit']:.0f} %" if "percent_of_limit" in row else ""


def _times(value: object) -> str:
    return ", ".join(f"{each}x" for each in ratio(value).split(", "))


def layers(machine: Machine) -> Table:
    rows = machine["layers"]
    passes = [name for name in PASSES if any(name in row for row in rows)]
    header = [f"{name}, forward" if name == "8 bits" else name for name in passes]
    return Table(
        ["layer", *header],
        [[layer(row["layer"]), *(_pass(row[name]) for name in passes)] for row in rows],
    )


def _pass(figures: Row) -> str:
    percent = _percent(figures)
    return two_digits(figures["ratio"]) + (f" ({percent})" if percent else "")


def rates(machine: Machine) -> Table:
    """Of layers of which only the least and the largest figures are known."""
    return Table(
        ["", "G pairs a second", "of the limit", "times oneDNN's convolution"],
        [
            [
                ", ".join(row[key] for key in ("pass", "layers") if key in row),
                span(row["pairs_per_second"], GIGA),
                f"{span(row['percent_of_limit'])} %" if "percent_of_limit" in row else "",
                span(row["ratio"]) if "ratio" in row else "",
            ]
            for row in machine["rates"]
        ],
    )


def limits(machine: Machine) -> Table:
    cpus = machine["limits"]
    return Table(
        ["G pairs a second, one core", "a pair of x and F", *map(str.upper, cpus)],
        [
            [
                name,
                term if "|" in term else f"`{term}`",
                *(_rate(cpu.get(name)) for cpu in cpus.values()),
            ]
            for name, term in LOOPS.items()
        ],
    )


def _rate(value: float | None) -> str:
    return "" if value is None else f"{value / GIGA:.1f}".removesuffix(".0")


def int8(machine: Machine) -> Table:
    """Ratios to torch's float32 CNN."""
    columns = {
        "adder": "adder, float32",
        "adder int8": "adder, 8 bits",
        _INT8_CNN: "CNN, onnxruntime int8",
    }
    return _inference(machine, columns, lambda row, name: two_digits(speedups(row).get(name)))


def int8_ms(machine: Machine) -> Table:
    columns = {
        "cnn, torch": "CNN, torch",
        "cnn, onnxruntime": "CNN, onnxruntime",
        "adder": "adder, float32",
        "adder int8": "adder, 8 bits",
        _INT8_CNN: "CNN, onnxruntime int8",
    }
    return _inference(machine, columns, lambda row, name: number(row["ms"].get(name), 1))


def _inference(
    machine: Machine, columns: Mapping[str, str], cell: Callable[[Row, str], str]
) -> Table:
    """A row for each network, batch and number of threads, a column for each rival."""
    return Table(
        ["network, batch", "threads", *columns.values()],
        [
            [network_and_batch(row), str(row["threads"]), *(cell(row, name) for name in columns)]
            for row in machine["int8"]
        ],
    )


def gpu_step(machine: Machine) -> Table:
    keys = ("cnn_tf32_ms", "adder_ms", "cnn_bf16_ms", "adder_bf16_ms")
    return Table(
        ["network", "CNN, float32", "adder, float32", "CNN, bf16", "adder, bf16"],
        [
            [network_and_size(row), *(number(row.get(key), 1) for key in keys)]
            for row in machine["step"]
        ],
    )


def gpu_phases(machine: Machine) -> Table:
    """Milliseconds of the kernels of an adder network's step, and of the whole step."""
    keys = {"float32": "adder", "bf16": "adder_bf16"}
    steps = [
        (f"{network_and_size(row)}, {name}", row[f"{key}_phases_ms"], row[f"{key}_ms"])
        for row in machine["step"]
        for name, key in keys.items()
        if f"{key}_phases_ms" in row
    ]
    return Table(
        ["kernels, ms", *steps[0][1], "all kernels", "whole step"],
        [
            [
                name,
                *(number(ms, 1) for ms in phases.values()),
                number(sum(phases.values()), 1),
                number(step, 1),
            ]
            for name, phases, step in steps
        ],
    )


def gpu_rates(machine: Machine) -> Table:
    """Layers of one group: pairs a second."""
    return Table(
        [
            "layer",
            "forward, T pairs/s (of the limit)",
            "input gradient, T pairs/s (of the limit)",
            "filter gradient, ms: float32, bf16 (the convolution's)",
        ],
        [
            [
                layer(row["layer"]),
                *(_tera_pairs(row[name]) for name in ("forward", "input gradient")),
                _beside(row["filter gradient"]),
            ]
            for row in machine["layers"]
            if not is_grouped(row["layer"])
        ],
    )


def _tera_pairs(figures: Row) -> str:
    return f"{figures['pairs_per_second'] / TERA:.1f} ({_percent(figures)})"


def gpu_ms(machine: Machine) -> Table:
    """Layers of groups, which are bound by memory: milliseconds."""
    return Table(
        [
            "layer, ms: adder float32, bf16; convolution TF32, bf16",
            *("forward", "input gradient", "filter gradient"),
        ],
        [
            [
                layer(row["layer"]),
                *(
                    _of_groups(row[name])
                    for name in ("forward", "input gradient", "filter gradient")
                ),
            ]
            for row in machine["layers"]
            if is_grouped(row["layer"])
        ],
    )


def _beside(figures: Row) -> str:
    pairs = ((figures[f"adder{end}_ms"], figures[f"convolution{end}_ms"]) for end in ("", "_bf16"))
    return ", ".join(f"{adder:.2f} ({convolution:.2f})" for adder, convolution in pairs)


def _of_groups(figures: Row) -> str:
    keys = (("adder_ms", "adder_bf16_ms"), ("convolution_tf32_ms", "convolution_bf16_ms"))
    return "; ".join(", ".join(f"{figures[key]:.2f}" for key in pair) for pair in keys)


# By the name behind a machine's in a page.
OF_MACHINE: dict[str, Callable[[Machine], Table]] = {
    "machine": facts,
    "step": step,
    "layers": layers,
    "rates": rates,
    "limits": limits,
    "int8": int8,
    "int8-ms": int8_ms,
    "gpu-step": gpu_step,
    "gpu-phases": gpu_phases,
    "gpu-rates": gpu_rates,
    "gpu-ms": gpu_ms,
}
