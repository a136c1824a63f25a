"""A CNN and its adder twin, and what they are timed at: a training step, or inference."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adderize.models.by_name import build
from adderize.surgery import adderize
from adderize.training.adaptive_rate import scale_adder_gradients_


def twin(name: str, arch: str, device: str) -> nn.Module:
    """The convolutional network ("cnn") or its adder form ("adder"), channels_last."""
    torch.manual_seed(0)
    network = build(arch)
    if name == "adder":
        network = adderize(network, init="normal")
    return network.to(device).to(memory_format=torch.channels_last)


def training_step(name: str, network: nn.Module, batch: Tensor) -> Callable[[], None]:
    """Forward, backward, adaptive rate (adders only) and an SGD step."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    network.train()
    targets = torch.zeros(len(batch), dtype=torch.long, device=batch.device)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(network(batch).float(), targets).backward()
        if name == "adder":
            scale_adder_gradients_(network, 0.2)
        optimizer.step()

    return step


def inference(name: str, network: nn.Module, batch: Tensor) -> Callable[[], None]:
    """A forward pass in eval mode."""
    network.eval()

    def run() -> None:
        with torch.inference_mode():
            network(batch)

    return run


def noise(input_size: tuple[int, ...], batch: int, device: str) -> Tensor:
    """Images (batch, *input_size), channels_last, the same ones every time."""
    generator = torch.Generator(device).manual_seed(0)
    images = torch.randn((batch, *input_size), generator=generator, device=device)
    return images.to(memory_format=torch.channels_last)


TWINS = ("cnn", "adder")
TASKS = {"step": training_step, "inference": inference}
