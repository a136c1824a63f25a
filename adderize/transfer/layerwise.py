"""Layer by layer, in the order of execution: filters from the teacher, then norms that fit them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from adderize.errors import AdderizeError
from adderize.progress import counter
from adderize.transfer.features import Bench, Features
from adderize.transfer.fitting import fit_filters
from adderize.transfer.pairs import Pair
from adderize.transfer.report import LayerTransfer, mean_of, row_from
from adderize.transfer.single import bare, correlations_of, match_filters, original_of
from adderize.transfer.state import StateFile

_IMAGES_TO_COMPARE = 256


@dataclass(frozen=True)
class Fit:
    """How the filters of each layer are fitted once they are matched."""

    steps: int
    batch_size: int
    seed: int


def transfer(
    bench: Bench, pairs: Sequence[Pair], fit: Fit | None, state: StateFile, *, progress: bool
) -> list[LayerTransfer]:
    """Give every adder its filters, in place; one row a pair."""
    rows = []
    steps = fit.steps if fit else 1
    with counter(len(pairs) * steps, "transfer", show=progress) as bar:
        for pair, following in zip(pairs, [*pairs[1:], None], strict=True):
            bar.set_postfix_str(pair.name, refresh=False)
            done = state.done.get(pair.name)
            if done is None:
                row = _carry_over(bench, pair, fit, bar)
                bench.settle_norms(pair.norms, until=following)
                done = {"tensors": _tensors(pair), "row": asdict(row)}
                state.add(pair.name, done)
            else:
                for tensor, saved in zip(_tensors(pair), done["tensors"], strict=True):
                    tensor.copy_(saved)
                bar.update(steps)
            rows.append(row_from(done["row"]))
    return rows


def _tensors(pair: Pair) -> list[Tensor]:
    """What the transfer of a pair changes."""
    own = [] if pair.adder.norm is None else [*pair.adder.norm.parameters()]
    return [pair.adder.weight, *own, *(b for norm in pair.norms for b in norm.buffers())]


def _carry_over(bench: Bench, pair: Pair, fit: Fit | None, bar: Any) -> LayerTransfer:
    parts = bench.images.chunks(bench.chunks(pair))
    features = bench.features(pair, parts[0])
    if all(f.inputs.numel() == f.inputs.shape[1] for f in features):
        raise AdderizeError(
            f"{pair.name} gets one value of each channel from these images, and filters follow "
            "from how values vary: pass more images"
        )
    few = [f.few(max(1, len(f.inputs) * _IMAGES_TO_COMPARE // parts[0].count)) for f in features]
    layer = bare(pair.adder)
    before = correlations_of(layer, few)
    after = match_filters(layer, pair.original, few, before)
    if fit is None:
        bar.update()
    else:
        matched, at_matching = layer.weight.detach().clone(), after
        chunks: Iterator[Sequence[Features]] = (
            features if part is parts[0] else bench.features(pair, part) for part in parts
        )
        fit_filters(
            layer, chunks, len(parts), steps=fit.steps,
            share=min(1.0, fit.batch_size / parts[0].count),
            generator=torch.Generator("cpu").manual_seed(fit.seed), advance=bar.update,
        )  # fmt: skip
        after = correlations_of(layer, few)
        worse = ~(after >= at_matching)
        layer.weight[worse] = matched[worse]
        after = torch.where(worse, at_matching, after)
    pair.adder.weight.copy_(layer.weight)
    _imitate_outputs(pair, features)
    limit = correlations_of(original_of(pair.original), few)
    return LayerTransfer(
        name=pair.name,
        kind=type(pair.adder).__name__,
        shape=tuple(pair.adder.weight.shape),
        limit=mean_of(limit.tolist()),
        before=mean_of(before.tolist()),
        after=mean_of(after.tolist()),
        minimum=min((x for x in after.tolist() if x == x), default=0.0),
    )


def _imitate_outputs(pair: Pair, features: Sequence[Features]) -> None:
    """Give a norm that the teacher does not have the teacher's means and deviations."""
    norm = pair.adder.norm
    if not isinstance(norm, _BatchNorm) or not norm.affine:
        return
    targets = [f.targets.movedim(1, 0).flatten(1) for f in features]
    shares = [t.shape[1] / sum(t.shape[1] for t in targets) for t in targets]
    moments = [(t.mean(1, dtype=torch.float64), t.var(1, correction=0).double()) for t in targets]
    zero = torch.zeros((), dtype=torch.float64, device="cpu")
    mean = sum((s * m for s, (m, _) in zip(shares, moments, strict=True)), zero)
    variance = sum(
        (s * (v + (m - mean).square()) for s, (m, v) in zip(shares, moments, strict=True)),
        zero,
    )
    norm.weight.copy_(variance.sqrt())
    norm.bias.copy_(mean)
