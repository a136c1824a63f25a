"""A float network as a graph of plain calls without changes in place."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.dropout import _DropoutNd

from adderize.dataflow.graphs import module_of
from adderize.quantize.fake_layers import FakeQuantize
from adderize.quantize.float_tracer import FloatTracer, Hooked
from adderize.quantize.folding import fold_into_convolutions, leave_out_identities
from adderize.quantize.functional_form import check_changes, make_functional
from adderize.quantize.norm_activations import split_norm_activations
from adderize.quantize.positional import put_operands_first

# What a model says about its inputs.
_STATEMENTS = {"default_cfg", "example_input_array", "image_size", "input_size", "pretrained_cfg"}


def float_graph(
    model: nn.Module,
    inputs: Tensor | None = None,
    hooked: Hooked | None = None,
    *,
    trains: bool = False,
) -> tuple[fx.GraphModule, Hooked]:
    """The model in evaluation mode as a graph, and the forward hooks of blocks in it.

    What does nothing in evaluation is left out, kept convolutions take their batch norms in, and
    changes in place become values of their own. The model's modules are used, not copied.

    Args:
        inputs: a batch to look for changes in place on that the graph does not show.
        hooked: see :class:`FloatTracer`.
        trains: keep the norms of convolutions, and dropout layers: :func:`settle` does the rest.

    Raises:
        Exception: whatever tracing the model raises.
    """
    tracer = FloatTracer(hooked or {})
    with split_norm_activations(model):
        graph = tracer.graph_of(model)
        with _attached(model, tracer.layers):
            traced = fx.GraphModule(model, graph)
    put_operands_first(traced.graph)
    leave_out_identities(traced, keep=_DropoutNd if trains else ())
    if inputs is not None:
        check_changes(traced, inputs)
    make_functional(traced)
    # A channels_last tensor has the same values in another order of memory.
    for node in traced.graph.find_nodes(op="call_method", target="view"):
        is_cast = any(isinstance(argument, torch.dtype) for argument in node.args)
        node.target = "view" if is_cast else "reshape"
    if not trains:
        fold_into_convolutions(traced)
    traced.graph.lint()
    traced.recompile()
    for name in _STATEMENTS & vars(model).keys() | _STATEMENTS & vars(type(model)).keys():
        setattr(traced, name, getattr(model, name))
    return traced, tracer.hooked


def settle(traced: fx.GraphModule) -> None:
    """Give a graph that was made to train the form of one that was not, in place.

    What was rounded is noted in ``meta["qparams"]`` of its node.
    """
    traced.eval()
    for node in traced.graph.nodes:
        if isinstance(grid := module_of(node), FakeQuantize):
            node.args[0].meta["qparams"] = grid.qparams
    leave_out_identities(traced)
    fold_into_convolutions(traced)
    traced.delete_all_unused_submodules()
    traced.graph.lint()
    traced.recompile()


@contextlib.contextmanager
def _attached(model: nn.Module, layers: Mapping[str, nn.Module]) -> Iterator[None]:
    """Further layers of a model, by the names that they are called by."""
    places = {name: model.get_submodule(name.rpartition(".")[0]) for name in layers}
    for name, layer in layers.items():
        places[name].add_module(name.rpartition(".")[2], layer)
    try:
        yield
    finally:
        for name, place in places.items():
            del place._modules[name.rpartition(".")[2]]
