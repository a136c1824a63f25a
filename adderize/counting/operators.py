"""Operators of PyTorch's dispatcher and tracer, and the formula that each one is counted by.

An operator is looked up by its base name (``aten::add_.Tensor`` is ``add``), with its arguments in
the order of its schema; tensors stand as their shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from adderize import formulas
from adderize.formulas import FREE, Operations, Shape

Formula = Callable[[Sequence[Any], Shape], Operations]


def base_name(operator: str) -> str:
    """``aten::add_`` -> ``add``; names of other namespaces stay whole."""
    return operator.removeprefix("aten::").rstrip("_")


def _each(kind: str) -> Formula:
    return lambda arguments, output: formulas.elementwise(kind, output)


def _convolution(arguments: Sequence[Any], output: Shape) -> Operations:
    input, weight, bias, _, _, _, transposed, *_ = arguments
    return formulas.convolution(
        input, weight, output, bias=bias is not None, transposed=bool(transposed)
    )


def _adder(arguments: Sequence[Any], output: Shape) -> Operations:
    return formulas.adder(arguments[0], arguments[1], output)


def _binary(arguments: Sequence[Any], output: Shape) -> Operations:
    return formulas.xnor(arguments[0], arguments[1], output)


def _matmul(arguments: Sequence[Any], output: Shape) -> Operations:
    return formulas.matmul(arguments[0], output)


def _linear(arguments: Sequence[Any], output: Shape) -> Operations:
    has_bias = arguments[2] is not None
    return _matmul(arguments, output) + has_bias * formulas.elementwise("addition", output)


def _matmul_onto(arguments: Sequence[Any], output: Shape) -> Operations:
    beta, alpha = arguments[3:5]
    scalings = int(beta not in (0, 1)) + int(alpha != 1)
    return (
        formulas.matmul(arguments[1], output)
        + scalings * formulas.elementwise("multiplication", output)
        + bool(beta) * formulas.elementwise("addition", output)
    )


def _einsum(arguments: Sequence[Any], output: Shape) -> Operations:
    equation, operands, *_ = arguments
    inputs, _, result = equation.replace(" ", "").partition("->")
    if "." in equation or not result or len(operands) != 2:
        raise NotImplementedError
    sizes: dict[str, int] = {}
    for letters, shape in zip(inputs.split(","), operands, strict=True):
        sizes.update(zip(letters, shape, strict=True))
    return formulas.CONVOLUTION_PAIR * prod(sizes.values())


def _attention(arguments: Sequence[Any], output: Shape) -> Operations:
    query, key, value, mask, _, causal, *_ = arguments
    logits = (*query[:-1], key[-2])
    masked = (mask is not None or bool(causal)) * formulas.elementwise("addition", logits)
    return formulas.attention(query, key, value) + masked


def _batch_norm(arguments: Sequence[Any], output: Shape) -> Operations:
    input, weight, bias, _, _, training, *_ = arguments
    return _norm(input, weight, bias, input[1], bool(training))


def _frozen_batch_norm(arguments: Sequence[Any], output: Shape) -> Operations:
    return formulas.scale_and_shift(output)


def _instance_norm(arguments: Sequence[Any], output: Shape) -> Operations:
    input, weight, bias, _, _, use_input_statistics, *_ = arguments
    return _norm(input, weight, bias, input[0] * input[1], bool(use_input_statistics))


def _norm(input: Shape, weight: Any, bias: Any, groups: int, statistics: bool) -> Operations:
    if not statistics:
        return formulas.scale_and_shift(input)
    return formulas.norm_with_statistics(input, groups, weight is not None, bias is not None)


def _layer_norm(arguments: Sequence[Any], output: Shape) -> Operations:
    input, normalized, weight, bias, *_ = arguments
    return _norm(input, weight, bias, prod(input[: -len(normalized)]), True)


def _rms_norm(arguments: Sequence[Any], output: Shape) -> Operations:
    input, normalized, weight, *_ = arguments
    return formulas.rms_norm(input, prod(input[: -len(normalized)]), weight is not None)


def _group_norm(arguments: Sequence[Any], output: Shape) -> Operations:
    input, groups, weight, bias, *_ = arguments
    return _norm(input, weight, bias, input[0] * groups, True)


def _native_group_norm(arguments: Sequence[Any], output: Shape) -> Operations:
    input, weight, bias, _, _, _, groups, *_ = arguments
    return _norm(input, weight, bias, input[0] * groups, True)


def _window(arguments: Sequence[Any], output: Shape, dimensions: int) -> int:
    size = arguments[1] if isinstance(arguments[1], Sequence) else [arguments[1]]
    return prod(output) * (prod(size) if len(size) == dimensions else size[0] ** dimensions)


def _average_pool(dimensions: int) -> Formula:
    return lambda arguments, output: formulas.mean(
        _window(arguments, output, dimensions), prod(output)
    )


def _max_pool(dimensions: int) -> Formula:
    return lambda arguments, output: formulas.maximum(
        _window(arguments, output, dimensions), prod(output)
    )


def _adaptive(reduction: Callable[[int, int], Operations], dimensions: int) -> Formula:
    return lambda arguments, output: reduction(
        formulas.adaptive_terms(arguments[0], output, dimensions), prod(output)
    )


def _reduction(reduction: Callable[[int, int], Operations]) -> Formula:
    return lambda arguments, output: reduction(prod(arguments[0]), prod(output))


def _sum(terms: int, outputs: int) -> Operations:
    return terms * formulas.ADDITION


def _vector_norm(arguments: Sequence[Any], output: Shape) -> Operations:
    input: Shape = arguments[0]
    if arguments[1] != 2:
        raise NotImplementedError
    return prod(input) * formulas.CONVOLUTION_PAIR + prod(output) * formulas.OTHER


def _add(arguments: Sequence[Any], output: Shape) -> Operations:
    scaled = bool(arguments[2] != 1)
    scaling = scaled * formulas.elementwise("multiplication", output)
    return formulas.elementwise("addition", output) + scaling


def _power(arguments: Sequence[Any], output: Shape) -> Operations:
    exponent = arguments[1]
    if exponent in (1, 2, 3):
        return int(exponent - 1) * formulas.elementwise("multiplication", output)
    return formulas.elementwise("transcendental", output)


def _gelu(arguments: Sequence[Any], output: Shape) -> Operations:
    return formulas.elementwise("gelu_tanh" if arguments[1] == "tanh" else "gelu", output)


def _clamp(arguments: Sequence[Any], output: Shape) -> Operations:
    bounds = sum(bound is not None for bound in arguments[1:3])
    return bounds * formulas.elementwise("comparison", output)


def _maximum_or_pairwise(arguments: Sequence[Any], output: Shape) -> Operations:
    # max(x), max(x, dim) and max(x, y) share a name.
    if len(arguments) == 2 and isinstance(arguments[1], Sequence):
        return formulas.elementwise("comparison", output)
    return formulas.maximum(prod(arguments[0]), prod(output))


FORMULAS: dict[str, Formula] = {
    "adderize::adder_conv2d": _adder,
    "adderize::binary_conv2d": _binary,
    "convolution": _convolution,
    "_convolution": _convolution,
    "_convolution_mode": lambda arguments, output: _convolution(
        [*arguments[:3], None, None, None, False], output
    ),
    "linear": _linear,
    "addmm": _matmul_onto,
    "baddbmm": _matmul_onto,
    "einsum": _einsum,
    "scaled_dot_product_attention": _attention,
    "batch_norm": _batch_norm,
    "native_batch_norm": _batch_norm,
    "_native_batch_norm_legit_no_training": _frozen_batch_norm,
    "instance_norm": _instance_norm,
    "layer_norm": _layer_norm,
    "native_layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "_fused_rms_norm": _rms_norm,
    "group_norm": _group_norm,
    "native_group_norm": _native_group_norm,
    "mean": _reduction(formulas.mean),
    "sum": _reduction(_sum),
    "cumsum": _reduction(_sum),
    "col2im": _reduction(_sum),
    "linalg_vector_norm": _vector_norm,
    "max": _maximum_or_pairwise,
    "min": _maximum_or_pairwise,
    "add": _add,
    "sub": _add,
    "rsub": _add,
    "pow": _power,
    "gelu": _gelu,
    "clamp": _clamp,
    "upsample_bilinear2d": _each("bilinear"),
    "upsample_bicubic2d": _each("bicubic"),
    "_prelu_kernel": _each("leaky_relu"),
    "prelu": _each("leaky_relu"),
    "glu": _each("silu"),
    "_log_softmax": _each("log_softmax"),
}
FORMULAS |= dict.fromkeys(("mm", "bmm", "matmul", "mv", "dot"), _matmul)
FORMULAS |= dict.fromkeys(
    ("softmax", "_softmax", "_safe_softmax"),
    lambda arguments, output: formulas.softmax(output),
)
FORMULAS |= dict.fromkeys(("amax", "amin", "argmax", "argmin"), _reduction(formulas.maximum))
FORMULAS |= dict.fromkeys(("var", "var_mean", "std", "std_mean"), _reduction(formulas.variance))
for _dimensions in (1, 2, 3):
    FORMULAS |= {
        f"avg_pool{_dimensions}d": _average_pool(_dimensions),
        f"max_pool{_dimensions}d": _max_pool(_dimensions),
        f"max_pool{_dimensions}d_with_indices": _max_pool(_dimensions),
        f"adaptive_avg_pool{_dimensions}d": _adaptive(formulas.mean, _dimensions),
        f"_adaptive_avg_pool{_dimensions}d": _adaptive(formulas.mean, _dimensions),
        f"adaptive_max_pool{_dimensions}d": _adaptive(formulas.maximum, _dimensions),
    }
for _kind, _names in {
    "multiplication": "mul",
    "division": "div reciprocal",
    "comparison": (
        "relu threshold clamp_min clamp_max maximum minimum eq ne gt ge lt le hardshrink"
    ),
    "transcendental": (
        "exp expm1 log log1p log2 sqrt rsqrt sin cos tan tanh sigmoid erf atan atan2 "
        "floor ceil round"
    ),
    "clamp": "hardtanh relu6",
    "leaky_relu": "leaky_relu",
    "elu": "elu celu selu",
    "softplus": "softplus",
    "silu": "silu",
    "mish": "mish",
    "hardsigmoid": "hardsigmoid",
    "hardswish": "hardswish",
    "addcmul": "addcmul",
    "lerp": "lerp",
    "log_softmax": "log_softmax",
}.items():
    FORMULAS |= dict.fromkeys(_names.split(), _each(_kind))

# Moved, selected, made or re-signed values: no arithmetic.
_FREE = (
    # Views and shapes.
    "Int ScalarImplicit _reshape_alias _shape_as_tensor _unsafe_view alias as_strided detach "
    "diagonal expand expand_as flatten is_same_size item mT movedim narrow numel numpy_T permute "
    "reshape select size slice split split_with_sizes squeeze swapaxes t transpose unbind "
    "unflatten unfold unsqueeze view view_as chunk tensor_split "
    "unsafe_split unsafe_chunk",
    # Copies and rearrangements.
    "_to_copy cat channel_shuffle clone constant_pad_nd contiguous copy flip im2col lift_fresh "
    "meshgrid native_channel_shuffle pad pixel_shuffle pixel_unshuffle reflection_pad1d "
    "reflection_pad2d repeat repeat_interleave replication_pad1d replication_pad2d roll stack "
    "tile to type_as upsample_nearest2d broadcast_tensors",
    # Constants.
    "arange bernoulli eye empty empty_like empty_strided fill full full_like linspace new_empty "
    "new_empty_strided new_full new_ones new_zeros ones ones_like scalar_tensor zero zeros "
    "zeros_like",
    # Selection.
    "_unsafe_index embedding gather index index_put index_select masked_fill nonzero scatter "
    "select_scatter slice_scatter tril triu where dropout feature_dropout",
    # Signs and bits.
    "__and __or abs bitwise_and bitwise_not bitwise_or copysign isfinite isinf isnan logical_and "
    "logical_not logical_or neg sign",
)
FREE_OPERATORS = frozenset(name for names in _FREE for name in names.split())


def count_call(
    operator: str, arguments: Sequence[Any], output: Shape, floating: bool
) -> Operations | None:
    """Operations of one call, or None where no formula is known.

    Args:
        operator: name with its namespace, such as ``aten::convolution``.
        arguments: all arguments in schema order; tensors as shapes.
        output: shape of the (first) result.
        floating: whether a floating-point tensor takes part; index arithmetic is free.
    """
    name = base_name(operator)
    if name in FREE_OPERATORS or not floating:
        return FREE
    if name not in FORMULAS:
        return None
    try:
        return FORMULAS[name](arguments, output)
    except NotImplementedError:
        return None
