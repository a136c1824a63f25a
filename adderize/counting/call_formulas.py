"""Formulas of operator calls: their arguments in the order of the schema, tensors as shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from math import isfinite, prod
from typing import Any

from adderize import formulas
from adderize.formulas import FREE, Operations, Shape

Formula = Callable[[Sequence[Any], Shape], Operations]
Pairs = Callable[[Shape, Shape, Shape], Operations]


def each(kind: str) -> Formula:
    return lambda arguments, output: formulas.elementwise(kind, output)


def convolution(arguments: Sequence[Any], output: Shape) -> Operations:
    input, weight, bias, _, _, _, transposed, *_ = arguments
    return formulas.convolution(
        input, weight, output, bias=bias is not None, transposed=bool(transposed)
    )


def adder(arguments: Sequence[Any], output: Shape, pairs: Pairs = formulas.adder) -> Operations:
    return pairs(arguments[0], arguments[1], output)


def adder_of_bytes(
    arguments: Sequence[Any], output: Shape, pairs: Pairs = formulas.adder
) -> Operations:
    """The pairs, and the epilogue of each output: scale, shift, residual, bounds, rounding."""
    input, weight, _, _, residual, *_, low, high, float_output = arguments
    terms = 1 + (residual is not None)
    bounds = isfinite(low) + isfinite(high)
    epilogue = terms * formulas.CONVOLUTION_PAIR + bounds * formulas.COMPARISON
    rounding = (not float_output) * formulas.OTHER
    return pairs(input, weight, output) + prod(output) * (epilogue + rounding)


def adder_of_packed_bytes(
    arguments: Sequence[Any], output: Shape, pairs: Pairs = formulas.adder
) -> Operations:
    input, _, weight_shape, *rest = arguments
    return adder_of_bytes([input, weight_shape, *rest], output, pairs)


def binary(arguments: Sequence[Any], output: Shape) -> Operations:
    return formulas.xnor(arguments[0], arguments[1], output)


def matmul(arguments: Sequence[Any], output: Shape) -> Operations:
    return formulas.matmul(arguments[0], output)


def linear(arguments: Sequence[Any], output: Shape) -> Operations:
    has_bias = arguments[2] is not None
    return matmul(arguments, output) + has_bias * formulas.elementwise("addition", output)


def matmul_onto(arguments: Sequence[Any], output: Shape) -> Operations:
    beta, alpha = arguments[3:5]
    scalings = int(beta not in (0, 1)) + int(alpha != 1)
    return (
        formulas.matmul(arguments[1], output)
        + scalings * formulas.elementwise("multiplication", output)
        + bool(beta) * formulas.elementwise("addition", output)
    )


def einsum(arguments: Sequence[Any], output: Shape) -> Operations:
    """Of one or two operands, as torch computes it: what one operand alone has is summed first."""
    equation, operands, *_ = arguments
    inputs, arrow, result = equation.replace(" ", "").partition("->")
    labels = [_labels(one, shape) for one, shape in zip(inputs.split(","), operands, strict=True)]
    kept = (
        {*_labels(result, output)}
        if arrow
        else {label for label in chain(*labels) if label < 0 or inputs.count(chr(label)) == 1}
    )
    if len(operands) > 2 or any(len({*own}) < len(own) for own in labels):
        raise NotImplementedError
    operations, sizes = FREE, dict[int, int]()
    for own, other, shape in zip(labels, [*labels[1:], *labels[:1]], operands, strict=True):
        needed = kept | {*other} if len(operands) == 2 else kept
        if not needed.issuperset(own):
            operations += summation(prod(shape), 0)
        for label, size in zip(own, shape, strict=True):
            if label not in kept and sizes.get(label, size) != size:
                raise NotImplementedError
            if label in needed:
                sizes[label] = max(size, sizes.get(label, 1))
    if len(operands) == 1:
        return operations
    products = prod(sizes.values())
    pair = formulas.MULTIPLICATION if kept.issuperset(sizes) else formulas.CONVOLUTION_PAIR
    return operations + products * pair


def _labels(letters: str, shape: Shape) -> list[int]:
    """One for each dimension: its letter, or a negative number where an ellipsis covers it."""
    before, dots, after = letters.partition("...")
    dimensions = len(shape) - len(before) - len(after)
    covered = range(-dimensions, 0) if dots else ()
    return [*map(ord, before), *covered, *map(ord, after)]


def tensordot(arguments: Sequence[Any], output: Shape) -> Operations:
    first, _, dimensions, *_ = arguments
    sizes: list[int] = [first[dimension] for dimension in dimensions]
    if 1 in sizes:
        raise NotImplementedError
    return formulas.CONVOLUTION_PAIR * (prod(sizes) * prod(output))


def other_dropout(arguments: Sequence[Any], output: Shape) -> Operations:
    """Free in evaluation."""
    if arguments[2]:
        raise NotImplementedError
    return FREE


def dropout(arguments: Sequence[Any], output: Shape) -> Operations:
    """Free in evaluation; a functional one that drops nevertheless scales a mask and applies it."""
    return bool(arguments[2]) * prod(output) * (formulas.MULTIPLICATION + formulas.OTHER)


def attention(arguments: Sequence[Any], output: Shape) -> Operations:
    query, key, value, mask, _, causal, *_ = arguments
    logits = (*query[:-1], key[-2])
    masked = (mask is not None or bool(causal)) * formulas.elementwise("addition", logits)
    return formulas.attention(query, key, value) + masked


def batch_norm(arguments: Sequence[Any], output: Shape) -> Operations:
    input, weight, bias, _, _, training, *_ = arguments
    return norm(input, weight, bias, input[1], bool(training))


def frozen_batch_norm(arguments: Sequence[Any], output: Shape) -> Operations:
    return formulas.scale_and_shift(output)


def instance_norm(arguments: Sequence[Any], output: Shape) -> Operations:
    input, weight, bias, _, _, use_input_statistics, *_ = arguments
    return norm(input, weight, bias, input[0] * input[1], bool(use_input_statistics))


def norm(input: Shape, weight: Any, bias: Any, groups: int, statistics: bool) -> Operations:
    if not statistics:
        return formulas.scale_and_shift(input)
    return formulas.norm_with_statistics(input, groups, weight is not None, bias is not None)


def layer_norm(arguments: Sequence[Any], output: Shape) -> Operations:
    input, normalized, weight, bias, *_ = arguments
    return norm(input, weight, bias, prod(input[: -len(normalized)]), True)


def rms_norm(arguments: Sequence[Any], output: Shape) -> Operations:
    input, normalized, weight, *_ = arguments
    return formulas.rms_norm(input, prod(input[: -len(normalized)]), weight is not None)


def group_norm(arguments: Sequence[Any], output: Shape) -> Operations:
    input, groups, weight, bias, *_ = arguments
    return norm(input, weight, bias, input[0] * groups, True)


def native_group_norm(arguments: Sequence[Any], output: Shape) -> Operations:
    input, weight, bias, _, _, _, groups, *_ = arguments
    return norm(input, weight, bias, input[0] * groups, True)


def window(arguments: Sequence[Any], output: Shape, dimensions: int) -> int:
    size = arguments[1] if isinstance(arguments[1], Sequence) else [arguments[1]]
    return prod(output) * (prod(size) if len(size) == dimensions else size[0] ** dimensions)


def average_pool(dimensions: int) -> Formula:
    def pool(arguments: Sequence[Any], output: Shape) -> Operations:
        divisor = arguments[6] if len(arguments) > 6 else None
        reduction = summation if divisor == 1 else formulas.mean
        return reduction(window(arguments, output, dimensions), prod(output))

    return pool


def max_pool(dimensions: int) -> Formula:
    return lambda arguments, output: formulas.maximum(
        window(arguments, output, dimensions), prod(output)
    )


def adaptive(reduction: Callable[[int, int], Operations], dimensions: int) -> Formula:
    return lambda arguments, output: reduction(
        formulas.adaptive_terms(arguments[0], output, dimensions), prod(output)
    )


def reduction(reduction: Callable[[int, int], Operations]) -> Formula:
    return lambda arguments, output: reduction(prod(arguments[0]), prod(output))


def summation(terms: int, outputs: int) -> Operations:
    return terms * formulas.ADDITION


def vector_norm(arguments: Sequence[Any], output: Shape) -> Operations:
    input: Shape = arguments[0]
    if arguments[1] != 2:
        raise NotImplementedError
    return prod(input) * formulas.CONVOLUTION_PAIR + prod(output) * formulas.OTHER


def add(arguments: Sequence[Any], output: Shape) -> Operations:
    scaled = bool(arguments[2] != 1)
    scaling = scaled * formulas.elementwise("multiplication", output)
    return formulas.elementwise("addition", output) + scaling


def power(arguments: Sequence[Any], output: Shape) -> Operations:
    exponent = arguments[1]
    if exponent in (1, 2, 3):
        return int(exponent - 1) * formulas.elementwise("multiplication", output)
    return formulas.elementwise("transcendental", output)


def gelu(arguments: Sequence[Any], output: Shape) -> Operations:
    return formulas.elementwise("gelu_tanh" if arguments[1] == "tanh" else "gelu", output)


def clamp(arguments: Sequence[Any], output: Shape) -> Operations:
    bounds = sum(bound is not None for bound in arguments[1:3])
    return bounds * formulas.elementwise("comparison", output)


def maximum_or_pairwise(arguments: Sequence[Any], output: Shape) -> Operations:
    # max(x), max(x, dim) and max(x, y) share a name.
    if len(arguments) == 2 and isinstance(arguments[1], Sequence):
        return formulas.elementwise("comparison", output)
    return formulas.maximum(prod(arguments[0]), prod(output))
