"""The ops in ONNX Script, which is Python in form only: onnxscript compiles the functions."""

# mypy: ignore-errors
# No postponed annotations: onnxscript reads the types of these functions.
import math
from collections.abc import Sequence

from onnxscript import FLOAT, INT64, script, values
from onnxscript import opset18 as op

from adderize.errors import AdderizeError


@script(values.Opset("adderize", 1))
def negative_distances(
    padded: FLOAT[...],
    taps: FLOAT[...],
    starts: INT64[...],
    lengths: INT64[...],
    steps: INT64[...],
    shape: INT64[...],
) -> FLOAT[...]:
    """(N, groups, filters a group, OH, OW): minus the distances, one tap at a time."""
    output = op.ConstantOfShape(shape)
    count = op.Squeeze(op.Shape(taps, start=0, end=1))
    for k in range(count):
        start = op.Gather(starts, k)
        seen = op.Slice(padded, start, start + lengths, op.Constant(value_ints=[1, 2, 3]), steps)
        seen = op.Unsqueeze(seen, op.Constant(value_ints=[2]))
        output = output - op.Abs(seen - op.Gather(taps, k))
    return output


def adder_conv2d(
    input: FLOAT,
    weight: FLOAT,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    gradient: str,
) -> FLOAT:
    """Translation of ``adderize::adder_conv2d``; the gradient mode means nothing here."""
    filters, per_group, height, width = weight.shape
    rows, columns = padding
    padded = op.Pad(input, op.Constant(value_ints=[0, 0, rows, columns] * 2))
    # A tap sees every per_group-th channel and, in each, every stride-th pixel from its own.
    starts = [
        [channel, row * dilation[0], column * dilation[1]]
        for channel in range(per_group)
        for row in range(height)
        for column in range(width)
    ]
    margins = [per_group - 1, (height - 1) * dilation[0], (width - 1) * dilation[1]]
    steps = op.Constant(value_ints=[per_group, *stride])
    lengths = op.Sub(op.Shape(padded, start=1, end=4), op.Constant(value_ints=margins))
    sizes = op.Div(op.Add(lengths, op.Sub(steps, op.Constant(value_int=1))), steps)
    shape = op.Concat(
        op.Shape(input, start=0, end=1),
        op.Constant(value_ints=[groups, filters // groups]),
        op.Slice(sizes, op.Constant(value_ints=[1]), op.Constant(value_ints=[3])),
        axis=0,
    )
    taps = op.Reshape(
        op.Transpose(weight, perm=[1, 2, 3, 0]),
        op.Constant(value_ints=[len(starts), groups, filters // groups, 1, 1]),
    )
    table = op.Reshape(
        op.Constant(value_ints=[number for start in starts for number in start]),
        op.Constant(value_ints=[len(starts), 3]),
    )
    output = negative_distances(padded, taps, table, lengths, steps, shape)
    flat = op.Concat(
        op.Shape(input, start=0, end=1),
        op.Constant(value_ints=[filters]),
        op.Shape(output, start=3, end=5),
        axis=0,
    )
    return op.Reshape(output, flat)


def binary_conv2d(
    input: FLOAT,
    weight: FLOAT,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> FLOAT:
    """Translation of ``adderize::binary_conv2d``: a convolution of signs."""
    scales = op.ReduceMean(op.Abs(weight), op.Constant(value_ints=[1, 2, 3]), keepdims=1)
    return op.Conv(
        _signs(input),
        op.Mul(_signs(weight), scales),
        strides=list(stride),
        pads=list(padding) * 2,
        dilations=list(dilation),
        group=groups,
    )


def avg_pool2d(
    self: FLOAT,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0, 0),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int = 0,
) -> FLOAT:
    """Translation of ``aten::avg_pool2d``; torch's own leaves out the divisor.

    Names of arguments are those of the op, which torch 2.6 compares; it takes no optional numbers.
    """
    settings = (kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
    return _average(self, 2, *settings)


def avg_pool3d(
    self: FLOAT,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0, 0, 0),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int = 0,
) -> FLOAT:
    """Translation of ``aten::avg_pool3d``, likewise."""
    settings = (kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
    return _average(self, 3, *settings)


def _average(images, dimensions, kernel_size, stride, padding, ceil_mode, with_padding, divisor):
    if divisor and ceil_mode:
        raise AdderizeError(
            "an average pooling has divisor_override and ceil_mode, which has no ONNX form: leave "
            "one out, and pad the image or scale the result instead"
        )

    def each(sizes):
        return list(sizes) * (dimensions // len(sizes))

    unbatched = len(images.shape) == dimensions + 1
    batch = op.Unsqueeze(images, op.Constant(value_ints=[0])) if unbatched else images
    pooled = op.AveragePool(
        batch,
        kernel_shape=each(kernel_size),
        strides=each(stride or kernel_size),
        pads=each(padding) * 2,
        ceil_mode=int(ceil_mode),
        count_include_pad=int(with_padding or bool(divisor)),
    )
    if divisor:
        factor = math.prod(each(kernel_size)) / divisor
        pooled = op.Mul(pooled, op.Constant(value_float=factor))
    return op.Squeeze(pooled, op.Constant(value_ints=[0])) if unbatched else pooled


def _signs(tensor):
    """ONNX has 0 for the sign of 0, and nothing for that of NaN."""
    zero, one, minus_one = (op.Constant(value_float=value) for value in (0.0, 1.0, -1.0))
    signs = op.Where(op.GreaterOrEqual(tensor, zero), one, minus_one)
    return op.Where(op.IsNaN(tensor), tensor, signs)
