"""Networks without a multiplication: every scale a sum of a few shifts, then integers alone."""

from adderize.integer.integer_network import IntegerNetwork, to_integer
from adderize.integer.layer_shifts import LayerShifts, ShiftReport
from adderize.integer.multiplication_free import multiplication_free, shift_report

__all__ = [
    "IntegerNetwork",
    "LayerShifts",
    "ShiftReport",
    "multiplication_free",
    "shift_report",
    "to_integer",
]
