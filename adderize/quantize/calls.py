"""What the calls of a traced network compute."""

from __future__ import annotations

import itertools
import math
from collections.abc import Container
from typing import Any

from torch import fx, nn
from torch.fx import Node
from torch.nn.modules.batchnorm import _BatchNorm

from adderize.dataflow.graphs import argument, is_query, module_of, operation
from adderize.layers import Adder
from adderize.quantize.fake_layers import FAKE_ADDERS, FakeQuantAdder
from adderize.surgery.checks import replaced_method

# They move values without computing any, so they do with integers what they do with floats.
MOVES = frozenset({
    "chunk", "contiguous", "flatten", "getitem", "permute", "pixel_shuffle", "pixel_unshuffle",
    "reshape", "split", "squeeze", "transpose", "unsqueeze",
    "ChannelShuffle", "Flatten", "PixelShuffle", "PixelUnshuffle",
})  # fmt: skip
JOINS = frozenset({"cat", "concat", "concatenate"})
PRODUCTS = frozenset({"mul", "multiply"})
QUOTIENTS = frozenset({"div", "divide", "true_divide", "truediv"})
NEAREST = ("nearest", "nearest-exact")
_PLAIN_NORMS = (_BatchNorm.forward, nn.SyncBatchNorm.forward)
_MAX_POOLS = ("max_pool2d", "max_pool2d_bytes")
# Of max pooling as a function, in its order, which is not that of the layer's.
_POOLING = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")


def adder_of(node: Node) -> Adder | None:
    """The adder that a node calls, if the layer can be put into integers."""
    module = module_of(node)
    return module if isinstance(module, Adder) and why_float(module) is None else None


def adders_of(model: nn.Module) -> dict[str, Adder]:
    """The adders that can be put into integers, by name."""
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, Adder) and why_float(layer) is None
    }


def why_float(layer: Adder) -> str | None:
    """Why an adder cannot be put into integers; None where it can."""
    if type(layer) not in FAKE_ADDERS and not isinstance(layer, FakeQuantAdder):
        return f"a class of its own, {type(layer).__name__}"
    if layer._forward_hooks or layer._forward_pre_hooks:
        return "it has forward hooks, which integers would pass by"
    if not is_plain(layer):
        return "it has a forward of its own, put on the instance"
    if layer.norm is not None and not is_foldable(layer.norm):
        return f"its norm, {type(layer.norm).__name__}, has no fixed statistics"
    return None


def is_foldable(norm: nn.Module | None) -> bool:
    """Whether a norm is one affine map whatever the input: a batch norm with statistics."""
    if not isinstance(norm, _BatchNorm) or type(norm).forward not in _PLAIN_NORMS:
        return False
    return norm.running_mean is not None and is_plain(norm)


def is_plain(module: nn.Module | None) -> bool:
    """Whether a call of a module does what its class does: no hooks, no methods of its own. True of
    no module, which stands for a function."""
    if module is None:
        return True
    hooked = module._forward_hooks or module._forward_pre_hooks
    return not hooked and replaced_method(module) is None


def carriers(graph: fx.Graph) -> set[Node]:
    """The nodes that hold values computed from the input; sizes and parameters do not."""
    found: set[Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or (
            not is_query(node) and not found.isdisjoint(node.all_input_nodes)
        ):
            found.add(node)
    return found


def read_layers(graph: fx.Graph) -> set[str]:
    """The names of the modules whose parameters or buffers the graph reads itself, which therefore
    stay what they are."""
    return {str(node.target).rpartition(".")[0] for node in graph.find_nodes(op="get_attr")}


def addend(node: Node, operand: Node) -> Node | None:
    """What a plain addition of two tensors adds to an operand; None for any other node."""
    if operation(node) != "add" or node.kwargs or len(node.args) != 2:
        return None
    others = [argument for argument in node.args if argument is not operand]
    return others[0] if len(others) == 1 and isinstance(others[0], Node) else None


def clamp_bounds(node: Node) -> tuple[float, float] | None:
    """(low, high) of a ReLU, ReLU6, hard tanh or clamp between numbers; None for all else."""
    module, name = module_of(node), operation(node)
    if not is_plain(module):
        return None
    ends: tuple[Any, Any]
    if name == "relu" or type(module) is nn.ReLU:
        ends = 0.0, None
    elif type(module) in (nn.ReLU6, nn.Hardtanh):
        ends = module.min_val, module.max_val  # type: ignore[union-attr]
    elif name == "relu6":
        ends = 0.0, 6.0
    elif name == "hardtanh":
        ends = argument(node, 1, "min_val", -1.0), argument(node, 2, "max_val", 1.0)
    elif name in ("clamp", "clip", "clamp_min"):
        ends = argument(node, 1, "min"), argument(node, 2, "max")
    elif name == "clamp_max":
        ends = None, argument(node, 1, "max")
    else:
        return None
    low, high = (
        default if end is None else end
        for end, default in zip(ends, (-math.inf, math.inf), strict=True)
    )
    numbers = isinstance(low, (int, float)) and isinstance(high, (int, float))
    return (float(low), float(high)) if numbers else None


def is_repetition(node: Node) -> bool:
    """Whether a node is an upsampling that repeats values: of the mode "nearest"."""
    module = module_of(node)
    if module is not None:
        kinds = (nn.Upsample, nn.UpsamplingNearest2d)
        return type(module) in kinds and is_plain(module) and module.mode in NEAREST
    return operation(node) == "interpolate" and argument(node, 3, "mode", "nearest") in NEAREST


def max_pool_of(node: Node) -> nn.MaxPool2d | None:
    """A max pooling over two dimensions, of floats or bytes, as a layer; None for all else, and
    where it gives indices."""
    pool = module_of(node)
    if pool is None and operation(node) in _MAX_POOLS:
        given = dict(zip(_POOLING, node.args[1:], strict=False))
        given |= {name: value for name, value in node.kwargs.items() if name in _POOLING}
        given["stride"] = given.get("stride") or given["kernel_size"]
        pool = nn.MaxPool2d(**given)  # type: ignore[arg-type]
    if type(pool) is not nn.MaxPool2d or not is_plain(pool):
        return None
    return None if pool.return_indices else pool


def name_of(node: Node) -> str:
    """The name of the module that a node calls, else its own."""
    return str(node.target) if node.op == "call_module" else node.name


def free_name(name: str, taken: Container[str]) -> str:
    """The first of NAME, NAME_1, NAME_2, ... that is not taken."""
    numbered = (f"{name}_{number}" for number in itertools.count(1))
    return next(found for found in itertools.chain([name], numbered) if found not in taken)
