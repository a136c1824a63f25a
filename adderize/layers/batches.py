"""Single images and rows before a layer's own norm, which takes batches only."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_unary

from adderize.errors import AdderizeError


def as_batch(images: Tensor) -> Tensor:
    """(C, H, W) as (1, C, H, W), a batch as it is; for torch.fx, which has no shapes, one node."""
    if has_torch_function_unary(images):
        return handle_torch_function(as_batch, (images,), images)
    return images.unsqueeze(0) if images.dim() == 3 else images


def normed(layer: nn.Module, norm: Any, batch: Tensor) -> Tensor:
    """What a layer's norm makes of a batch.

    Raises:
        AdderizeError: the norm refuses the batch; names the layer.
    """
    try:
        result: Tensor = norm(batch)
    except ValueError as error:
        raise AdderizeError(
            f"the norm of {type(layer).__name__}({layer.extra_repr()}) takes no tensor of shape "
            f"{tuple(batch.shape)}: {error}. While it trains, a batch norm needs more than one "
            "value a channel: pass a larger batch, or call model.eval()"
        ) from error
    return result
