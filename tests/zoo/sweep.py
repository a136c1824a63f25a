"""Convert every classification model of torchvision and timm on the meta device.

For each model: plan, convert, forward where the untouched model manages one, restore, the same
classes of modules and the same state dict as before. One JSON line a model goes to a file; a second
run continues it and takes the failed ones again.

    python -m tests.zoo.sweep --output build/zoo.jsonl [--only 'timm:res*'] [--jobs 2]
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import multiprocessing
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from torch import nn

from adderize import AdderConv2d, AdderizeError, AdderLinear, adderize, plan, restore
from adderize.models.by_name import build
from adderize.surgery import Decision, NormFix

OUTCOMES = ("converted", "nothing to convert", "refused", "failed")


def names() -> list[str]:
    """Every classification model, as the command line names them."""
    vision = torchvision.models.list_models(module=torchvision.models)
    return [*vision, *(f"timm:{name}" for name in timm.list_models())]


def examine(name: str) -> dict[str, Any]:
    """Outcome and figures of one model; never raises."""
    start = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = _examine(_build(name))
    except Exception as error:
        result = {"outcome": "failed", "reason": f"{type(error).__name__}: {error}"[:500]}
    return {"name": name, **result, "seconds": round(time.perf_counter() - start, 2)}


def _build(name: str) -> nn.Module:
    try:
        with torch.device("meta"):
            return build(name)
    except Exception:
        return build(name).to("meta")


def _examine(model: nn.Module) -> dict[str, Any]:
    model.eval()
    before = _fingerprint(model)
    shape = _output_shape(model)
    rows = plan(model)
    figures = {
        "kept": Counter(row.reason for row in rows.rows if row.decision is Decision.KEEP),
        "kinds": Counter(row.kind for row in rows.rows if row.decision is Decision.CONVERT),
        "methods": Counter(row.method for row in rows.rows),
        "norms": Counter(
            f"{'inserted' if row.norm_fix is NormFix.INSERTED else 'found'} ({row.method})"
            for row in rows.rows
            if row.decision is Decision.CONVERT
        ),
        "forward": shape is not None,
    }
    try:
        adderize(model)
    except AdderizeError as error:
        outcome = "nothing to convert" if "nothing to convert" in str(error) else "refused"
        return {"outcome": outcome, "reason": str(error), **figures}
    adders = [n for n, m in model.named_modules() if isinstance(m, (AdderConv2d, AdderLinear))]
    assert adders == rows.converted, "converted other layers than planned"
    assert _output_shape(model) == shape, "the converted model's forward differs"
    restore(model)
    assert _fingerprint(model) == before, "restore left another model"
    return {"outcome": "converted", "layers": len(adders), **figures}


def _fingerprint(model: nn.Module) -> tuple[list[Any], list[Any]]:
    """Names and classes of the modules, and names and shapes of the state dict."""
    modules = [(name, type(module)) for name, module in model.named_modules()]
    return modules, [(key, tuple(tensor.shape)) for key, tensor in model.state_dict().items()]


def _output_shape(model: nn.Module) -> Any:
    config = getattr(model, "pretrained_cfg", None) or {}
    size = config.get("input_size", (3, 299, 299) if "ception" in str(type(model)) else None)
    image = torch.empty(2, *(size or (3, 224, 224)), device="meta")
    try:
        with torch.no_grad():
            output = model(image)
    except Exception:
        return None
    return [tuple(tensor.shape) for tensor in torch.utils._pytree.tree_leaves(output)]


def summary(records: Iterable[dict[str, Any]]) -> str:
    """The table of outcomes, and how layers and norms were treated, over all models."""
    records = list(records)
    totals: dict[str, Counter[str]] = {key: Counter() for key in ("kinds", "kept", "norms")}
    for record in records:
        for key, total in totals.items():
            total.update(record.get(key, {}))
    outcomes = Counter(record["outcome"] for record in records)
    lines = [f"{len(records)} models"]
    lines += [f"{outcomes[outcome]:8,}  {outcome}" for outcome in OUTCOMES]
    for key, title in (("kinds", "converted"), ("kept", "kept"), ("norms", "norms")):
        lines.append(f"{title}:")
        lines += [f"{count:8,}  {what}" for what, count in totals[key].most_common()]
    lines += [f"FAILED {r['name']}: {r['reason']}" for r in records if r["outcome"] == "failed"]
    return "\n".join(lines)


def sweep(output: Path, only: str = "*", jobs: int = 1) -> list[dict[str, Any]]:
    """Examine what the file does not hold yet; the records of all matching models."""
    output.parent.mkdir(parents=True, exist_ok=True)
    lines = output.read_text().splitlines() if output.exists() else []
    done = {record["name"]: record for record in map(json.loads, lines)}
    chosen = [name for name in names() if fnmatch.fnmatchcase(name, only)]
    todo = [name for name in chosen if done.get(name, {}).get("outcome") in (None, "failed")]
    with output.open("a") as file:
        for record in _examined(todo, jobs):
            done[record["name"]] = record
            print(f"{record['name']}: {record['outcome']}", file=sys.stderr)
            file.write(json.dumps(record) + "\n")
            file.flush()
    return [done[name] for name in chosen]


def _examined(names: list[str], jobs: int) -> Iterable[dict[str, Any]]:
    if jobs == 1:
        yield from map(examine, names)
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, spawn, torch.set_num_threads, (1,)) as pool:
        yield from pool.map(examine, names)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("build/zoo.jsonl"))
    parser.add_argument("--only", default="*", help="shell-style pattern of model names")
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    records = sweep(arguments.output, arguments.only, arguments.jobs)
    print(summary(records))
    return int(any(record["outcome"] == "failed" for record in records))


if __name__ == "__main__":
    sys.exit(main())
