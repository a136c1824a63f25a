"""How filters move over images: the one record of stride, padding, dilation and groups."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from adderize.errors import AdderizeError

Pair = tuple[int, int]
Shape = tuple[int, int, int, int]


class Geometry(NamedTuple):
    """A layer's geometry, rows before columns, in the order of the ops' arguments."""

    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1

    @classmethod
    def of(
        cls,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
    ) -> Geometry:
        """The geometry that integers and pairs stand for; AdderizeError for anything else."""
        return cls(
            as_pair(stride, "stride"),
            as_pair(padding, "padding"),
            as_pair(dilation, "dilation"),
            as_integer(groups, "groups"),
        )

    def padded(self, vertical: int, horizontal: int) -> Geometry:
        """The same with another padding; torch 2.6 cannot compile `_replace`."""
        return Geometry(self.stride, (vertical, horizontal), self.dilation, self.groups)

    def output_size(self, image: Sequence[int], kernel: Sequence[int]) -> Pair:
        """Rows and columns of the output for an image (H, W) and filters of (kh, kw) taps."""
        (stride_h, stride_w), (padding_h, padding_w), (dilation_h, dilation_w), _ = self
        return (
            (image[0] + 2 * padding_h - dilation_h * (kernel[0] - 1) - 1) // stride_h + 1,
            (image[1] + 2 * padding_w - dilation_w * (kernel[1] - 1) - 1) // stride_w + 1,
        )

    def output_shape(self, input: Sequence[int], weight: Sequence[int]) -> Shape:
        """(N, Cout, OH, OW) for shapes of input and filters.

        Raises:
            AdderizeError: the shapes do not fit each other, or the geometry.
        """
        try:
            return _known_output_shape(self, input, weight)
        except TypeError:  # lists, and sizes of a program that is being traced, have no hash
            return _output_shape(self, input, weight)

    def within(self, image: Sequence[int]) -> Geometry:
        """The same outputs with strides that do not exceed the padded image (H, W)."""
        (stride_h, stride_w), (padding_h, padding_w) = self.stride, self.padding
        height, width = image[0] + 2 * padding_h, image[1] + 2 * padding_w
        if stride_h <= height and stride_w <= width:
            return self
        return self._replace(stride=(min(stride_h, height), min(stride_w, width)))


def as_record(
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int = 1
) -> Geometry:
    """The geometry that the dispatcher hands over in lists; nothing is checked."""
    return Geometry(tuple(stride), tuple(padding), tuple(dilation), groups)  # type: ignore[arg-type]


def resolve(
    kernel: Sequence[int],
    stride: int | Sequence[int],
    padding: int | Sequence[int] | str,
    dilation: int | Sequence[int],
    groups: int,
) -> tuple[Geometry, Pair]:
    """A geometry whose padding may be "valid" or "same", which depends on the kernel's size.

    Returns:
        the geometry, and the rows and columns that "same" needs on one side beyond its padding.
    """
    if not isinstance(padding, str):
        return Geometry.of(stride, padding, dilation, groups), (0, 0)
    geometry = Geometry.of(stride, 0, dilation, groups)
    if padding == "valid":
        return geometry, (0, 0)
    if padding != "same":
        raise AdderizeError(f"padding is {padding!r}; expected integers, 'valid' or 'same'")
    if geometry.stride != (1, 1):
        raise AdderizeError(
            f"padding='same' with stride {geometry.stride}: the output cannot have the input's "
            "size; give the padding in pixels"
        )
    if len(kernel) != 2:
        raise AdderizeError(
            f"padding='same' with filters of {len(kernel)} spatial dimensions; expected a weight "
            "of (Cout, Cin/groups, kh, kw)"
        )
    vertical, horizontal = (
        step * (taps - 1) for step, taps in zip(geometry.dilation, kernel, strict=True)
    )
    return geometry.padded(vertical // 2, horizontal // 2), (vertical % 2, horizontal % 2)


def as_integer(value: int, name: str) -> int:
    """An integer as Python's; AdderizeError for anything else."""
    found = _integers((value,))
    if found is None:
        raise AdderizeError(f"{name} is {value!r}; expected an integer")
    return found[0]


def as_pair(value: int | Sequence[int], name: str) -> Pair:
    """An integer or a sequence of one or two as (rows, columns); AdderizeError if it is neither."""
    if type(value) is tuple and len(value) == 2 and type(value[0]) is type(value[1]) is int:
        return value
    pair = _integers(tuple(value) if isinstance(value, Sequence) else (value, value))
    if pair is not None and len(pair) == 1:
        pair *= 2
    if pair is None or len(pair) != 2:
        raise AdderizeError(f"{name} is {value!r}; expected an integer or a pair of integers")
    return pair


def _integers(values: tuple[Any, ...]) -> tuple[int, ...] | None:
    """The values as Python's integers, as which NumPy's count for torch; None where one is none."""
    if all(isinstance(value, (int, torch.SymInt)) for value in values):
        return values
    try:
        return tuple(operator.index(value) for value in values)
    except TypeError:
        return None


def _output_shape(geometry: Geometry, input: Sequence[int], weight: Sequence[int]) -> Shape:
    stride, padding, dilation, groups = geometry
    if len(input) != 4 or len(weight) != 4:
        raise AdderizeError(
            f"input has shape {tuple(input)} and weight {tuple(weight)}; expected "
            "(N, Cin, H, W) and (Cout, Cin/groups, kh, kw)"
        )
    if min(input[2:]) < 1:
        raise AdderizeError(f"input has shape {tuple(input)}: its images have no pixels")
    leasts = ("stride", stride, 1), ("dilation", dilation, 1), ("padding", padding, 0)
    for name, pair, least in leasts:
        if len(pair) != 2 or min(pair) < least:
            raise AdderizeError(
                f"{name} is {list(pair)}; expected two integers of at least {least}"
            )
    _check_channels(input, weight, groups)
    height, width = geometry.output_size(input[2:], weight[2:])
    if min(height, width) < 1:
        raise AdderizeError(
            f"the input of {tuple(input[2:])} pixels with padding {list(padding)} is smaller "
            f"than the filter of {tuple(weight[2:])} taps with dilation {list(dilation)}: "
            "use a larger input or more padding"
        )
    return input[0], weight[0], height, width


_known_output_shape = functools.lru_cache(maxsize=4096)(_output_shape)


def _check_channels(input: Sequence[int], weight: Sequence[int], groups: int) -> None:
    if groups < 1:
        raise AdderizeError(f"groups is {groups}; expected an integer of at least 1")
    out_channels, per_group, *taps = weight
    if out_channels < 1 or per_group < 1 or min(taps) < 1:
        raise AdderizeError(f"weight has shape {tuple(weight)}: no dimension may be empty")
    if out_channels % groups:
        raise AdderizeError(f"{out_channels} filters cannot be divided into {groups} groups")
    if input[1] != per_group * groups:
        raise AdderizeError(
            f"input has {input[1]} channels, but filters of shape {tuple(weight)} with "
            f"groups={groups} expect {per_group * groups}"
        )
