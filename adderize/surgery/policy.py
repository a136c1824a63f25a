"""Which layers are converted, and why the others are kept."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.nn.modules.conv import _ConvNd

from adderize.dataflow import Flow
from adderize.layers import AdderLinear
from adderize.surgery.checks import check_filters, check_layer, is_quantized, replaced_method
from adderize.surgery.decisions import Reason
from adderize.surgery.engine import Target
from adderize.surgery.options import Options
from adderize.surgery.roles import Roles


def is_candidate(module: nn.Module) -> bool:
    """Whether a module is a row of the plan: any convolution or linear layer."""
    return isinstance(module, (_ConvNd, nn.Linear, AdderLinear)) or is_quantized(module)


def keep_reason(
    layer: nn.Module,
    names: Sequence[str],
    options: Options,
    roles: Roles,
    flow: Flow | None,
    target: Target,
) -> Reason | None:
    """Why a layer is kept; None for one to convert.

    Raises:
        AdderizeError: a layer that the options select cannot be converted as it is.
    """
    if isinstance(layer, target.classes):
        return target.is_already
    if not options.matches(names):
        return Reason.PATTERN
    if _is_linear(layer) and not options.linear:
        return Reason.LINEAR
    if replaced_method(layer):
        return Reason.OWN_FORWARD
    if roles.traced and flow is None:
        return Reason.REACHES_NO_OUTPUT if layer in roles.called else Reason.NEVER_CALLED
    if layer in roles.inside_fast_path:
        return Reason.FAST_PATH
    if not options.stem and layer in roles.stem:
        return Reason.STEM
    if not options.head and layer in roles.head:
        return Reason.HEAD
    if not options.depthwise and _is_depthwise(layer):
        return Reason.DEPTHWISE
    if not options.gates and layer in roles.gates:
        return Reason.GATE
    check_layer(names[0], layer)
    if target.kind_of(layer) is None:
        plain = isinstance(layer, (nn.Conv2d, nn.Linear))
        return Reason.SUBCLASS if plain else Reason.NO_SUCH_FORM
    check_filters(names[0], layer)
    return None


def _is_linear(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) or "Linear" in type(layer).__name__


def _is_depthwise(layer: nn.Module) -> bool:
    return isinstance(layer, _ConvNd) and layer.groups == layer.in_channels > 1
