"""An epoch of CIFAR-10's size through the recipe, in a process of its own."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from adderize.errors import AdderizeError

CIFAR_IMAGES = 50_000


class Epoch(NamedTuple):
    """A training of ``recipes.cifar`` on random images of CIFAR-10's size and classes.

    Attributes:
        name: for people.
        layers: "adder" or "cnn".
        images: how many.
        options: of the recipe, beside these.
    """

    name: str
    layers: str
    images: int
    options: Sequence[str]

    def of_few_steps(self) -> Epoch:
        """Compiles what the whole one runs."""
        few = "--epochs", "1", "--max-steps", "3"
        return self._replace(options=(*self.options, *few))


def measure_epoch(epoch: Epoch, limit: float) -> dict[str, Any]:
    """Seconds for 50,000 training images at the speed of the last epoch, without validation.

    Args:
        epoch: what is trained.
        limit: seconds until the process is stopped.

    Raises:
        AdderizeError: no recipes here, as outside of a checkout; a run that fails or is stopped.
    """
    if importlib.util.find_spec("recipes") is None:
        raise AdderizeError("there are no recipes here: run it in a checkout")
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "recipes.cifar", "--data", f"fake:{epoch.images}",
                   "--layers", epoch.layers, "--output", folder, *epoch.options]  # fmt: skip
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
        except subprocess.TimeoutExpired as error:
            raise AdderizeError(f"it was stopped after {limit:.0f} s") from error
        if done.returncode:
            last = (done.stderr.strip() or "no word").splitlines()[-1]
            raise AdderizeError(f"it failed with {done.returncode}: {last}")
        metrics = json.loads((Path(folder) / "metrics.json").read_text())
    speed = metrics["history"][-1]["images/s"]
    return {
        **epoch._asdict(),
        "seconds_per_epoch": CIFAR_IMAGES / speed,
        "images_per_second": speed,
        "peak_mb": metrics["peak_memory_mb"],
    }
