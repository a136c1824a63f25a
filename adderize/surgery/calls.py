"""Models whose forward asks for the class of a layer, and does something else with another one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from torch import nn

from adderize.dataflow import Flow
from adderize.errors import AdderizeError, listed


def check_same_calls(model: nn.Module, before: Sequence[Flow], after: Sequence[Flow]) -> None:
    """Raise where a model calls other layers and functions since its layers have another class.

    Args:
        before, after: the model's flows; those found in different ways say nothing.
    """
    if not before or (after and before[0].method != after[0].method):
        return
    names = {module: name for name, module in model.named_modules()}
    then, now = _calls(before[0]), _calls(after[0]) if after else Counter()
    changed = [
        f"{names.get(call, call)} {then[call]} before and {now[call]} after"
        for call in {**then, **now}
        if then[call] != now[call]
    ]
    if changed:
        raise AdderizeError(
            "the model's forward makes other calls once the layers are converted "
            f"({listed(changed) if after else 'it fails'}): it asks for the class of a layer, such "
            "as isinstance(layer, nn.Conv2d). Let it ask for nn.modules.conv._ConvNd, which adders "
            "are too, or leave these layers out with exclude="
        )


def _calls(flow: Flow) -> Counter[nn.Module | str]:
    return Counter(node.module or node.name for node in flow.nodes)
