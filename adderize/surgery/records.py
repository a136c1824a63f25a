"""Records of how a network was made, which it carries along."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import fx, nn

_Record = TypeVar("_Record")


class _Kept(nn.Module):
    """A record as a part of a module: what torch.fx keeps where a GraphModule is pickled."""

    def __init__(self, record: Any) -> None:
        super().__init__()
        self.record = record


def attach(model: nn.Module, key: str, record: Any) -> None:
    if not isinstance(model, fx.GraphModule):
        vars(model)[key] = record
        return
    # Of a GraphModule copy.deepcopy keeps parts and `meta`, pickle parts, copy.copy `meta`.
    model.add_module(key, _Kept(record).train(model.training))
    model.meta[key] = record


def attached(model: nn.Module, key: str, kind: type[_Record]) -> _Record | None:
    part = model._modules.get(key)
    record = part.record if isinstance(part, _Kept) else vars(model).get(key)
    record = record or vars(model).get("meta", {}).get(key)
    return record if isinstance(record, kind) else None
