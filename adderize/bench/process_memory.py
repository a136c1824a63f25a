"""What a process takes of the machine's memory."""

from __future__ import annotations

import resource
import sys
from pathlib import Path


def peak_of_process() -> int:
    """Bytes of memory that this process held at most.

    `ru_maxrss` alone would also count what the process that started this one held.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
