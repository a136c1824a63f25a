"""What a machine's file holds of the report of ``adderize bench gpu-report``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from adderize.bench.layers import TRAINING_PASSES

# In float32 trainings on GPUs compute convolutions in TF32.
_CNN = {"fp32": "cnn_tf32", "bf16": "cnn_bf16"}
_ADDER = {"fp32": "adder", "bf16": "adder_bf16"}


def of_a_gpu(report: Mapping[str, Any]) -> dict[str, Any]:
    """The sections: limits, layers, steps with both precisions in a row, epochs.

    What failed or was left out is in none of them.
    """
    limits, passes = report["limits"] or {}, TRAINING_PASSES[:2]
    keys = {name: f"{name.replace(' ', '_')}_pairs_per_second" for name in passes}
    rates = {name: limits[key] for name, key in keys.items() if key in limits}
    return {
        **({"limits": {"cuda": rates}} if rates else {}),
        "step": _steps(report["steps"]),
        "cuda_graph": _epochs(report["cifar"]),
        "layers": list(report["layers"]),
    }


def _steps(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    networks: dict[str, dict[str, Any]] = {}
    for row in rows:
        about = {key: row[key] for key in ("arch", "batch", "input_size")}
        network = networks.setdefault(row["arch"], about)
        cnn, adder = _CNN[row["precision"]], _ADDER[row["precision"]]
        network[f"{cnn}_ms"], network[f"{adder}_ms"] = row["cnn_ms"], row["adder_ms"]
        network[f"{adder}_phases_ms"] = row["adder_phases_ms"]
    return list(networks.values())


def _epochs(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Those whose steps are CUDA graphs, of the recipe's ResNet-20."""
    found: dict[str, Any] = {}
    for row in rows:
        options = list(row["options"])
        if "reduce-overhead" in options:
            batch = int(options[options.index("--batch-size") + 1])
            found |= {"arch": "resnet20", "batch": batch}
            found[f"{row['layers']}_s_per_epoch"] = row["seconds_per_epoch"]
    return [found] if found else []
