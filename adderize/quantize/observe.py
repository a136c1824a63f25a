"""Observers of activations: the ranges seen on calibration data, and what follows from them."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from adderize.errors import AdderizeError, one_line
from adderize.quantize.qparams import QParams

_PERCENTILE = 99.99
_SAMPLES = 2**20
_BINS = 4096


class Extremes:
    """The smallest and the largest value of a tensor."""

    def __init__(self) -> None:
        self.low, self.high = float("inf"), float("-inf")

    def update(self, values: Tensor, name: str) -> None:
        """Take in the values of one batch.

        Raises:
            AdderizeError: NaN or infinity among them.
        """
        if not values.numel():
            return
        low, high = (float(extreme) for extreme in values.detach().aminmax())
        if not abs(low) + abs(high) < float("inf"):
            raise AdderizeError(
                f"the calibration data gives NaN or infinity at {name}; expected finite inputs, "
                "prepared as for the float model"
            )
        self.low, self.high = min(self.low, low), max(self.high, high)


class Observer(Extremes):
    """The smallest and largest value of a tensor, and a random sample of all the values.

    Every n-th value would not do: of images of 2^k columns these lie in a few columns.
    """

    def __init__(self) -> None:
        super().__init__()
        self._sample: list[Tensor] = []
        self._step = 1
        self._random = torch.Generator("cpu").manual_seed(0)

    def update(self, values: Tensor, name: str) -> None:
        super().update(values, name)
        if not values.numel():
            return
        flat = values.detach().reshape(-1)
        self._sample.append(self._thinned(flat, self._step).float().cpu())
        while sum(map(len, self._sample)) > _SAMPLES:
            self._sample = [self._thinned(torch.cat(self._sample), 2)]
            self._step *= 2

    def _thinned(self, values: Tensor, step: int) -> Tensor:
        """One value of `step`."""
        if step == 1:
            return values
        count = -(-len(values) // step)
        kept = torch.randint(len(values), (count,), generator=self._random, device="cpu")
        return values[kept.to(values.device)]

    @classmethod
    def union(cls, parts: Iterable[Observer]) -> Observer:
        """The range of several tensors that share scale and zero point."""
        merged = cls()
        for part in parts:
            merged.low, merged.high = min(merged.low, part.low), max(merged.high, part.high)
            merged._sample += part._sample
        return merged

    def width(self, with_zero: bool) -> float:
        """From the smallest to the largest value, zero among them where that is asked for."""
        ends = (self.low, self.high, 0.0) if with_zero else (self.low, self.high)
        return max(ends) - min(ends)

    @property
    def sample(self) -> Tensor:
        return torch.cat(self._sample)

    def qparams(self, method: str, bits: int, *, with_zero: bool) -> QParams:
        """Scale and zero point for these values.

        Args:
            method: ``"minmax"``: from the smallest to the largest value; ``"percentile"``: leaves
                out 0.01 % of the values at each end; ``"mse"``: cuts the ends where that rounds the
                values with a smaller mean squared error.
            bits: 2 to 8.
            with_zero: see :meth:`QParams.covering`.
        """

        def covering(low: float, high: float) -> QParams:
            return QParams.covering(low, high, bits, with_zero=with_zero)

        return _METHODS[method](self, covering)


_Covering = Callable[[float, float], QParams]


def _minmax(seen: Observer, covering: _Covering) -> QParams:
    return covering(seen.low, seen.high)


def _percentile(seen: Observer, covering: _Covering) -> QParams:
    values = seen.sample.sort().values
    outside = int(len(values) * (1 - _PERCENTILE / 100))
    return covering(float(values[outside]), float(values[len(values) - 1 - outside]))


def _mse(seen: Observer, covering: _Covering) -> QParams:
    width = seen.high - seen.low
    counts = torch.histc(seen.sample, _BINS, seen.low, seen.high)
    centres = (
        seen.low + width * (torch.arange(_BINS, dtype=torch.float32, device="cpu") + 0.5) / _BINS
    )
    cuts = [part / 64 for part in range(0, 52, 2)]
    candidates = [
        covering(seen.low + width * below, seen.high - width * above)
        for below in cuts
        for above in cuts
        if below + above < 0.9
    ]
    errors = [
        float((counts * (qparams.to_float(qparams.to_bytes(centres)) - centres).square()).sum())
        for qparams in candidates
    ]
    return candidates[errors.index(min(errors))]


_METHODS: dict[str, Callable[[Observer, _Covering], QParams]] = {
    "minmax": _minmax,
    "percentile": _percentile,
    "mse": _mse,
}
METHODS = tuple(_METHODS)


@contextlib.contextmanager
def named_failures(batch: str) -> Iterator[None]:
    """Whatever a model raises becomes an AdderizeError that says for what."""
    try:
        yield
    except AdderizeError:
        raise
    except Exception as error:
        words = one_line(error)
        if isinstance(error, TypeError):
            words += (
                ". It is called with one tensor, the first of a batch: of a model that takes "
                "several inputs quantize the part that takes one"
            )
        raise AdderizeError(f"the model fails on {batch}: {words}") from error


def calibration_inputs(batches: Iterable[Any], device: torch.device) -> Iterator[Tensor]:
    """The inputs of calibration batches: tensors, or tuples and lists that start with one.

    Raises:
        AdderizeError: no batches, or something else in them.
    """
    try:
        iterator = iter([batches] if isinstance(batches, Tensor) else batches)
    except TypeError as error:
        raise AdderizeError(
            f"calibration is a {type(batches).__name__}; expected an iterable of batches, such as "
            "a DataLoader or [images]"
        ) from error
    first = next(iterator, None)
    if first is None:
        raise AdderizeError("calibration holds no batches; expected at least one")
    for batch in itertools.chain([first], iterator):
        inputs = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
        if not isinstance(inputs, Tensor) or not inputs.is_floating_point() or not inputs.numel():
            found = type(inputs).__name__
            if isinstance(inputs, Tensor):
                found = f"tensor of shape {tuple(inputs.shape)} and {inputs.dtype}"
            raise AdderizeError(
                f"a calibration batch is a {found}; expected a floating-point tensor, or a tuple "
                "that starts with one"
            )
        if not bool(inputs.isfinite().all()):
            raise AdderizeError("a calibration batch holds NaN or infinity; expected finite inputs")
        yield inputs.to(device)
