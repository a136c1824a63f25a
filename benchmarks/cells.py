"""What the tables of figures share: numbers, names of networks and of layers as texts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from adderize.bench import gpu_report
from adderize.bench.layers import LAYERS, Layer

Row = Mapping[str, Any]
GIGA, TERA = 1e9, 1e12
_NETWORKS = {
    "resnet18": "ResNet-18",
    "resnet20": "ResNet-20",
    "adderize.models:resnet20": "ResNet-20",
    "resnet50": "ResNet-50",
    "mobilenet_v2": "MobileNet v2",
    "efficientnet_b0": "EfficientNet-B0",
    "timm:convnext_tiny": "ConvNeXt-T",
}


def network(row: Row) -> str:
    arch: str = row["arch"]
    return _NETWORKS.get(arch, arch)


def network_and_size(row: Row) -> str:
    """Sizes other than the photographs' 224x224 are named, with the batch."""
    *_, height, width = row["input_size"]
    usual = (height, width) == (224, 224)
    return network(row) if usual else f"{network(row)}, batch {row['batch']}, {height}x{width}"


def network_and_batch(row: Row) -> str:
    cell = f"{network(row)}, {row['batch']}"
    return f"{cell}, {row['instruction_set'].upper()}" if "instruction_set" in row else cell


_KNOWN = {layer.name: layer for layer in (*LAYERS, *gpu_report.LAYERS)}


def layer(name: str) -> str:
    """A layer of `adderize bench layers` or of a GPU's report in words; other names as they are."""
    return _in_words(_KNOWN[name]) if name in _KNOWN else name


def is_grouped(name: str) -> bool:
    """Whether it is a known layer of groups, such as a depthwise one."""
    return name in _KNOWN and _KNOWN[name].geometry.groups > 1


def _in_words(layer: Layer) -> str:
    (stride, _), _, (dilation, _), groups = layer.geometry
    kind = f"{layer.kernel}x{layer.kernel}"
    if groups == layer.channels > 1:
        kind = f"depthwise {kind}"
    elif groups > 1:
        kind += f" in {groups} groups"
    parts = [kind]
    if stride > 1:
        parts.append(f"stride {stride}")
    if dilation > 1:
        parts.append(f"dilation {dilation}")
    same = layer.channels == layer.filters
    parts.append(f"{layer.channels}{'' if same else f' to {layer.filters}'} channels")
    return ", ".join([*parts, f"{layer.size}x{layer.size}", f"batch {layer.batch}"])


def number(value: float | None, digits: int = 0) -> str:
    """An integer that was kept as such has no digits behind the point; empty for None."""
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.{digits}f}"


def ratio(value: Any) -> str:
    """Each run's, of two digits behind the point unless fewer are known."""
    return ", ".join(_short(each) for each in each_of(value))


def span(value: Any, unit: float = 1) -> str:
    """The least and the largest."""
    low, high = min(each_of(value)) / unit, max(each_of(value)) / unit
    return _short(low) if low == high else f"{_short(low)} to {_short(high)}"


def each_of(value: Any) -> list[float]:
    return value if isinstance(value, list) else [value]


def _short(value: float) -> str:
    return str(round(value, 2)).removesuffix(".0") if value >= 10 else str(round(value, 2))


def speedups(row: Row) -> dict[str, float]:
    """Times faster than torch's float32 CNN, of every network of a row of 8-bit inference."""
    known = dict(row.get("speedup", {}))
    times = row.get("ms", {})
    return {name: times["cnn, torch"] / ms for name, ms in times.items()} | known


def two_digits(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def chosen(rows: Iterable[Row], **wanted: Any) -> list[Row]:
    """Rows with these values."""
    return [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]
