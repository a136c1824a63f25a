"""What goes into one adder and should come out of it, on the images of the transfer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from adderize.data.image_sources import evenly_spaced
from adderize.errors import AdderizeError
from adderize.evaluation import first_input
from adderize.layers import AdderLinear
from adderize.training.recalibration import estimate_statistics
from adderize.transfer.images import Images
from adderize.transfer.pairs import Pair, Reached, run_until_reached


@dataclass
class Features:
    """Inputs of an adder and its teacher's outputs, all of one size.

    Attributes:
        inputs: (M, Cin, H, W), or (M, in_features) for linear layers.
        targets: (M, Cout, OH, OW) or (M, out_features).
    """

    inputs: Tensor
    targets: Tensor

    def few(self, count: int) -> Features:
        """Evenly spaced ones, `count` at most."""
        chosen = evenly_spaced(len(self.inputs), count)
        return Features(self.inputs[chosen], self.targets[chosen])

    @property
    def bytes(self) -> int:
        return self.inputs.nbytes + self.targets.nbytes


class Bench:
    """A model and its teacher side by side on the same images."""

    def __init__(self, model: nn.Module, teacher: nn.Module, images: Images, memory: int) -> None:
        self.model, self.teacher, self.images = model, teacher, images
        self.memory = memory

    def chunks(self, pair: Pair) -> int:
        """Parts in which the images' features of one pair stay within the memory."""
        first = self.images.chunks(len(self.images.batches))[0]
        size = sum(f.bytes for f in self.features(pair, first)) * self.images.count / first.count
        # Joining the batches holds all of them twice for a moment.
        return min(math.ceil(2 * size / self.memory), len(self.images.batches))

    @torch.no_grad()
    def features(self, pair: Pair, images: Images) -> list[Features]:
        """One entry a call and size. The first call's inputs are the model's own, those of later
        calls of a shared layer the teacher's: what the model gives there depends on the layer."""
        found: dict[tuple[Any, ...], tuple[list[Tensor], list[Tensor]]] = {}
        for batch in images:
            inputs, targets = self._of_teacher(pair, batch)
            own = self._own_input(pair, batch)
            if own is None or not inputs:  # sizes or values may decide whether a layer is called
                continue
            inputs[0] = own
            for call, (x, y) in enumerate(zip(inputs, targets, strict=True)):
                x, y = _in_rows(pair.adder, x), _in_rows(pair.adder, y)
                if not len(x):
                    continue
                entry = found.setdefault((call, x.shape[1:], y.shape[1:]), ([], []))
                entry[0].append(x)
                entry[1].append(y)
        features = [Features(_joined(xs), _joined(ys)) for xs, ys in found.values()]
        for f in features:
            for network, values in (("teacher", f.targets), ("model", f.inputs)):
                if not bool(values.isfinite().all()):
                    raise AdderizeError(f"the {network} gives NaN or infinity at {pair.name}")
        return features

    def _of_teacher(self, pair: Pair, batch: Any) -> tuple[list[Tensor], list[Tensor]]:
        inputs: list[Tensor] = []
        targets: list[Tensor] = []

        def see(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Tensor) -> None:
            # What follows may work in place on an output, or on an input.
            keep, given = pair.calls > 1, first_input(args, kwargs)
            inputs.append(given.clone() if keep else given)
            targets.append(output.clone() if keep else output)
            if len(targets) == pair.calls:
                raise Reached

        with pair.original.register_forward_hook(see, with_kwargs=True):
            run_until_reached(self.teacher, batch)
        return inputs, targets

    def _own_input(self, pair: Pair, batch: Any) -> Tensor | None:
        seen: list[Tensor] = []

        def see(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.append(first_input(args, kwargs))
            raise Reached

        with pair.adder.register_forward_pre_hook(see, with_kwargs=True):
            run_until_reached(self.model, batch)
        return seen[0] if seen else None

    @torch.no_grad()
    def settle_norms(self, norms: Sequence[_NormBase], until: Pair | None) -> None:
        """Estimate the statistics of these norms anew, as plain averages over the images.

        Args:
            until: the pair at which the forward pass may end.
        """
        if not norms:
            return

        def stop(module: nn.Module, args: tuple[Any, ...]) -> None:
            raise Reached

        run = partial(run_until_reached, self.model)
        with until.adder.register_forward_pre_hook(stop) if until else nullcontext():
            estimate_statistics(self.model, norms, self.images, run)


def _in_rows(adder: nn.Module, x: Tensor) -> Tensor:
    """The first dimension counts samples, the second channels."""
    if isinstance(adder, AdderLinear):
        return x.reshape(-1, x.shape[-1])
    return x.unsqueeze(0) if x.ndim == 3 else x


def _joined(tensors: list[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)
