"""What a conversion tells its caller beside its result."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator, Sequence

from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from adderize.errors import listed
from adderize.surgery.decisions import NormFix, Reason
from adderize.surgery.engine import ADDER, Target
from adderize.surgery.fusion_guard import fusible_blocks
from adderize.surgery.steps import Step, Steps
from adderize.surgery.zero_scales import find_zero_scales


def remarks(model: nn.Module, steps: Steps) -> list[str]:
    """What there is to know before a conversion, as sentences."""
    zero_scales = find_zero_scales(model, steps.flows, steps.names)
    of_zeros = [str(zero) for zero in zero_scales if not zero.is_gamma]
    return [*of_zeros, *_of_frozen(steps), *_of_fusion(model, steps)]


def _of_frozen(steps: Steps) -> Iterator[str]:
    frozen = [step.row.name for step in steps.chosen if not step.layer.weight.requires_grad]
    if frozen:
        yield (
            f"the filters of {listed(frozen)} are frozen and would never learn: unfreeze them "
            "(requires_grad_(True)), or leave the layers out with exclude=, unless something else "
            "updates them, as in a momentum encoder"
        )


def _of_fusion(model: nn.Module, steps: Steps) -> Iterator[str]:
    methods: dict[str, list[str]] = {}
    for name, block, method in fusible_blocks(model, steps.names.values()):
        methods.setdefault(f"{type(block).__name__}.{method}()", []).append(name or "the model")
    for method, names in methods.items():
        blocks = listed(names)
        yield f"{method} merges layers as if they were convolutions, and will raise: {blocks}"


# From a warning to the caller of adderize() or binarize().
_LEVEL = 5


def warn_unchanged() -> None:
    warnings.warn("adderize: nothing new to convert, the model is unchanged", stacklevel=_LEVEL)


def warn_untraced(steps: Steps, target: Target) -> None:
    """Warn where nothing but the order of registration told what surrounds a converted layer."""
    if not any(step.row.method == "order" for step in steps.chosen):
        return
    rows = [step.row for step in steps.every]
    ends = [f"{row.name} ({row.reason})" for row in rows if row.why in (Reason.STEM, Reason.HEAD)]
    norms = " and a norm taken for that of the layer right before it"
    warnings.warn(
        "adderize: the model could not be traced, so the order of registration decided: "
        f"{listed(ends) or 'no layer'} kept,{norms if target is ADDER else ''}. Compare with "
        "adderize.plan(model); pass example_input, or name the layers with include and exclude",
        stacklevel=_LEVEL,
    )


def warn_frozen(steps: Steps) -> None:
    for remark in _of_frozen(steps):
        warnings.warn(f"adderize: {remark}", stacklevel=_LEVEL)


def warn_made_before(model: nn.Module, steps: Sequence[Step]) -> None:
    """Warn where inserted parameters are unknown to what was made for the model's others."""
    added = dict(_new_parameters(steps))
    if not added:
        return
    own = set(model.parameters())
    # Optimizers and wrappers are in no registry; whoever made one before the conversion would train
    # without the new norms, or with others in every process, and never know.
    objects = gc.get_objects()
    holders = (Optimizer, DistributedDataParallel)
    kinds = {kind for kind in set(map(type, objects)) if issubclass(kind, holders)}
    for candidate in objects:
        if type(candidate) not in kinds:
            continue
        if issubclass(type(candidate), Optimizer):
            # One whose constructor failed has no groups.
            groups = getattr(candidate, "param_groups", ())
            held = {p for group in groups for p in group["params"]}
            lacking = [name for name, parameter in added.items() if parameter not in held]
            advice = "make it anew, or add them with add_param_group"
        else:
            # Its module's parameters are those of now, its reducer's those of its making.
            held = set(candidate.parameters()) if "_modules" in vars(candidate) else set()
            lacking = [name for name, parameter in added.items() if parameter in held]
            advice = "wrap the model after the conversion"
        if lacking and not held.isdisjoint(own):
            warnings.warn(
                f"adderize: {type(candidate).__name__} was made before the conversion and lacks "
                f"{listed(lacking)}: {advice}",
                stacklevel=_LEVEL,
            )


def _new_parameters(steps: Sequence[Step]) -> Iterator[tuple[str, nn.Parameter]]:
    for step in steps:
        if step.row.norm_fix is NormFix.INSERTED:
            for name, parameter in step.layer.norm.named_parameters():  # type: ignore[union-attr]
                if parameter.requires_grad:
                    yield f"{step.row.name}.norm.{name}".lstrip("."), parameter
