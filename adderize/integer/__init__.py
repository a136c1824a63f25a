"""Networks without a multiplication: every scale a sum of a few shifts, then integers only."""

from adderize.integer.conversion import to_integer
from adderize.integer.integer_network import IntegerNetwork
from adderize.integer.integer_report import IntegerReport, integer_report
from adderize.integer.layer_shifts import LayerShifts, ShiftReport
from adderize.integer.multiplication_free import multiplication_free, shift_report
from adderize.integer.program import KINDS, Instruction, Program, Slot

__all__ = [
    "KINDS",
    "Instruction",
    "IntegerNetwork",
    "IntegerReport",
    "LayerShifts",
    "Program",
    "ShiftReport",
    "Slot",
    "integer_report",
    "multiplication_free",
    "shift_report",
    "to_integer",
]
