"""What `import adderize` costs and offers, in every order of imports."""

from __future__ import annotations

import copy
import functools
import importlib
import inspect
import itertools
import os
import pickle
import pydoc
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from adderize import adderize
from tests import fresh

ROOT = Path(__file__).resolve().parents[1]

HEAVY = ("fvcore", "lightning", "timm", "torchvision", "triton", "matplotlib")


def _modules_after(statement: str, run: Callable[[str], Any]) -> set[str]:
    result = run(f"import sys; {statement}; print(*sys.modules)")
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


def _without_torch(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)


@pytest.mark.parametrize("statement", ["import adderize", "import adderize.cli"])
def test_light_imports(statement: str) -> None:
    assert not _modules_after(statement, _without_torch).intersection(HEAVY)


@pytest.mark.parametrize(
    "statement",
    [
        "from adderize import AdderConv2d, scale_adder_gradients_",
        "from adderize import adderize, plan, restore",
    ],
)
def test_light_imports_with_the_ops(statement: str) -> None:
    # Torch's FLOP counter, which knows the ops, imports triton where it is installed.
    after = _modules_after(statement, fresh.run) - {"triton"}
    assert not after.intersection(HEAVY) and "adderize.ops.triton" not in after


def test_every_public_name_resolves() -> None:
    for name in adderize.__all__:
        assert getattr(adderize, name) is not None
    assert set(adderize.__all__) <= set(dir(adderize))


def test_unknown_names_raise() -> None:
    with pytest.raises(AttributeError, match="adderise"):
        adderize.adderise  # noqa: B018


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_no_file_of_the_project_is_ignored() -> None:
    """Wheels, ruff and `git add` leave out in silence what .gitignore matches."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listing = ["git", "ls-files", "--cached", "--ignored", "--exclude-standard"]
    ignored = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert ignored == ""


IMPORTS = (
    "import adderize",
    "from adderize import adderize",
    "from adderize import plan",
    "import adderize.counting",
    "from adderize.surgery import restore",
)
USES = """
import inspect, torch.nn as nn
model = nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(3)))
assert adderize.plan(model).converted == ["1"]
assert "adder_conv2d" in dir(adderize.functional)
assert adderize(model) is model and type(model[1]) is adderize.AdderConv2d
assert adderize.adderize is adderize
assert "example_input" in inspect.signature(adderize).parameters
"""
# Of an interpreter that has imported what others wrote and takes long, and nothing of adderize.
EACH_IN_A_FORK = """
import fvcore.nn, gc, os, sys, torch.utils.flop_counter, traceback
gc.freeze()
assert not any(name.startswith("adderize") for name in sys.modules)
for program in {programs}:
    child = os.fork()
    if child == 0:
        try:
            exec(program, {{"__name__": "__main__"}})
        except BaseException:
            traceback.print_exc()
            print("in", program, file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_every_order_of_imports() -> None:
    orders = [*itertools.permutations(IMPORTS, 2), *((statement,) for statement in IMPORTS)]
    programs = ["\n".join(order) for order in orders]
    programs += [
        "from adderize import adderize\nfrom adderize import *",
        "import adderize, importlib; assert importlib.reload(adderize) is adderize",
    ]
    bound = re.compile(r"^(import adderize|from adderize import adderize$)", re.MULTILINE)
    programs = [f"{program}\n{USES}" for program in programs if bound.search(program)]
    assert len(programs) == 23
    result = fresh.run(EACH_IN_A_FORK.format(programs=programs))
    assert result.returncode == 0, result.stderr


def test_the_package_looks_like_its_function() -> None:
    function = importlib.import_module("adderize.surgery").adderize
    assert inspect.signature(adderize) == inspect.signature(function)
    assert callable(adderize)
    text = pydoc.plain(pydoc.render_doc(adderize))
    assert "adderize(model: 'nn.Module', *, include:" in text
    assert "shell-style patterns of qualified layer names" in text
    assert "Adder networks for PyTorch and Lightning" in text


def test_the_package_is_copied_and_pickled_as_a_function_is() -> None:
    convert = functools.partial(adderize, norm="ignore")
    assert pickle.loads(pickle.dumps(convert)).func is adderize
    assert copy.copy(adderize) is adderize
    assert copy.deepcopy({"call": convert})["call"].func is adderize


def _wrong_ways_round() -> dict[str, Callable[[Any], Any]]:
    from adderize.checkpoints import load_authors_checkpoint
    from adderize.counting import FlopCountAnalysis
    from adderize.inspection import inspect
    from adderize.quantize import prepare_qat, quantize, quantize_report

    return {
        "adderize": adderize,
        "FlopCountAnalysis": lambda wrong: FlopCountAnalysis(wrong, torch.zeros(1)),
        "binarize": adderize.binarize,
        "count": lambda wrong: adderize.count(wrong, (3, 8, 8)),
        "inspect": inspect,
        "load_authors_checkpoint": lambda wrong: load_authors_checkpoint(wrong, nn.ReLU()),
        "load_model": lambda wrong: adderize.load_model(wrong, nn.ReLU()),
        "plan": adderize.plan,
        "prepare_qat": lambda wrong: prepare_qat(wrong, nn.ReLU()),
        "quantize": lambda wrong: quantize(wrong, nn.ReLU()),
        "quantize_report": quantize_report,
        "recalibrate": lambda wrong: adderize.recalibrate(wrong, nn.ReLU()),
        "restore": adderize.restore,
        "save_model": lambda wrong: adderize.save_model(wrong, nn.ReLU()),
        "scale_adder_gradients_": lambda wrong: adderize.scale_adder_gradients_(wrong, nn.ReLU()),
    }


@pytest.mark.parametrize("wrong", ["folder", None, torch.zeros(2), nn.ReLU, [nn.ReLU()]], ids=str)
@pytest.mark.parametrize("name", _wrong_ways_round())
def test_what_is_no_model(name: str, wrong: object) -> None:
    found = "the class ReLU, which has to be called" if wrong is nn.ReLU else type(wrong).__name__
    with pytest.raises(adderize.AdderizeError, match=f"the model is .*{found}.*torch.nn.Module"):
        _wrong_ways_round()[name](wrong)
