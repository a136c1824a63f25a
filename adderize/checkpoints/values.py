"""Entries of a state dict that are not tensors, as JSON: nothing that is read is ever executed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from torch import Tensor

from adderize.errors import AdderizeError

_PLAIN = (type(None), bool, int, float, str)
_MAPPINGS: dict[str, type] = {"dict": dict, "OrderedDict": OrderedDict}


def encoded(name: str, value: Any, store: Callable[[str, Tensor], None]) -> Any:
    """A value as JSON, its types exactly as they are.

    Args:
        name: of the entry.
        value: None, a number, a string, a tensor, or lists, tuples and dicts of such.
        store: takes the tensors in the value, under names that begin with `name`.

    Raises:
        AdderizeError: an object of another type, or one that contains itself.
    """
    try:
        return _encoded(name, value, store)
    except RecursionError:
        raise AdderizeError(f"{name} in the model's state dict contains itself") from None


def _encoded(name: str, value: Any, store: Callable[[str, Tensor], None]) -> Any:
    if type(value) in _PLAIN:
        return value
    if isinstance(value, Tensor):
        store(name, value)
        return {"tensor": name}
    if type(value) in (list, tuple):
        items = [_encoded(f"{name}[{i}]", item, store) for i, item in enumerate(value)]
        return items if type(value) is list else {"tuple": items}
    if type(value) in _MAPPINGS.values() and all(type(key) in _PLAIN for key in value):
        pairs = [[key, _encoded(f"{name}[{key!r}]", item, store)] for key, item in value.items()]
        return {type(value).__name__: pairs}
    raise AdderizeError(
        f"{name} is a {type(value).__name__} in the model's state dict, which no file without "
        "pickles can hold; expected tensors, numbers, strings, None, and lists, tuples and dicts "
        "of them: let get_extra_state return such"
    )


def decoded(content: Any, take: Callable[[str], Tensor]) -> Any:
    """The value of :func:`encoded`.

    Args:
        content: JSON.
        take: gives a tensor by its name.

    Raises:
        KeyError, TypeError, ValueError: the content is damaged.
    """
    if isinstance(content, list):
        return [decoded(item, take) for item in content]
    if not isinstance(content, dict):
        return content
    ((kind, inner),) = content.items()
    if kind == "tensor":
        return take(inner)
    if kind == "tuple":
        return tuple(decoded(item, take) for item in inner)
    return _MAPPINGS[kind]((key, decoded(item, take)) for key, item in inner)
