"""Numbers of operations, energies and latencies as text."""

from __future__ import annotations


def quantity(value: float) -> str:
    """Four significant digits with a prefix: 1.814G, 416.5K, 84."""
    for limit, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "K")):
        if abs(value) >= limit * 0.99995:
            return f"{value / limit:.4g}{prefix}"
    return f"{value:.4g}"


def joule(value: float) -> str:
    for limit, prefix in ((1.0, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n")):
        if value >= limit * 0.99995:
            return f"{value / limit:.4g} {prefix}J"
    return f"{value / 1e-12:.4g} pJ"


def cycles(value: float) -> str:
    return f"{quantity(value)} cycles"
