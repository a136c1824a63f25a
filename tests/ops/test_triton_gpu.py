"""The Triton kernels on a CUDA device."""

from __future__ import annotations

import contextlib
import copy
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import pytest
import torch
from torch import Tensor, nn

from adderize import AdderConv2d, adderize, scale_adder_gradients_
from adderize.ops import choice
from adderize.ops.gradients import GRADIENTS
from tests import oracle

pytest.importorskip("triton", reason="Triton is not installed")

from tests.ops import triton_cases
from tests.ops.triton_cases import CASES, Case

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

adder_conv2d = torch.ops.adderize.adder_conv2d
LAYERS = {
    f"{channels} to {filters}, {groups} groups, {kernel}x{kernel}/{stride}, {gradient}": Case(
        (2, channels, 28, 28),
        (filters, channels // groups, kernel, kernel),
        stride=(stride, stride),
        padding=(kernel // 2, kernel // 2),
        groups=groups,
        gradient=gradient,
    )
    for channels, filters, groups, kernel, stride in (
        (64, 64, 1, 3, 1), (256, 64, 1, 1, 1), (64, 128, 1, 3, 2),
        (96, 96, 96, 3, 1), (96, 96, 96, 7, 1), (40, 40, 40, 5, 2),
        (128, 128, 32, 3, 1), (64, 64, 8, 3, 2),
    )
    for gradient in GRADIENTS
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    """A kernel takes a second to compile, hundreds take minutes: on all cores first."""
    workers, cases = min(12, os.cpu_count() or 1), (*LAYERS.values(), *CASES.values())
    context = multiprocessing.get_context("spawn")
    with contextlib.suppress(BrokenProcessPool), ProcessPoolExecutor(workers, context) as pool:
        list(pool.map(triton_cases.compile_kernels, (None, *cases)))


@pytest.fixture(autouse=True)
def _full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuDNN computes the filter gradient: TF32 would round it."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


@pytest.mark.parametrize("name", CASES)
def test_kernels_against_the_formulas(name: str) -> None:
    errors = triton_cases.errors(CASES[name], "cuda")
    for error, limit in zip(errors, triton_cases.tolerances(CASES[name]), strict=True):
        assert error < limit, errors


@pytest.mark.parametrize("name", LAYERS)
def test_layers_of_networks_and_small_groups(name: str) -> None:
    assert max(triton_cases.errors(LAYERS[name], "cuda")) < 1e-5


def test_operands_are_views_of_any_memory() -> None:
    found = triton_cases.views_of_any_memory("cuda")
    assert found and [name for name, right in found.items() if not right] == []


@pytest.mark.parametrize("where", ["input", "weight"])
def test_not_a_number_stays_visible(where: str) -> None:
    input, weight = torch.randn(2, 8, 6, 6, device="cuda"), torch.randn(8, 8, 3, 3, device="cuda")
    (input if where == "input" else weight)[1, 2, 1, 1] = float("nan")
    grad = torch.ones(2, 8, 6, 6, device="cuda")
    arguments = ([1, 1], [1, 1], [1, 1], 1, "full")
    expected = oracle.adder_conv2d(input.cpu(), weight.cpu(), grad.cpu(), padding=(1, 1))
    output = adder_conv2d(input, weight, *arguments).cpu()
    gradient = torch.ops.adderize.adder_conv2d_input_gradient(grad, input, weight, *arguments).cpu()
    assert torch.equal(output.isnan(), expected.output.isnan())
    assert gradient[expected.input_gradient.isnan()].isnan().all()


def _network() -> nn.Module:
    layers = (
        nn.Conv2d(3, 16, 3),
        nn.BatchNorm2d(16),
        AdderConv2d(16, 32, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        AdderConv2d(32, 32, 3, padding=1, groups=32, bias=False),
        nn.BatchNorm2d(32),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )
    return nn.Sequential(*layers)


def _train(network: nn.Module, images: Tensor, targets: Tensor, steps: int) -> list[float]:
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(images), targets)
        loss.backward()
        scale_adder_gradients_(network, 0.2)
        optimizer.step()
        losses.append(float(loss))
    return losses


def test_training_steps_equal_those_on_the_cpu() -> None:
    on_cpu = _network()
    on_gpu = copy.deepcopy(on_cpu).cuda()
    images, targets = torch.randn(16, 3, 20, 20), torch.randint(10, (16,))
    expected = _train(on_cpu, images, targets, 5)
    actual = _train(on_gpu, images.cuda(), targets.cuda(), 5)
    assert actual == pytest.approx(expected, rel=1e-3)
    for one, other in zip(on_gpu.parameters(), on_cpu.parameters(), strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=1e-2, atol=1e-3)


def test_results_repeat_bit_for_bit() -> None:
    input, weight = (
        torch.randn(4, 64, 14, 14, device="cuda"),
        torch.randn(64, 64, 3, 3, device="cuda"),
    )
    grad = torch.randn(4, 64, 14, 14, device="cuda")
    arguments = ([1, 1], [1, 1], [1, 1], 1, "full")
    gradient = torch.ops.adderize.adder_conv2d_input_gradient
    first = adder_conv2d(input, weight, *arguments), gradient(grad, input, weight, *arguments)
    for _ in range(3):
        assert torch.equal(adder_conv2d(input, weight, *arguments), first[0])
        assert torch.equal(gradient(grad, input, weight, *arguments), first[1])


def test_no_tile_changes_a_bit() -> None:
    same = triton_cases.every_tile_gives_the_same_bits("cuda")
    assert same and [name for name, equal in same.items() if not equal] == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_returns_float32_and_float32_gradients(dtype: torch.dtype) -> None:
    layer, input = AdderConv2d(16, 8, 3, device="cuda"), torch.randn(2, 16, 8, 8, device="cuda")
    with torch.autocast("cuda", dtype=dtype):
        output = layer(input)
    assert output.dtype == torch.float32
    output.sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.dtype == torch.float32
    exact = layer(input)
    assert ((output - exact).abs().max() / exact.abs().max()) < torch.finfo(dtype).eps


def test_a_captured_graph_replays() -> None:
    layer = AdderConv2d(16, 16, 3, padding=1, bias=False, device="cuda")
    input = torch.randn(4, 16, 8, 8, device="cuda", requires_grad=True)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            layer(input).square().sum().backward()
    torch.cuda.current_stream().wait_stream(stream)
    input.grad, layer.weight.grad = None, None
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = layer(input)
        output.square().sum().backward()
    with torch.no_grad():
        input.copy_(torch.randn_like(input))
    graph.replay()
    captured = output.clone(), input.grad.clone(), layer.weight.grad.clone()
    input.grad, layer.weight.grad = None, None
    output = layer(input)
    output.square().sum().backward()
    for actual, expected in zip(captured, (output, input.grad, layer.weight.grad), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-3)


def test_compiled_networks_compute_the_same() -> None:
    network, images = _network().cuda().eval(), torch.randn(4, 3, 20, 20, device="cuda")
    compiled = torch.compile(network, fullgraph=True)
    torch.testing.assert_close(compiled(images), network(images), rtol=1e-3, atol=1e-3)


def test_work_is_ordered_by_the_current_stream() -> None:
    layer, stream = AdderConv2d(16, 16, 3, device="cuda"), torch.cuda.Stream()
    input = torch.randn(4, 16, 32, 32, device="cuda")
    expected = layer(input * 2)
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10**8)
        output = layer(input * 2)
    torch.cuda.current_stream().wait_stream(stream)
    assert torch.equal(output, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
def test_another_than_the_current_device() -> None:
    layer, input = AdderConv2d(8, 8, 3), torch.randn(2, 8, 6, 6)
    torch.testing.assert_close(layer.to("cuda:1")(input.to("cuda:1")).cpu(), layer.cpu()(input))


def test_tensors_beyond_31_bits() -> None:
    """More than 2**31 inputs: only the last images are looked at."""
    if torch.cuda.mem_get_info()[0] < 32 * 2**30:
        pytest.skip("less than 32 GB of free device memory")
    weight = torch.randn(4, 8, 1, 1, device="cuda")
    input = torch.zeros(2**13 + 8, 8, 181, 182, device="cuda", dtype=torch.bfloat16)
    input = input.to(memory_format=torch.channels_last)
    assert input.numel() > 2**31
    input[-2:] = torch.randn(2, 8, 181, 182, device="cuda", dtype=torch.bfloat16)
    weight = weight.bfloat16()
    arguments = ([1, 1], [0, 0], [1, 1], 1, "full")
    last = input[-2:].cpu(), weight.cpu(), *arguments
    output = adder_conv2d(input, weight, *arguments)
    torch.testing.assert_close(output[-2:].cpu(), adder_conv2d(*last), rtol=1e-5, atol=1e-4)
    grad = output.zero_()
    grad[-2:] = torch.randn(2, 4, 181, 182, device="cuda")
    gradient = torch.ops.adderize.adder_conv2d_input_gradient
    actual = gradient(grad, input, weight, *arguments)[-2:].cpu()
    torch.testing.assert_close(actual, gradient(grad[-2:].cpu(), *last), rtol=1e-2, atol=1e-3)


def test_converted_networks_run_on_triton() -> None:
    found = choice.choose("cuda")
    assert found.name == "triton", found.reason
    stem, head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 1)
    network = nn.Sequential(stem, nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), head)
    network = adderize(network.cuda())
    assert isinstance(network[1], AdderConv2d)
    assert network(torch.randn(2, 3, 9, 9, device="cuda")).device.type == "cuda"
