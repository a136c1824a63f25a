"""The ops as torch's FLOP counter sees them, whatever is imported first."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from adderize import AdderConv2d, BinaryConv2d
from tests import fresh


def flops(module: torch.nn.Module, input: torch.Tensor) -> dict[str, int]:
    with FlopCounterMode(display=False) as counter:
        module(input).sum().backward()
    counts = counter.get_flop_counts()["Global"]
    return {str(op).rpartition(".")[2]: count for op, count in counts.items()}


@pytest.mark.parametrize("gradient", ["full", "sign", "sign_input"])
def test_torch_counts_the_ops(gradient: str) -> None:
    layer = AdderConv2d(6, 8, 3, padding=1, groups=2, bias=False, gradient=gradient)
    input = torch.randn(2, 6, 9, 9, requires_grad=True)
    pairs, outputs, filters = 2 * 8 * 81 * 27, 2 * 8 * 81, 8 * 27
    expected = {
        "full": (3 * pairs, 2 * pairs + outputs + 2 * filters),
        "sign": (pairs, pairs),
        "sign_input": (pairs, 2 * pairs + outputs + 2 * filters),
    }[gradient]
    assert flops(layer, input) == {
        "adder_conv2d": 2 * pairs,
        "adder_conv2d_input_gradient": expected[0],
        "adder_conv2d_weight_gradient": expected[1],
    }


def test_torch_counts_binary_layers() -> None:
    layer, input = BinaryConv2d(4, 6, 3, bias=False), torch.randn(1, 4, 5, 5, requires_grad=True)
    pairs, outputs = 6 * 9 * 36, 6 * 9
    # An XNOR is no FLOP; its bit count is an addition, its scale a multiplication.
    assert flops(layer, input) == {
        "binary_conv2d": pairs + outputs,
        "binary_conv2d_input_gradient": 2 * pairs,
        "binary_conv2d_weight_gradient": 2 * pairs,
    }


def test_every_op_that_computes_has_a_formula() -> None:
    names = torch._C._dispatch_get_all_op_names()
    ops = {name.removeprefix("adderize::") for name in names if name.startswith("adderize::")}
    counted = {name for name in ops if getattr(torch.ops.adderize, name) in flop_registry}
    # Torch counts no pooling and no change of the data type either.
    assert ops - counted == {"max_pool2d_u8", "to_bytes"}


LAYER = "from adderize import AdderConv2d; layer = AdderConv2d(1, 1, 2, bias=False)"
COUNTER = "import torch.utils.flop_counter as f"


@pytest.mark.parametrize(
    "imports",
    [
        f"{COUNTER}; {LAYER}",
        f"{LAYER}; {COUNTER}",
        f"import adderize.ops; {COUNTER}; {LAYER}",
        f"import adderize.counting; {LAYER}; {COUNTER}",
        f"{COUNTER}; import adderize; {LAYER}",
        f"from adderize import adderize; {COUNTER}; import torch; layer = adderize("
        "torch.nn.Conv2d(1, 1, 2, bias=False), stem=True, head=True, norm='ignore')",
    ],
)
def test_no_order_of_imports_gives_a_wrong_number(imports: str) -> None:
    code = (
        "import sys; at_the_start = set(map(type, sys.meta_path))  # an editable install has one\n"
        f"import torch; {imports}\n"
        "with f.FlopCounterMode(display=False) as counter:\n"
        "    layer(torch.ones(1, 1, 3, 3))\n"
        "assert counter.get_total_flops() == 2 * 16, counter.get_total_flops()\n"
        "new = set(map(type, sys.meta_path)) - at_the_start\n"
        "print([finder for finder in new if 'adderize' in finder.__module__])"
    )
    result = fresh.run(code)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "[]\n"


def test_importing_adderize_leaves_the_counters_and_triton_alone() -> None:
    code = (
        "import sys, adderize; "
        "assert not {'torch', 'triton', 'torch.utils.flop_counter', 'fvcore'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_the_ops_leaves_fvcore_alone() -> None:
    fresh.run("import sys, adderize.ops; assert 'fvcore' not in sys.modules").check_returncode()
