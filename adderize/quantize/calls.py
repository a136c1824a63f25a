"""What the calls of a traced network compute."""

from __future__ import annotations

import itertools
import math
from collections.abc import Container

from torch import fx, nn
from torch.fx import Node
from torch.nn.modules.batchnorm import _BatchNorm

from adderize.dataflow.nodes import function_name
from adderize.dataflow.symbolic import is_query
from adderize.layers import Adder
from adderize.quantize.fake_layers import FAKE_ADDERS
from adderize.surgery.checks import replaced_method

NEAREST = ("nearest", "nearest-exact")
_PLAIN_NORMS = (_BatchNorm.forward, nn.SyncBatchNorm.forward)


def module_of(node: Node) -> nn.Module | None:
    """The module that a node calls."""
    owner = node.graph.owning_module
    return owner.get_submodule(str(node.target)) if owner and node.op == "call_module" else None


def operation(node: Node) -> str:
    """What a node does: a module's class, or the name of a function or method."""
    module = module_of(node)
    if module is not None:
        return type(module).__name__
    return function_name(node.target) if node.op in ("call_function", "call_method") else node.op


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
    if type(layer) not in (*FAKE_ADDERS, *FAKE_ADDERS.values()):
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


def is_plain(module: nn.Module) -> bool:
    """Whether a call of a module does what its class does: no hooks, no methods of its own."""
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
    module = module_of(node)
    if module is not None:
        if not is_plain(module):
            return None
        if type(module) is nn.ReLU:
            return 0.0, math.inf
        if type(module) in (nn.ReLU6, nn.Hardtanh):
            return float(module.min_val), float(module.max_val)  # type: ignore[arg-type]
        return None
    name = operation(node)
    if name == "relu":
        return 0.0, math.inf
    if name == "relu6":
        return 0.0, 6.0
    names = ("min_val", "max_val") if name == "hardtanh" else ("min", "max")
    if name not in ("hardtanh", "clamp", "clip", "clamp_min", "clamp_max"):
        return None
    given = dict(zip(names[1:] if name == "clamp_max" else names, node.args[1:3], strict=False))
    given.update(node.kwargs)
    defaults = (-1.0, 1.0) if name == "hardtanh" else (-math.inf, math.inf)
    bounds = [given.get(key) for key in names]
    low, high = (
        end if value is None else value for value, end in zip(bounds, defaults, strict=True)
    )
    if isinstance(low, (int, float)) and isinstance(high, (int, float)):
        return float(low), float(high)
    return None


def is_repetition(node: Node) -> bool:
    """Whether a node is an upsampling that repeats values: of the mode "nearest"."""
    module, name = module_of(node), operation(node)
    if module is not None:
        kinds = (nn.Upsample, nn.UpsamplingNearest2d)
        return type(module) in kinds and is_plain(module) and module.mode in NEAREST
    given = (*node.args[3:4], node.kwargs.get("mode", "nearest"))[0]
    return name == "interpolate" and given in NEAREST


def is_max_pool(node: Node) -> bool:
    """Whether a node is a max pooling over two dimensions that gives no indices."""
    module = module_of(node)
    if module is not None:
        return type(module) is nn.MaxPool2d and is_plain(module) and not module.return_indices
    return operation(node) == "max_pool2d" and not node.kwargs.get("return_indices")


def name_of(node: Node) -> str:
    """The name of the module that a node calls, else its own."""
    return str(node.target) if node.op == "call_module" else node.name


def free_name(name: str, taken: Container[str]) -> str:
    """The first of NAME_1, NAME_2, ... that is not taken."""
    numbered = (f"{name}_{number}" for number in itertools.count(1))
    return next(candidate for candidate in numbered if candidate not in taken)
