"""What a conversion tells its caller beside its result."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator, Sequence

from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from adderize.errors import listed
from adderize.surgery.decisions import Decision, NormFix, Reason
from adderize.surgery.engine import ADDER, Target
from adderize.surgery.steps import Step

# From a warning to the caller of adderize() or binarize().
_LEVEL = 5


def warn_unchanged() -> None:
    warnings.warn("adderize: nothing new to convert, the model is unchanged", stacklevel=_LEVEL)


def warn_untraced(steps: Sequence[Step], target: Target) -> None:
    """Warn where nothing but the order of registration told what surrounds a converted layer."""
    rows = [step.row for step in steps]
    if not any(row.decision is Decision.CONVERT and row.method == "order" for row in rows):
        return
    ends = [f"{row.name} ({row.reason})" for row in rows if row.why in (Reason.STEM, Reason.HEAD)]
    norms = " and a norm taken for that of the layer right before it"
    warnings.warn(
        "adderize: the model could not be traced, so the order of registration decided: "
        f"{listed(ends) or 'no layer'} kept,{norms if target is ADDER else ''}. Compare with "
        "adderize.plan(model); pass example_input, or name the layers with include and exclude",
        stacklevel=_LEVEL,
    )


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
