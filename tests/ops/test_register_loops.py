"""The loops that measure a device's limit, without one: their sums, and their machine code."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

from adderize.ops.triton.kernels import register_loops
from benchmarks.machine_code import compiling


@pytest.mark.parametrize("sm", [80, 90, 100])
@pytest.mark.parametrize("kernel", [register_loops.forward_pairs, register_loops.gradient_pairs])
def test_register_loops_hold_little_but_a_pairs_instructions(kernel: Any, sm: int) -> None:
    """64 pairs a thread and turn; on sm_100 two additions can be one FADD2."""
    options = {"num_warps": 4, "enable_fp_fusion": True}
    code = compiling._compile(kernel, {"BLOCK": 64 * 128}, options, sm, "fp32")
    counted = sum(
        number for opcode, number in code.opcodes.items() if opcode.startswith(("FADD", "FFMA"))
    )
    assert code.spills == 0
    # One more counts w on; the loop itself takes a few.
    assert counted <= 2 * 64 + 1 and code.per_pair <= counted + 8
    assert counted == 2 * 64 + 1 or sm == 100
