"""A converted network in which every scale is a sum of a few signed powers of two."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.fx import Node

from adderize.dataflow.graphs import module_of, operation, value_of
from adderize.dataflow.symbolic import unseen_change
from adderize.errors import AdderizeError, listed, named, one_line
from adderize.integer.layer_shifts import LayerShifts, ShiftReport
from adderize.integer.refusal import RefusedError
from adderize.integer.shift_rules import Terms, function_form, module_form
from adderize.layers.settings import settings_of
from adderize.layers.shift_add import Shifts
from adderize.quantize.byte_layers import QuantAdder
from adderize.quantize.calls import carriers, name_of
from adderize.quantize.float_graph import float_graph
from adderize.quantize.start import check_float32
from adderize.surgery.checks import check_model
from adderize.surgery.entries import entries_or_none
from adderize.surgery.records import attach, attached

_KEY = "adderize_shifts"


@dataclass(frozen=True)
class ShiftRecord:
    """What a network without multiplications carries along.

    Attributes:
        report: for people.
        entries: the manifest's entries of the float network's adders; None where it had some that
            no manifest describes.
        settings: of the float network's layers.
    """

    report: ShiftReport
    entries: dict[str, dict[str, Any]] | None
    settings: dict[str, dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, without the entries of the adders."""
        return {"report": self.report.to_dict(), "settings": self.settings}

    @classmethod
    def from_dict(cls, content: Any, entries: dict[str, dict[str, Any]]) -> ShiftRecord:
        """Raises AdderizeError where the content is damaged."""
        try:
            settings = {name: dict(values) for name, values in content["settings"].items()}
            return cls(ShiftReport.from_dict(content["report"]), entries, settings)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise AdderizeError(f"the record of the shifts is damaged: {error!r}") from error


@torch.no_grad()
def multiplication_free(
    model: nn.Module, *, norm_terms: int = 3, filter_terms: int = 2, strict: bool = True
) -> fx.GraphModule:
    """A trained network in which nothing is multiplied: every scale becomes shifts and additions.

    A scale is rounded to a sum of T signed powers of two, each the nearest to what is left:
    relative errors of at most 33 % (T = 1), 9 % (2), 2.3 % (3), 0.6 % (4). Norms become
    :class:`adderize.layers.ShiftAddNorm2d`, kept convolutions and linear layers
    :class:`~adderize.layers.ShiftAddConv2d` and :class:`~adderize.layers.ShiftAddLinear`; a norm
    behind a kept convolution goes into its weights before they are rounded. Leaky ReLUs, means and
    products with constants become shifts, dropout goes. The network computes in float32 what the
    shifts would.

    Args:
        model: a float32 network in evaluation mode that torch.fx can trace; it is left as it is.
        norm_terms: T of norms, slopes, means and constant factors.
        filter_terms: T of the weights of kept convolutions and linear layers.
        strict: raise where an operation has no such form; False leaves it and lists it in the
            report.

    Returns:
        a new network in evaluation mode. :func:`shift_report` tells what became of each layer.

    Raises:
        AdderizeError: a network in training mode, of another dtype, quantized, untraceable, with
            scales that are not finite, or, with `strict`, with operations that multiply computed
            values or divide (attention, group and layer norms, gates, GELU), which are named; one
            that changes tensors in place which it goes on reading by other names.
    """
    _check(model)
    try:
        unseen = unseen_change(model)
        network, _ = float_graph(copy.deepcopy(model))
    except Exception as error:
        raise AdderizeError(
            "torch.fx cannot trace the model, so its products cannot be found: "
            f"{one_line(error)[:200]}; rewrite its forward without branches on values"
        ) from error
    if unseen is not None:
        raise AdderizeError(
            f"{unseen}, by another name or through a view, which is not followed: let the model "
            "compute a new tensor instead"
        )
    rewriting = _Rewriting(network, Terms(norm_terms, filter_terms))
    if rewriting.refused and strict:
        raise AdderizeError(
            "the network has products without a form of shifts: "
            f"{listed(rewriting.refused, '; ')}; strict=False leaves them"
        )
    report = ShiftReport(
        norm_terms, filter_terms, tuple(rewriting.layers), tuple(rewriting.refused)
    )
    network.delete_all_unused_submodules()
    network.graph.lint()
    network.recompile()
    network.eval().requires_grad_(False)
    record = ShiftRecord(report, entries_or_none(model), settings_of(model))
    attach(network, _KEY, record)
    return network


