"""Blocks that can merge their layers into one convolution, which is wrong for adders."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator
from typing import Any

from torch import nn

from adderize.errors import AdderizeError
from adderize.surgery.engine import converted_layers

# The names that timm.utils.reparameterize_model and the authors of such blocks use; "merge" is that
# of low-rank adapters.
_METHODS = (
    "convert_to_deploy", "fuse", "fuse_convs", "fuse_repvgg_block", "merge", "merge_kernel",
    "reparameterize", "structural_reparam", "switch_to_deploy",
)  # fmt: skip


class FusionRefused:
    """Stands in for a block's method while there are converted layers in it."""

    def __init__(self, block: str, method: str) -> None:
        self.block, self.method = block, method

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        raise AdderizeError(
            f"{self.block}.{self.method}() merges layers as if they were convolutions, but holds "
            "converted ones: restore() the model first, or leave the block out with exclude="
        )


def fusible_blocks(
    model: nn.Module, layers: Collection[str]
) -> Iterator[tuple[str, nn.Module, str]]:
    """Name, module and method of each block that merges layers, some of the named among them."""
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        if any(layer.startswith(prefix) and layer != name for layer in layers):
            for method in _METHODS:
                if _merges(getattr(type(module), method, None)):
                    yield name, module, method


def _merges(method: object) -> bool:
    """Whether it is a method without arguments: with some, it may fuse features in a forward."""
    if not inspect.isfunction(method):
        return False
    required = [p for p in inspect.signature(method).parameters.values() if p.default is p.empty]
    return len(required) == 1


def guard_fusion(model: nn.Module) -> None:
    """Let blocks with converted layers refuse to merge them, and no others."""
    for module in model.modules():
        for method in _METHODS:
            if isinstance(vars(module).get(method), FusionRefused):
                delattr(module, method)
    for name, module, method in fusible_blocks(model, converted_layers(model)):
        if method not in vars(module):
            setattr(module, method, FusionRefused(name or type(module).__name__, method))
