"""Operations of each kind of layer, as functions of shapes: one table for every counter.

Conventions, the same for every layer:

- A product that is accumulated is one multiplication and one addition; a sum of n terms is n
  additions (the accumulator starts from zero or from the bias, which is one more addition).
- A pair is one filter tap meeting one input value. A convolution spends one multiplication and one
  addition on it, an adder two additions (subtract, accumulate; Chen et al., AdderNet, CVPR 2020),
  an XNOR layer one XNOR and one addition (its bit count). Changes of sign are free: negation, the
  adder's absolute value. Padded taps count, for they are computed.
- A constant factor that is a sum of T signed powers of two costs T shifts and T - 1 additions,
  whether or not a value needs all of its terms.
- Comparisons: one for each bound of a rectifier, n - 1 for a maximum of n values.
- `other` counts one for each division, root, exponential or other transcendental function.
- Copies, views and arithmetic on integer indices are free; bytes of quantized layers count.

Shapes are tuples of integers: nothing here needs torch.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from math import ceil, prod

Shape = Sequence[int]


@dataclass(frozen=True, slots=True)
class Operations:
    """How many operations of each kind; adds up, and scales with an integer."""

    multiplications: int = 0
    additions: int = 0
    shifts: int = 0
    xnors: int = 0
    comparisons: int = 0
    other: int = 0

    def __add__(self, more: Operations) -> Operations:
        return Operations(*map(operator.add, _counts(self), _counts(more)))

    def __mul__(self, times: int) -> Operations:
        return Operations(*(count * times for count in _counts(self)))

    __rmul__ = __mul__

    def by_kind(self) -> dict[str, int]:
        return asdict(self)

    @property
    def flops(self) -> int:
        """Multiplications and additions together: what torch calls FLOPs."""
        return self.multiplications + self.additions


KINDS = tuple(field.name for field in fields(Operations))
_counts = operator.attrgetter(*KINDS)

FREE = Operations()
MULTIPLICATION = Operations(multiplications=1)
ADDITION = Operations(additions=1)
SHIFT = Operations(shifts=1)
COMPARISON = Operations(comparisons=1)
OTHER = Operations(other=1)

CONVOLUTION_PAIR = MULTIPLICATION + ADDITION
ADDER_PAIR = 2 * ADDITION
XNOR_PAIR = Operations(xnors=1, additions=1)
# Low bits dropped, ties rounded up.
ROUNDED_SHIFT = ADDITION + SHIFT


def convolution_pairs(input: Shape, weight: Shape, output: Shape, transposed: bool = False) -> int:
    """Filter taps times the positions that they meet; any number of spatial dimensions.

    Args:
        input: (N, Cin, ...).
        weight: (Cout, Cin/groups, ...), or (Cin, Cout/groups, ...) where transposed.
        output: (N, Cout, ...).
    """
    return prod(input if transposed else output) * prod(weight[1:])


def convolution(
    input: Shape, weight: Shape, output: Shape, *, bias: bool = False, transposed: bool = False
) -> Operations:
    """Grouped, depthwise and transposed convolutions, with their bias."""
    pairs = convolution_pairs(input, weight, output, transposed)
    return pairs * CONVOLUTION_PAIR + bias * prod(output) * ADDITION


def adder(input: Shape, weight: Shape, output: Shape) -> Operations:
    """The adder op's forward pass; its bias is an addition of its own in the network."""
    return convolution_pairs(input, weight, output) * ADDER_PAIR


def adder_input_gradient(
    input: Shape, weight: Shape, output: Shape, gradient: str = "full"
) -> Operations:
    """Per pair: subtract, clip, multiply, accumulate; signs are compared and accumulated."""
    pair = COMPARISON + ADDITION
    if gradient == "full":
        pair = 2 * ADDITION + 2 * COMPARISON + MULTIPLICATION
    return convolution_pairs(input, weight, output) * pair


def adder_weight_gradient(
    input: Shape, weight: Shape, output: Shape, gradient: str = "full"
) -> Operations:
    """A convolution's, minus the filters times the summed output gradient; "sign" has signs."""
    pairs = convolution_pairs(input, weight, output)
    if gradient != "sign":
        rank_one = prod(output) * ADDITION + prod(weight) * (MULTIPLICATION + ADDITION)
        return pairs * CONVOLUTION_PAIR + rank_one
    return pairs * (COMPARISON + ADDITION)


def xnor(input: Shape, weight: Shape, output: Shape) -> Operations:
    """XNOR layer: signs of the input, XNOR and bit count, one scale for each output channel.

    Rastegari et al., XNOR-Net, ECCV 2016, section 3.1, with the filters binarised beforehand and
    without the map of input scales, as Zhou et al. (DoReFa-Net, 2016) leave it out.
    """
    pairs = convolution_pairs(input, weight, output)
    return pairs * XNOR_PAIR + prod(input) * COMPARISON + prod(output) * MULTIPLICATION


def shift_add(products: Operations, terms: int) -> Operations:
    """What products with constants become where each is a sum of `terms` signed powers of two.

    ``shift_add(scale_and_shift(output), 3)`` is a norm, ``shift_add(convolution(...), 2)`` or
    ``shift_add(matmul(...), 2)`` a layer with weights of two terms.
    """
    factors = products.multiplications
    shifted = Operations(-factors, (terms - 1) * factors, shifts=terms * factors)
    return products + shifted


