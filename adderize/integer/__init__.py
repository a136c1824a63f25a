"""Networks without a multiplication: every scale a sum of a few shifts."""

from adderize.integer.layer_shifts import LayerShifts, ShiftReport
from adderize.integer.multiplication_free import multiplication_free, shift_report

__all__ = ["LayerShifts", "ShiftReport", "multiplication_free", "shift_report"]
