"""Turning a model's convolutions into adders or binary convolutions, and back."""

from adderize.surgery.conversion import adderize, binarize, plan
from adderize.surgery.decisions import Decision, NormFix, Reason, Row
from adderize.surgery.plan_table import Plan
from adderize.surgery.restoration import restore

__all__ = [
    "Decision",
    "NormFix",
    "Plan",
    "Reason",
    "Row",
    "adderize",
    "binarize",
    "plan",
    "restore",
]
