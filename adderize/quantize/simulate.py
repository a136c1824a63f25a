"""A traced network in floats that are rounded where its form in integers has bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import fx

from adderize.quantize.byte_tensors import ByteTensors
from adderize.quantize.calls import free_name
from adderize.quantize.fake_layers import FakeQuantize, fake_quantized
from adderize.quantize.fuse import Fusion
from adderize.quantize.qparams import QParams

FOLDER = "fake_quantize"


def simulate(
    traced: fx.GraphModule,
    tensors: ByteTensors,
    fusions: Sequence[Fusion],
    qparams: Mapping[str, QParams],
    filter_bits: int | None,
) -> None:
    """Round every tensor where it becomes bytes, and the filters; in place.

    Args:
        tensors: which become bytes.
        qparams: those of each group of them, by the group's name.
        filter_bits: of the filters; None for those of each layer's input.
    """
    grids = {name: FakeQuantize(own) for name, own in qparams.items()}
    for name, grid in grids.items():
        traced.add_submodule(f"{FOLDER}.{name}", grid)
    _replace_adders(traced, tensors, fusions, grids, filter_bits)
    for node in list(traced.graph.nodes):
        if node not in tensors or node in tensors.moving:
            continue
        readers = list(node.users if node in tensors.ends else tensors.byte_readers(node))
        with traced.graph.inserting_after(node):
            rounded = traced.graph.call_module(f"{FOLDER}.{tensors.group(node).name}", (node,))
        for reader in readers:
            reader.replace_input_with(node, rounded)
    traced.graph.lint()
    traced.recompile()


def _replace_adders(
    traced: fx.GraphModule,
    tensors: ByteTensors,
    fusions: Sequence[Fusion],
    grids: Mapping[str, FakeQuantize],
    filter_bits: int | None,
) -> None:
    """A layer that is called on inputs of several groups gets a form for each."""
    taken = {name for name, _ in traced.named_modules(remove_duplicate=False)}
    forms: dict[tuple[str, FakeQuantize], str] = {}
    for fusion in fusions:
        grid = grids[tensors.group(fusion.input).name]
        key = fusion.name, grid
        if key not in forms:
            first = fusion.name not in forms.values()
            forms[key] = fusion.name if first else free_name(fusion.name, taken)
            form = fake_quantized(fusion.layer, grid, filter_bits, rounds_input=False)
            traced.add_submodule(forms[key], form)
            taken.add(forms[key])
        fusion.call.target = forms[key]
