"""The float ops under torch.func: reverse mode and vmap, against loops; forward mode raises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import (
    functional_call,
    functionalize,
    grad,
    hessian,
    jacfwd,
    jacrev,
    jvp,
    stack_module_state,
    vjp,
    vmap,
)

from adderize import AdderConv2d, AdderizeError, AdderLinear, BinaryConv2d
from adderize.functional import adder_conv2d, adder_linear, binary_conv2d
from tests import oracle

OPS = {"adder": adder_conv2d, "binary": binary_conv2d}
GEOMETRIES: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "3x3": ((6, 4, 3, 3), {"padding": 1}),
    "strided": ((6, 4, 3, 2), {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 2)}),
    "groups": ((6, 2, 3, 3), {"groups": 2, "padding": 1}),
    "depthwise": ((4, 1, 3, 3), {"groups": 4}),
    "same": ((6, 4, 2, 3), {"padding": "same"}),
}


def _operands(weight: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, 8, 7, generator=generator, dtype=torch.float64)
    return x, torch.randn(weight, generator=generator, dtype=torch.float64)


def _gradients(function: Callable[[Tensor, Tensor], Tensor], *tensors: Tensor) -> list[Tensor]:
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    return list(torch.autograd.grad(function(*leaves), leaves))


@pytest.mark.parametrize("kind", OPS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_gradients_of_torch_func_are_those_of_autograd(kind: str, geometry: str) -> None:
    weight_shape, options = GEOMETRIES[geometry]
    x, w = _operands(weight_shape)

    def loss(x: Tensor, w: Tensor) -> Tensor:
        return OPS[kind](x, w, **options).square().sum()

    expected = _gradients(loss, x, w)
    for found, wanted in zip(grad(loss, argnums=(0, 1))(x, w), expected, strict=True):
        torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(grad(loss, argnums=1)(x, w), expected[1])


@pytest.mark.parametrize("kind", OPS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("of", ["input", "weight", "both", "input, last dimension"])
def test_vmap_is_a_loop(kind: str, geometry: str, of: str) -> None:
    weight_shape, options = GEOMETRIES[geometry]
    x, w = _operands(weight_shape)
    xs, ws = torch.stack([x, x + 1, -x]), torch.stack([w, w.flip(0), w * 2])

    def run(x: Tensor, w: Tensor) -> Tensor:
        return OPS[kind](x, w, **options)

    if of == "input":
        found, expected = vmap(run, (0, None))(xs, w), [run(each, w) for each in xs]
    elif of == "weight":
        found, expected = vmap(run, (None, 0))(x, ws), [run(x, each) for each in ws]
    elif of == "both":
        found, expected = vmap(run)(xs, ws), [run(*each) for each in zip(xs, ws, strict=True)]
    else:
        found = vmap(run, (-1, None))(xs.movedim(0, -1), w)
        expected = [run(each, w) for each in xs]
    torch.testing.assert_close(found, torch.stack(expected))


@pytest.mark.parametrize("kind", OPS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_gradients_of_each_sample(kind: str, geometry: str) -> None:
    weight_shape, options = GEOMETRIES[geometry]
    x, w = _operands(weight_shape)

    def loss(x: Tensor, w: Tensor) -> Tensor:
        return OPS[kind](x, w, **options).square().sum()

    found = vmap(grad(loss, argnums=(0, 1)), (0, None))(x, w)
    expected = [_gradients(loss, each, w) for each in x]
    for index in (0, 1):
        torch.testing.assert_close(found[index], torch.stack([row[index] for row in expected]))


def test_gradients_of_each_sample_against_the_formula() -> None:
    """dF = sum_p g (x - F), of every image alone; on the native kernels."""
    x, w = (tensor.float() for tensor in _operands((6, 4, 3, 3)))
    g = torch.randn(3, 6, 6, 5)
    found = vmap(lambda x, g: vjp(lambda w: adder_conv2d(x, w), w)[1](g)[0])(x, g)
    for each, image, gradient in zip(found, x, g, strict=True):
        expected = oracle.adder_conv2d(image[None], w, gradient[None])
        assert oracle.relative_error(each, expected.weight_gradient) < 1e-5


@pytest.mark.parametrize("layer", [AdderConv2d(3, 4, 3), BinaryConv2d(3, 4, 3)])
def test_layers(layer: torch.nn.Module) -> None:
    x = torch.randn(5, 3, 6, 6, dtype=torch.float64)
    parameters = dict(layer.double().named_parameters())

    def loss(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
        output: Tensor = functional_call(layer, parameters, (image,))
        return output.square().sum()

    found = vmap(grad(loss), (None, 0))(parameters, x)
    for index, image in enumerate(x):
        expected = torch.autograd.grad(loss(parameters, image), list(parameters.values()))
        for name, wanted in zip(parameters, expected, strict=True):
            torch.testing.assert_close(found[name][index], wanted)


def test_linear_layers() -> None:
    layer, x = AdderLinear(4, 3).double(), torch.randn(5, 4, dtype=torch.float64)
    rows = vmap(grad(lambda w, x: adder_linear(x, w).square().sum()), (None, 0))(layer.weight, x)
    for row, each in zip(rows, x, strict=True):
        loss = adder_linear(each, layer.weight).square().sum()
        torch.testing.assert_close(row, torch.autograd.grad(loss, layer.weight)[0])


def test_no_samples_and_no_images() -> None:
    layer = AdderConv2d(4, 6, 3)
    assert vmap(layer)(torch.randn(0, 2, 4, 8, 7)).shape == (0, 2, 6, 6, 5)
    assert vmap(layer)(torch.randn(2, 0, 4, 8, 7)).shape == (2, 0, 6, 6, 5)


def test_ensembles_and_functionalization() -> None:
    x, w = _operands((6, 4, 3, 3))
    layers = [AdderConv2d(4, 6, 3).double() for _ in range(3)]
    parameters, buffers = stack_module_state(layers)

    def run(parameters: Any, buffers: Any) -> Tensor:
        output: Tensor = functional_call(layers[0], (parameters, buffers), (x,))
        return output

    expected = torch.stack([layer(x) for layer in layers])
    torch.testing.assert_close(vmap(run)(parameters, buffers), expected)
    torch.testing.assert_close(functionalize(lambda x: adder_conv2d(x, w))(x), adder_conv2d(x, w))


def test_jacobians() -> None:
    x, w = _operands((6, 4, 3, 3))

    def means(w: Tensor) -> Tensor:
        return adder_conv2d(x, w).mean((0, 2, 3))

    expected = torch.autograd.functional.jacobian(means, w)
    torch.testing.assert_close(jacrev(means)(w), expected)
    vectorised = torch.autograd.functional.jacobian(means, w, vectorize=True)
    torch.testing.assert_close(vectorised, expected)


def test_batches_of_output_gradients() -> None:
    x, w = _operands((6, 4, 3, 3))
    w.requires_grad_()
    output = adder_conv2d(x, w)
    gradients = torch.randn(2, *output.shape, dtype=torch.float64)
    (found,) = torch.autograd.grad(output, w, gradients, is_grads_batched=True, retain_graph=True)
    for each, gradient in zip(found, gradients, strict=True):
        torch.testing.assert_close(
            each, torch.autograd.grad(output, w, gradient, retain_graph=True)[0]
        )


def test_autocast() -> None:
    """The CPU casts the adder's operands to float32, as without torch.func."""
    x, w = torch.randn(2, 3, 6, 6).bfloat16(), torch.randn(4, 3, 3, 3)

    def loss(w: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return adder_conv2d(x, w).square().sum()

    (expected,) = _gradients(loss, w)  # type: ignore[arg-type]
    torch.testing.assert_close(grad(loss)(w), expected)


def _dual(function: Callable[[Tensor], Tensor], w: Tensor) -> object:
    with forward_ad.dual_level():
        return function(forward_ad.make_dual(w, torch.ones_like(w)))


@pytest.mark.parametrize("kind", OPS)
@pytest.mark.parametrize(
    "derivative",
    [
        lambda f, w: jvp(f, (w,), (torch.ones_like(w),)),
        lambda f, w: jacfwd(f)(w),
        lambda f, w: torch.autograd.functional.jacobian(
            f, w, strategy="forward-mode", vectorize=True
        ),
        _dual,
    ],
)
def test_forward_mode_raises(kind: str, derivative: Callable[..., object]) -> None:
    x, w = _operands((6, 4, 3, 3))
    with pytest.raises(AdderizeError, match="no forward-mode derivatives"):
        derivative(lambda w: OPS[kind](x, w).square().sum(), w)


@pytest.mark.parametrize("kind", OPS)
def test_forward_mode_raises_where_programs_call_the_ops(kind: str) -> None:
    """Compiled and exported programs once gave tangents of zero, or none."""

    class Layer(torch.nn.Module):
        def forward(self, x: Tensor, w: Tensor) -> Tensor:
            return OPS[kind](x, w, padding=1)

    x, w = _operands((6, 4, 3, 3))
    exported = torch.export.export(Layer(), (x, w)).module()
    with torch.no_grad():
        compiled = torch.compile(
            lambda t: jvp(lambda w: Layer()(x, w), (w,), (t,)), backend="eager"
        )
        for program in (
            lambda: compiled(w),
            lambda: _dual(lambda w: exported(x, w), w),
            lambda: jvp(lambda w: exported(x, w), (w,), (w,)),
        ):
            # Older versions of Dynamo wrap an error in one of their own.
            with pytest.raises((AdderizeError, RuntimeError), match="no forward-mode derivatives"):
                program()


@pytest.mark.parametrize("kind", OPS)
def test_second_derivatives_raise(kind: str) -> None:
    x, w = _operands((6, 4, 3, 3))

    def loss(w: Tensor) -> Tensor:
        return OPS[kind](x, w).square().sum()

    for second in (grad(lambda w: grad(loss)(w).sum()), hessian(loss), jacrev(grad(loss))):
        with pytest.raises(AdderizeError, match=r"second derivative|no forward-mode"):
            second(w)


def test_tangents_elsewhere_are_no_matter() -> None:
    """A network that is differentiated forward behind a frozen adder."""
    x, w = _operands((6, 4, 3, 3))
    scale = torch.ones((), dtype=torch.float64)
    value, tangent = jvp(lambda s: (adder_conv2d(x, w) * s).sum(), (scale,), (scale,))
    torch.testing.assert_close(value, tangent)
