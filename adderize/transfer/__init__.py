"""What a trained network knows, carried over to its adder form, layer by layer.

A trained convolution says how strongly each of its inputs counts. An adder says it by where its
filter values lie among the inputs: one beyond all of them counts fully, plus or minus, one in
between less. :func:`match` puts the values where they count as in the teacher; :func:`reconstruct`
then fits each layer to the teacher's outputs. Neither needs labels.

Both leave filters inside the range of the inputs, where the clipped gradient of the inputs is
wrong: the layers then train with ``gradient="sign_input"``.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from adderize.errors import AdderizeError
from adderize.evaluation import device_of, evaluation
from adderize.ops.gradients import check_gradient
from adderize.transfer.features import Bench
from adderize.transfer.images import Images
from adderize.transfer.layerwise import Fit, transfer
from adderize.transfer.pairs import find_pairs
from adderize.transfer.report import LayerTransfer, TransferReport
from adderize.transfer.state import StateFile, fingerprint

__all__ = ["LayerTransfer", "TransferReport", "match", "reconstruct"]

_MEMORY = 2**31


def match(
    model: nn.Module,
    teacher: nn.Module,
    batches: Iterable[Any],
    *,
    images: int = 2048,
    memory: int = _MEMORY,
    gradient: str | None = "sign_input",
    state: str | Path | None = None,
    progress: bool = True,
) -> TransferReport:
    """Set the filters of an adder network by what its teacher's filters do, without any training.

    Layer by layer, in the order of execution and on the inputs that the layers before give by then:
    the adder value w has the slope ``b(w) = Cov(-|x - w|, x) / Var(x)`` over the values x of its
    input channel, and is chosen so that ``b(w) = clip(f / (k sd), -1, 1)`` for the teacher's filter
    value f, with sd the deviation of its filter; of several k, and of the present filter, each
    filter gets the one whose outputs correlate best with the teacher's. Then the batch norms behind
    are estimated anew, and an inserted one gets the mean and deviation of the teacher's outputs.

    Args:
        model: an adder network, changed in place; its mode and device stay as they are.
        teacher: the trained network that it was converted from, with its layers under the same
            names and on the same device: ``model = adderize(teacher, inplace=False)``.
        batches: images as a DataLoader gives them: tensors, or tuples and lists whose first element
            is the input, a list of images (C, H, W) too; or one tensor. No labels are used.
        images: how many to use at most. They are kept in the CPU's memory.
        memory: bytes for one layer's inputs and outputs; where the images need more, it works on
            one part of them after another.
        gradient: what the matched layers train with afterwards; None leaves it as it is.
        state: a file that is written after each layer. A later call with the same arguments goes on
            from there, with the result of an uninterrupted one.
        progress: a progress bar on stderr, where that is a terminal.

    Returns:
        a report on each layer; it prints as a table.

    Raises:
        AdderizeError: model and teacher that do not belong together, no images, images that give
            NaN or infinity, or a state file of another transfer.
    """
    return _transfer("match", model, teacher, batches, images, memory, gradient, state, progress)


def reconstruct(
    model: nn.Module,
    teacher: nn.Module,
    batches: Iterable[Any],
    *,
    steps: int = 300,
    images: int = 2048,
    batch_size: int = 32,
    seed: int = 0,
    memory: int = _MEMORY,
    gradient: str | None = "sign_input",
    state: str | Path | None = None,
    progress: bool = True,
) -> TransferReport:
    """Fit the filters of an adder network to its teacher's outputs, layer by layer, without labels.

    As :func:`match`, which need not be called before; then the filters of the layer are trained to
    give what the teacher's layer gives in the teacher: Adam on the mean squared difference of both,
    standardised channel by channel, with true subgradients.

    Args:
        model, teacher, batches, images, memory, gradient, state, progress: as for :func:`match`.
        steps: number of Adam steps for each layer.
        batch_size: images in one step.
        seed: picks the images of each step.

    Returns:
        a report on each layer; it prints as a table.

    Raises:
        AdderizeError: as :func:`match`.
    """
    _check_positive(steps=steps, batch_size=batch_size)
    if type(seed) is not int or not 0 <= seed < 2**63:
        raise AdderizeError(f"seed is {seed!r}; expected an integer from 0 on")
    fit = Fit(steps, batch_size, seed)
    return _transfer(
        "reconstruct", model, teacher, batches, images, memory, gradient, state, progress, fit
    )


@torch.inference_mode(False)
@torch.no_grad()
def _transfer(
    method: str,
    model: nn.Module,
    teacher: nn.Module,
    batches: Iterable[Any],
    limit: int,
    memory: int,
    gradient: str | None,
    state: str | Path | None,
    progress: bool,
    fit: Fit | None = None,
) -> TransferReport:
    _check_positive(images=limit, memory=memory)
    if gradient is not None:
        check_gradient(gradient)
    device = device_of(model)
    images = Images(batches, limit, device)
    with evaluation(model, teacher):
        pairs, uncalled = find_pairs(model, teacher, images.first())
        run = {"method": method, "steps and seed": repr(fit), "memory": memory}
        if state is not None:
            run["images"] = fingerprint(images.batches)
            run |= {"model": fingerprint(model), "teacher": fingerprint(teacher)}
        bench = Bench(model, teacher, images, memory)
        rows = transfer(bench, pairs, fit, StateFile(state, run), progress=progress)
    if gradient is not None:
        for pair in pairs:
            pair.adder.gradient = gradient
    return TransferReport(method, images.count, tuple(rows), tuple(uncalled))


def _check_positive(**values: int) -> None:
    for name, value in values.items():
        if type(value) is not int or value < 1:
            raise AdderizeError(f"{name} is {value!r}; expected a positive integer")
