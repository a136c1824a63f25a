"""Operators of PyTorch's dispatcher and tracer, and the formula that each one is counted by.

An operator is looked up by its base name (``aten::add_.Tensor`` is ``add``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from adderize import formulas
from adderize.counting import call_formulas as of
from adderize.counting.call_formulas import Formula
from adderize.formulas import FREE, Operations, Shape

Numbers = Literal["integer", "real", "complex"]


def base_name(operator: str) -> str:
    """``aten::add_`` -> ``add``; names of other namespaces stay whole."""
    return operator.removeprefix("aten::").rstrip("_")


# Of a call's arguments, its output, and what a pair of an input and a filter value is counted as.
ADDER_FORMULAS: dict[str, Callable[..., Operations]] = {
    "adderize::adder_conv2d": of.adder,
    "adderize::adder_conv2d_u8": of.adder_of_bytes,
    "adderize::adder_conv2d_u8_packed": of.adder_of_packed_bytes,
}
FORMULAS: dict[str, Formula] = {
    **ADDER_FORMULAS,
    "adderize::binary_conv2d": of.binary,
    "adderize::max_pool2d_u8": of.max_pool(2),
    "adderize::to_bytes": of.each("to_bytes"),
    "convolution": of.convolution,
    "_convolution": of.convolution,
    "_convolution_mode": lambda arguments, output: of.convolution(
        [*arguments[:3], None, None, None, False], output
    ),
    "linear": of.linear,
    "addmm": of.matmul_onto,
    "baddbmm": of.matmul_onto,
    "dropout": of.dropout,
    "einsum": of.einsum,
    "tensordot": of.tensordot,
    "scaled_dot_product_attention": of.attention,
    "batch_norm": of.batch_norm,
    "native_batch_norm": of.batch_norm,
    "_native_batch_norm_legit_no_training": of.frozen_batch_norm,
    "instance_norm": of.instance_norm,
    "layer_norm": of.layer_norm,
    "native_layer_norm": of.layer_norm,
    "rms_norm": of.rms_norm,
    "_fused_rms_norm": of.rms_norm,
    "group_norm": of.group_norm,
    "native_group_norm": of.native_group_norm,
    "mean": of.reduction(formulas.mean),
    "sum": of.reduction(of.summation),
    "cumsum": of.reduction(of.summation),
    "col2im": of.reduction(of.summation),
    "linalg_vector_norm": of.vector_norm,
    "max": of.maximum_or_pairwise,
    "min": of.maximum_or_pairwise,
    "add": of.add,
    "sub": of.add,
    "rsub": of.add,
    "pow": of.power,
    "gelu": of.gelu,
    "clamp": of.clamp,
    "upsample_linear1d": of.each("linear"),
    "upsample_bilinear2d": of.each("bilinear"),
    "upsample_trilinear3d": of.each("trilinear"),
    "upsample_bicubic2d": of.each("bicubic"),
    "_prelu_kernel": of.each("leaky_relu"),
    "prelu": of.each("leaky_relu"),
    "glu": of.each("silu"),
    "_log_softmax": of.each("log_softmax"),
}
FORMULAS |= dict.fromkeys(("mm", "bmm", "matmul", "mv", "dot", "vdot"), of.matmul)
FORMULAS |= dict.fromkeys(
    ("feature_dropout", "alpha_dropout", "feature_alpha_dropout"), of.other_dropout
)
FORMULAS |= dict.fromkeys(
    ("softmax", "_softmax", "_safe_softmax"),
    lambda arguments, output: formulas.softmax(output),
)
FORMULAS |= dict.fromkeys(("amax", "amin", "argmax", "argmin"), of.reduction(formulas.maximum))
FORMULAS |= dict.fromkeys(("var", "var_mean", "std", "std_mean"), of.reduction(formulas.variance))
for _dimensions in (1, 2, 3):
    FORMULAS |= {
        f"avg_pool{_dimensions}d": of.average_pool(_dimensions),
        f"max_pool{_dimensions}d": of.max_pool(_dimensions),
        f"max_pool{_dimensions}d_with_indices": of.max_pool(_dimensions),
        f"adaptive_avg_pool{_dimensions}d": of.adaptive(formulas.mean, _dimensions),
        f"_adaptive_avg_pool{_dimensions}d": of.adaptive(formulas.mean, _dimensions),
        f"adaptive_max_pool{_dimensions}d": of.adaptive(formulas.maximum, _dimensions),
    }
for _kind, _names in {
    "multiplication": "mul square",
    "division": "div reciprocal",
    "comparison": (
        "relu threshold clamp_min clamp_max maximum minimum eq ne gt ge lt le hardshrink"
    ),
    "transcendental": (
        "exp expm1 log log1p log2 sqrt rsqrt sin cos tan tanh sigmoid erf atan atan2 "
        "floor ceil round"
    ),
    "clamp": "hardtanh relu6",
    "leaky_relu": "leaky_relu rrelu rrelu_with_noise",
    "elu": "elu celu selu",
    "softplus": "softplus",
    "log_sigmoid": "log_sigmoid log_sigmoid_forward",
    "softshrink": "softshrink",
    "silu": "silu",
    "mish": "mish",
    "hardsigmoid": "hardsigmoid",
    "hardswish": "hardswish",
    "addcmul": "addcmul",
    "lerp": "lerp",
    "log_softmax": "log_softmax",
}.items():
    FORMULAS |= dict.fromkeys(_names.split(), of.each(_kind))

# Moved, selected, made or re-signed values: no arithmetic.
_FREE = (
    # Views and shapes.
    "Int ScalarImplicit _reshape_alias _shape_as_tensor _unsafe_view alias as_strided detach "
    "diagonal expand expand_as flatten is_same_size item mT movedim narrow numel numpy_T permute "
    "reshape reshape_as select size slice split split_with_sizes squeeze swapaxes t transpose "
    "unbind unflatten unfold unsqueeze view view_as chunk tensor_split unsafe_split unsafe_chunk "
    "view_as_complex view_as_real",
    # Copies and rearrangements.
    "_to_copy cat channel_shuffle clone constant_pad_nd contiguous copy flip im2col lift_fresh "
    "meshgrid native_channel_shuffle pad pixel_shuffle pixel_unshuffle repeat repeat_interleave "
    "roll rot90 stack tile to type_as broadcast_tensors",
    "reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d "
    "replication_pad3d upsample_nearest1d upsample_nearest2d upsample_nearest3d "
    "_upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d",
    # Constants.
    "arange bernoulli eye empty empty_like empty_strided fill full full_like linspace new_empty "
    "new_empty_strided new_full new_ones new_zeros ones ones_like scalar_tensor zero zeros "
    "zeros_like",
    # Selection.
    "_unsafe_index embedding gather index index_put index_select masked_fill nonzero scatter "
    "select_scatter slice_scatter tril triu where",
    # Signs and bits.
    "__and __or abs bitwise_and bitwise_not bitwise_or copysign isfinite isinf isnan logical_and "
    "logical_not logical_or neg sign",
)
FREE_OPERATORS = frozenset(name for names in _FREE for name in names.split())
# A complex number's absolute value and sign take squares and a root.
_NOT_OF_COMPLEX = frozenset(("abs", "sign"))


def count_call(
    operator: str, arguments: Sequence[Any], output: Shape, numbers: Numbers
) -> Operations | None:
    """Operations of one call, or None where no formula is known.

    Args:
        operator: name with its namespace, such as ``aten::convolution``.
        arguments: all arguments in schema order; tensors as shapes.
        output: shape of the (first) result.
        numbers: of the tensors that take part. Arithmetic of torch's own operators on integers is
            index arithmetic, and free; no formula holds for complex numbers.
    """
    name = base_name(operator)
    if numbers == "complex":
        return FREE if name in FREE_OPERATORS - _NOT_OF_COMPLEX else None
    if name in FREE_OPERATORS or (numbers == "integer" and "::" not in name):
        return FREE
    if name not in FORMULAS:
        return None
    try:
        return FORMULAS[name](arguments, output)
    except NotImplementedError:
        return None
