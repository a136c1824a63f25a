"""The processes of a distributed test: forks of one that has imported what such tests need."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from typing import Any

import torch.multiprocessing
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from lightning.pytorch.utilities import rank_zero_only

# Its import takes longer than what a test computes.
multiprocessing.get_context("forkserver").set_forkserver_preload([
    "recipes.cifar", "tests.recipes.runs", "tests.surgery.two_lit_ranks", "tests.training.two_ranks"
])  # fmt: skip


def run(function: Callable[..., Any], *arguments: Any, ranks: int = 2) -> None:
    """``function(rank, *arguments)`` in a process for each rank; an error of one is raised here."""
    torch.multiprocessing.start_processes(
        function, arguments, nprocs=ranks, start_method="forkserver"
    )


def train(recipe: Callable[[list[str]], Any], arguments: list[str]) -> None:
    """A recipe in two processes, as Lightning starts them for ``--devices 2``."""
    run(_train, recipe, arguments, find_free_network_port())


def _train(rank: int, recipe: Callable[[list[str]], Any], arguments: list[str], port: int) -> None:
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": "2",
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}  # fmt: skip
    rank_zero_only.rank = rank  # read from the environment at import, which was before
    recipe(arguments)