def multiplication_free_like(model: nn.Module, record: ShiftRecord) -> fx.GraphModule:
    """A float network in the form that a record describes; exponents and signs are to load yet."""
    report = record.report
    network = multiplication_free(
        model.eval(),
        norm_terms=report.norm_terms,
        filter_terms=report.filter_terms,
        strict=False,
    )
    attach(network, _KEY, record)
    return network


def shift_report(model: nn.Module) -> ShiftReport:
    """What became of each scale of a network without multiplications; prints as a table.

    Raises:
        AdderizeError: the model does not come from :func:`multiplication_free`.
    """
    record = shifts_of_network(model)
    if record is None:
        raise AdderizeError("the model has no shifts: pass what multiplication_free() returned")
    return record.report


def shifts_of_network(model: nn.Module) -> ShiftRecord | None:
    """The record of a network without multiplications; None for any other."""
    return attached(model, _KEY, ShiftRecord)


def _check(model: nn.Module) -> None:
    check_model(model)
    training = [name for name, module in model.named_modules() if module.training]
    if training:
        raise AdderizeError(
            f"{training[0] or 'the model'} is in training mode, where norms use each batch's "
            "statistics: call model.eval() first"
        )
    if any(isinstance(layer, QuantAdder) for layer in model.modules()):
        raise AdderizeError("the model is quantized: pass the float model")
    record = shifts_of_network(model)
    if record is not None:
        left = listed(record.report.remarks, "; ")
        what = (
            f"is multiplication_free() but for {left}"
            if left
            else "has no multiplications any more"
        )
        raise AdderizeError(f"the model {what}: pass the float model that it was made of")
    check_float32(model)


class _Rewriting:
    """One rewriting of a graph, in place.

    Attributes:
        layers: the rows of the report.
        refused: the operations that stay, and why.
    """

    def __init__(self, network: fx.GraphModule, terms: Terms) -> None:
        self.network, self._terms = network, terms
        self.layers: list[LayerShifts] = []
        self.refused: list[str] = []
        self._values = carriers(network.graph)
        self._constants = _constants(network)
        self._forms: dict[nn.Module, nn.Module] = {}
        for node in list(network.graph.nodes):
            if node in self._values and node.op.startswith("call"):
                try:
                    with named(name_of(node)):
                        self._rewrite(node)
                except RefusedError as error:
                    self.refused.append(f"{name_of(node)}: {error}")

    def _rewrite(self, node: Node) -> None:
        module = module_of(node)
        if module is not None:
            if module not in self._forms:
                form = module_form(module, self._terms)
                self._forms[module] = self._forms[form] = form
                self.network.set_submodule(str(node.target), form)
                self._note(str(node.target), form)
            elif self._forms[module] is not module:
                self.network.set_submodule(str(node.target), self._forms[module])
            return
        form = function_form(operation(node), node, self._constants, self._terms)
        if form is None:
            return
        name = self._new_name(node.name)
        self.network.add_submodule(name, form.eval())
        (value,) = (source for source in node.all_input_nodes if source in self._values)
        with self.network.graph.inserting_before(node):
            call = self.network.graph.call_module(name, (value,))
        self._values.add(call)
        node.replace_all_uses_with(call)
        self.network.graph.erase_node(node)
        self._note(name, form)

    def _note(self, name: str, form: nn.Module) -> None:
        for part, module in form.named_modules(prefix=name):
            if isinstance(module, Shifts):
                row = (module.weight.numel(), module.terms, module.worst_error)
            elif isinstance(getattr(module, "terms", None), int):
                row = (0, module.terms, 0.0)
            else:
                continue
            self.layers.append(LayerShifts(part, type(module).__name__, *row))

    def _new_name(self, name: str) -> str:
        while hasattr(self.network, name):
            name += "_"
        return name


def _constants(network: fx.GraphModule) -> dict[Node, Any]:
    """The values of the nodes that parameters, buffers and numbers decide."""
    known: dict[Node, Any] = {}
    for node in network.graph.nodes:
        sources = node.all_input_nodes
        is_known = bool(sources) and known.keys() >= set(sources)
        if node.op == "get_attr" or (is_known and node.op != "output"):
            known[node] = value_of(node, known)
    return known
