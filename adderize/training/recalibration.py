"""The statistics of batch norms, estimated anew."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree

from adderize.arguments import check_module
from adderize.errors import AdderizeError


@torch.no_grad()
def recalibrate(model: nn.Module, batches: Iterable[Any]) -> nn.Module:
    """Re-estimate the statistics of every batch norm as the plain average over some batches.

    Running averages lag behind fast-moving adder filters: after a high learning rate the network
    may be fine and its statistics not. Only forward passes are made; filters, training mode and
    momenta stay as they were, and so do the statistics of norms that the forward does not call.

    Args:
        model: any module with batch norms that track statistics.
        batches: inputs as a DataLoader gives them: tensors, or tuples and lists whose first
            element is the input. They are moved to the model's device.

    Returns:
        the model itself.

    Raises:
        AdderizeError: no batch norm that tracks statistics, none that the forward calls, or no
            batches.
    """
    check_module(model)
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        raise AdderizeError("the model has no batch norm with running statistics to recalibrate")
    iterator = iter(batches)
    first = next(iterator, None)
    if first is None:
        raise AdderizeError("recalibrate got no batches; expected at least one")
    device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    modes = {module: module.training for module in model.modules()}
    momenta = [norm.momentum for norm in norms]
    before = [copy.deepcopy(norm.state_dict()) for norm in norms]
    try:
        model.eval()
        for norm in norms:
            norm.train()
            norm.reset_running_stats()
            norm.momentum = None
        for batch in itertools.chain([first], iterator):
            inputs = batch[0] if isinstance(batch, (tuple, list)) else batch
            model(pytree.tree_map_only(Tensor, lambda tensor: tensor.to(device), inputs))
        uncalled = [norm.num_batches_tracked == 0 for norm in norms]
        if all(uncalled):
            raise AdderizeError(
                "the model's forward called none of its batch norms: pass the model that holds them"
            )
        for norm, state in itertools.compress(zip(norms, before, strict=True), uncalled):
            norm.load_state_dict(state)
    except BaseException:
        for norm, state in zip(norms, before, strict=True):
            norm.load_state_dict(state)
        raise
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, training in modes.items():
            module.training = training
    return model