def matmul(first: Shape, output: Shape) -> Operations:
    """(..., K) by (..., K, n): linear layers without their bias, and both products of attention."""
    return prod(output) * first[-1] * CONVOLUTION_PAIR


def attention(query: Shape, key: Shape, value: Shape) -> Operations:
    """Scaled dot-product attention of (..., L, E) with (..., S, E) and (..., S, Ev).

    Queries and keys are scaled, as torch's own definition does; a mask is an addition of its own.
    """
    logits = (*query[:-1], key[-2])
    mixed = (*query[:-1], value[-1])
    scaled = (prod(query) + prod(key)) * MULTIPLICATION
    return scaled + matmul(query, logits) + softmax(logits) + matmul(logits, mixed)


def softmax(output: Shape) -> Operations:
    """Per element: a maximum, a subtraction, an exponential, a sum, a division."""
    return prod(output) * (COMPARISON + 2 * ADDITION + 2 * OTHER)


def scale_and_shift(output: Shape) -> Operations:
    """Batch norm in evaluation: its statistics and parameters make one scale and one shift.

    A convolution could absorb the scale, an adder cannot: it is counted for both.
    """
    return prod(output) * (MULTIPLICATION + ADDITION)


def norm_with_statistics(output: Shape, groups: int, weight: bool, bias: bool) -> Operations:
    """Layer, group and instance norm, whose statistics are computed in evaluation too.

    Per element: the variance, a scale, then the affine part; per group of elements that share
    statistics: epsilon and a root.
    """
    per_element = MULTIPLICATION + weight * MULTIPLICATION + bias * ADDITION
    per_group = ADDITION + OTHER
    return variance(prod(output), groups) + prod(output) * per_element + groups * per_group


def rms_norm(output: Shape, groups: int, weight: bool) -> Operations:
    """Square, sum, scale per element; a mean, epsilon and a root per group."""
    per_element = 2 * MULTIPLICATION + ADDITION + weight * MULTIPLICATION
    return prod(output) * per_element + groups * (MULTIPLICATION + ADDITION + OTHER)


def variance(terms: int, outputs: int) -> Operations:
    """Mean and variance in two passes: sum, centre, square, sum; two scalings per output."""
    return terms * (MULTIPLICATION + 3 * ADDITION) + outputs * 2 * MULTIPLICATION


def mean(terms: int, outputs: int) -> Operations:
    """Average pooling and means: a sum of `terms` values in all, one scaling per output."""
    return terms * ADDITION + outputs * MULTIPLICATION


def maximum(terms: int, outputs: int) -> Operations:
    """Max pooling and maxima: `terms` values compared in all."""
    return (terms - outputs) * COMPARISON


def adaptive_terms(input: Shape, output: Shape, dimensions: int) -> int:
    """Values that adaptive pooling reads; its windows overlap where sizes do not divide."""
    windows = (
        sum(ceil((i + 1) * size / count) - i * size // count for i in range(count))
        for size, count in zip(input[-dimensions:], output[-dimensions:], strict=True)
    )
    return prod(output[:-dimensions]) * prod(windows)


# Per element of the output.
ELEMENTWISE = {
    "addition": ADDITION,
    "multiplication": MULTIPLICATION,
    "comparison": COMPARISON,
    "division": OTHER,
    "transcendental": OTHER,
    "clamp": 2 * COMPARISON,
    "leaky_relu": COMPARISON + MULTIPLICATION,
    "elu": COMPARISON + OTHER + ADDITION + MULTIPLICATION,
    "softplus": 2 * OTHER + ADDITION,
    "silu": OTHER + MULTIPLICATION,
    "mish": 3 * OTHER + ADDITION + MULTIPLICATION,
    "gelu": 3 * MULTIPLICATION + ADDITION + OTHER,
    "gelu_tanh": 6 * MULTIPLICATION + 2 * ADDITION + OTHER,
    "hardsigmoid": ADDITION + 2 * COMPARISON + MULTIPLICATION,
    "hardswish": ADDITION + 2 * COMPARISON + 2 * MULTIPLICATION,
    "addcmul": 2 * MULTIPLICATION + ADDITION,
    "lerp": MULTIPLICATION + 2 * ADDITION,
    "to_bytes": MULTIPLICATION + ADDITION + 2 * COMPARISON + OTHER,
    "log_softmax": COMPARISON + 3 * ADDITION + OTHER,
    "log_sigmoid": COMPARISON + ADDITION + 2 * OTHER,
    "softshrink": 2 * COMPARISON + ADDITION,
    "linear": 2 * MULTIPLICATION + ADDITION,
    "bilinear": 4 * MULTIPLICATION + 3 * ADDITION,
    "trilinear": 8 * MULTIPLICATION + 7 * ADDITION,
    "bicubic": 16 * MULTIPLICATION + 15 * ADDITION,
}


def elementwise(kind: str, output: Shape) -> Operations:
    """Activations, residual additions, gates, resampling: `kind` names a row of ELEMENTWISE."""
    return prod(output) * ELEMENTWISE[kind]
