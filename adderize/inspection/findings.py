"""What keeps an adder network from training or predicting, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from adderize.dataflow import Flow, Node, flow_of
from adderize.errors import listed
from adderize.inspection.measurement import Measured
from adderize.inspection.norm_states import NormStates
from adderize.inspection.rows import Finding, Layer
from adderize.layers import Adder
from adderize.surgery.norms import keeps_channels_apart, output_channels, trains_with
from adderize.tables import layer_text

ADVICE = {
    "not finite": "The training has diverged: go back to a checkpoint before it, and lower the "
    "learning rate",
    "missing norm": "An adder without a trainable batch or instance norm after it hardly learns: "
    'adderize(model, norm="insert") inserts one',
    "frozen norm": "The norms after adders must train with them: keep requires_grad and training "
    "mode, and use no FrozenBatchNorm",
    "untrained statistics": "The running statistics are those of a new norm, so ranges and outputs "
    "after it say little: train the network, or set them with recalibrate(model, batches)",
    "stale statistics": "The running statistics do not fit the images: are these normalised as in "
    "the training? If so, recalibrate(model, batches) before testing",
    "dead filters": "These channels are the same for every image, so no later layer learns "
    "from them: lower the learning rate or the weight decay of gammas, or make the layer narrower",
    "dead input": "The layer gets one value for every image: look for the fault before it",
    "saturated layer": "Nearly all filter values lie outside the range of the inputs and act as "
    "plus or minus the input: their sizes no longer matter. Lower eta or raise the weight decay "
    "of the filters",
    "channels alike": "Small filters give every channel nearly -sum |x|: start from larger ones "
    '(init="rescale" or "normal"), not from a convolution\'s filters as they are',
}

SATURATED = 0.95
_ALIKE = 0.99
_LARGEST_SHIFT = 0.5
_LARGEST_RATIO = 2.0
_DEAD = 1e-4
_RELUS = frozenset({"relu", "ReLU", "relu6", "ReLU6"})
_POOLS = frozenset({"max_pool2d", "MaxPool2d"})


def findings_of(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    rows: Sequence[Layer],
    norms: NormStates,
    measured: Mapping[nn.Module, Measured],
    flows: Sequence[Flow],
) -> list[Finding]:
    """In the order of ADVICE: the gravest first."""
    # Behind the statistics of a new norm every activation is out of range: no fault of its own.
    new = any(state.running and not state.updated for state in norms.by_norm.values())
    found = [
        *_not_finite(model),
        *_norm_findings(norms, new),
        *_dead_filters(layers, norms, {} if new else measured, flows),
    ]
    for row in rows:
        layer = layers[row.name]
        called = not flows or flow_of(flows, layer) is not None
        if called and isinstance(layer, Adder):
            found += _adder_findings(row, norms)
        found += [] if new else _input_findings(row)
    order = list(ADVICE)
    return sorted(found, key=lambda finding: order.index(finding.kind))


def _finding(kind: str, name: str, detail: str = "") -> Finding:
    return Finding(kind, layer_text(name), detail, ADVICE[kind])


def _not_finite(model: nn.Module) -> Iterator[Finding]:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        broken = int((~tensor.isfinite()).sum())
        if broken:
            yield _finding("not finite", name, f"{broken} of {tensor.numel()} values")


def _norm_findings(norms: NormStates, new: bool) -> Iterator[Finding]:
    modules = {state: norm for norm, state in norms.by_norm.items()}
    frozen = {
        state for layer, state in norms.after.items() if not trains_with(modules[state], layer)
    }
    for state in norms.by_norm.values():
        if state in frozen:
            yield _finding("frozen norm", state.name)
        if state.running and not state.updated:
            yield _finding("untrained statistics", state.name)
        elif not new and state.mean_shift is not None and state.variance_ratio is not None:
            shift, ratio = state.mean_shift, state.variance_ratio
            if not (shift <= _LARGEST_SHIFT and 1 / _LARGEST_RATIO <= ratio <= _LARGEST_RATIO):
                detail = f"means {shift:.2g} deviations off, variances {ratio:.2g} times"
                yield _finding("stale statistics", state.name, detail)


def _adder_findings(row: Layer, norms: NormStates) -> Iterator[Finding]:
    if row.norm is None:
        yield _finding("missing norm", row.name)
    elif not all(
        keeps_channels_apart(m) for m, state in norms.by_norm.items() if state is row.norm
    ):
        yield _finding("missing norm", row.name, f"{row.norm.kind} takes the channels together")
    if row.correlation is not None and row.correlation >= _ALIKE:
        yield _finding("channels alike", row.name, f"correlation {row.correlation:.4f}")


def _input_findings(row: Layer) -> Iterator[Finding]:
    if row.inputs is not None and row.inputs.min == row.inputs.max:
        yield _finding("dead input", row.name, f"always {row.inputs.min:g}")
    elif row.outside is not None and row.outside >= SATURATED:
        yield _finding("saturated layer", row.name, f"{row.outside:.1%} outside")


def _dead_filters(
    layers: Mapping[str, nn.Module],
    norms: NormStates,
    measured: Mapping[nn.Module, Measured],
    flows: Sequence[Flow],
) -> Iterator[Finding]:
    modules = {state: norm for norm, state in norms.by_norm.items()}
    for name, layer in layers.items():
        state = norms.after.get(layer)
        norm = None if state is None else modules[state]
        dead = _without_effect(layer, norm)
        # A single row, as a classifier has of one image, is constant without being dead.
        if layer in measured and measured[layer].count > 1:
            dead = dead | _constant(measured[layer])
        if norm is not None and norm in measured and _only_relu_after(layer, norm, flows):
            dead = dead | _below_zero(measured[norm], len(dead))
        if bool(dead.any()):
            channels = dead.nonzero().flatten().tolist()
            found = f"{len(channels)} of {len(dead)} channels: {listed([*map(str, channels)])}"
            yield _finding("dead filters", name, found)


def _without_effect(layer: nn.Module, norm: nn.Module | None) -> Tensor:
    """Channels that the norm multiplies by next to nothing."""
    gamma = getattr(norm, "weight", None)
    channels = output_channels(layer)
    if not isinstance(gamma, Tensor) or gamma.shape != (channels,):
        return torch.zeros(channels, dtype=torch.bool, device=next(layer.parameters()).device)
    size = gamma.detach().abs()
    return size <= _DEAD * size.max()


def _constant(measured: Measured) -> Tensor:
    deviations = measured.variances.sqrt()
    return deviations <= _DEAD * deviations.max()


def _below_zero(measured: Measured, channels: int) -> Tensor:
    below = measured.highest <= 0
    # A norm of concatenated channels does not tell whose they are.
    return below if len(below) == channels else below.new_zeros(channels)


def _only_relu_after(layer: nn.Module, norm: nn.Module, flows: Sequence[Flow]) -> bool:
    """Whether all of the norm's output goes through a ReLU next, max pooling aside."""
    module = layer if getattr(layer, "norm", None) is norm else norm
    flow = flow_of(flows, module)
    if flow is None:
        return False
    waiting: list[Node] = list(flow.calls(module))
    while waiting:
        for user in waiting.pop().users:
            if user.name in _POOLS:
                waiting.append(user)
            elif user.name not in _RELUS:
                return False
    return True
