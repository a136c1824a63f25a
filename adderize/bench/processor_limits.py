"""What a processor's arithmetic allows: the kernels' inner loops on operands in registers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from adderize.bench.timing import side_by_side
from adderize.errors import AdderizeError
from adderize.ops import native
from adderize.ops.choice import choose
from adderize.ops.native.register_loops import LOOPS, register_loop

# The loop that each pass of a layer is made of.
LOOP_OF_PASS = {
    "forward": "maxima",
    "input gradient": "clip",
    "filter gradient": "multiply",
    "sign filter gradient": "sign",
    "8 bits": "bytes",
}
# A call takes about a millisecond: on a busy machine some run undisturbed.
_ROUNDS = 2**18


def missing() -> str | None:
    """Why the limits cannot be measured, if so."""
    choice = choose("cpu")
    if choice.name == "native":
        return None
    return f"they are those of the native backend; {choice.reason}"


def measure(rounds: int = 100, seconds: float = 0.002) -> dict[str, float]:
    """Pairs a second of each loop, on the instruction set and the threads in use.

    By default it takes about a second.

    Args:
        rounds, seconds: as of `adderize.bench.timing.side_by_side`.
    """
    return _rates(side_by_side(_loops(LOOPS), rounds=rounds, seconds=seconds))


def measure_every_instruction_set(**timing: Any) -> dict[str, dict[str, float]]:
    """The same for each one of this machine that the library holds, best first.

    Raises:
        AdderizeError: the limits are `missing`.
    """
    if reason := missing():
        raise AdderizeError(f"there are no limits to measure: {reason}")
    facts = native.info()
    rates = {}
    try:
        for cpu in facts["cpus"]:
            native.set_cpu(cpu)
            rates[cpu] = measure(**timing)
    finally:
        native.set_cpu(str(facts["cpu"]))
    return rates


def beside(
    calls: Mapping[str, Callable[[], object]], passes: Iterable[str], **timing: Any
) -> tuple[dict[str, float], dict[str, float]]:
    """Best seconds of each call, and the limit of each pass in pairs a second.

    They take turns, so that a busy moment of the machine meets the limits too. Where limits are
    `missing` there are none.
    """
    by_loop = {LOOP_OF_PASS[name]: name for name in passes} if missing() is None else {}
    loops = _loops(by_loop)
    best = side_by_side({**calls, **loops}, **timing)
    rates = _rates({loop: best.pop(loop) for loop in loops})
    return best, {name: rates[loop] for loop, name in by_loop.items()}


def limit_ms(pairs: int, limits: Mapping[str, float]) -> float:
    """What this many pairs take at the limits of all these passes, one after the other."""
    return 1e3 * sum(pairs / limit for limit in limits.values())


def _loops(names: Iterable[str]) -> dict[str, Callable[[], object]]:
    return {name: partial(register_loop, name, _ROUNDS) for name in names}


def _rates(seconds: Mapping[str, float]) -> dict[str, float]:
    return {name: register_loop(name, _ROUNDS)[0] / best for name, best in seconds.items()}
