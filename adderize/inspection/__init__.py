"""Why an adder network trains, or does not: filters, inputs, outputs and norms, layer by layer."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from adderize.arguments import check_module
from adderize.dataflow import trace
from adderize.errors import AdderizeError, failing
from adderize.inspection.findings import findings_of
from adderize.inspection.measurement import LAYERS, Measured, measure
from adderize.inspection.norm_states import find_norm_states, staleness
from adderize.inspection.result import Inspection
from adderize.inspection.rows import Finding, Layer, NormState, Range
from adderize.integer import IntegerNetwork
from adderize.integer.multiplication_free import shifts_of_network
from adderize.quantize.record import quantization_of
from adderize.tables import shape_text

__all__ = ["Finding", "Inspection", "Layer", "NormState", "Range", "inspect"]


def inspect(model: nn.Module, images: Tensor | None = None, *, name: str = "") -> Inspection:
    """Look at every layer with filters and at every norm of a model.

    Args:
        model: any module on any one device; it is left as it was.
        images: (N, ...) inputs, normalised as in the training, a hundred or more of all classes;
            None for what can be seen without: filters and the state of the norms.
        name: what to call the model in the report.

    Returns:
        the layers in registration order, and findings: what is likely to keep the network from
        training or from predicting, and what to do about it. ``print`` it, or ``to_dict``,
        ``to_json``, ``to_csv``, ``to_markdown``.

    Raises:
        AdderizeError: a model without such layers, one that fails on the images, or images that
            are not finite.
    """
    check_module(model)
    if any(isinstance(m, IntegerNetwork) for m in model.modules()) or shifts_of_network(model):
        raise AdderizeError(
            "the network is one of shifts, which does not train: shift_report() and "
            "integer_report() of adderize.integer tell about its layers"
        )
    if quantization_of(model) is not None:
        raise AdderizeError(
            "the network is quantized: inspect the float network that it was made from; "
            "quantize_report() of adderize.quantize tells about the layers in integers"
        )
    if images is not None and not isinstance(images, Tensor):
        raise AdderizeError(f"images is a {type(images).__name__}; expected one tensor (N, ...)")
    layers = {n: m for n, m in model.named_modules() if isinstance(m, LAYERS)}
    if not layers:
        raise AdderizeError(f"{type(model).__name__} holds no convolution, linear or adder layer")
    if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
        raise AdderizeError("the model is on the meta device and has no values to inspect")
    if images is not None and not bool(images.isfinite().all()):
        raise AdderizeError("the images hold NaN or infinity; expected finite values")
    flows = trace(model)
    measured: dict[nn.Module, Measured] = {}
    stale: dict[_NormBase, tuple[float, float]] = {}
    if images is not None:
        with failing(f"the model fails on images {shape_text(images.shape)}"):
            measured = measure(model, images)
            stale = staleness(model, images, measured)
    norms = find_norm_states(model, layers, flows, stale)
    rows = tuple(
        Layer.of(layer_name, layer, measured.get(layer), norms.after.get(layer))
        for layer_name, layer in layers.items()
    )
    found = findings_of(model, layers, rows, norms, measured, flows)
    count = 0 if images is None else len(images)
    return Inspection(name or type(model).__name__, count, rows, tuple(found))
