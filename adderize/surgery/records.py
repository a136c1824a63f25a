"""Records of how a network was made, which it carries along."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import fx, nn

_Record = TypeVar("_Record")


def attach(model: nn.Module, key: str, record: Any) -> None:
    # copy.deepcopy keeps only `meta` of a GraphModule's attributes, and pickle keeps all others.
    if isinstance(model, fx.GraphModule):
        model.meta[key] = record
    vars(model)[key] = record


def attached(model: nn.Module, key: str, kind: type[_Record]) -> _Record | None:
    record = vars(model).get(key) or vars(model).get("meta", {}).get(key)
    return record if isinstance(record, kind) else None
