"""The memory formats that a float network's tensors had.

Layers on bytes work in channels_last, and so do the convolutions between them. What leaves them for
a hook, or leaves the network, or is asked for its strides, has the format of the input again.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn
from torch.fx import Node
from torch.overrides import handle_torch_function, has_torch_function

from adderize.dataflow.graphs import module_of, operation
from adderize.ops.bytes import max_pool2d_bytes
from adderize.ops.formats import is_channels_last
from adderize.quantize.byte_layers import QuantAdderConv2d
from adderize.quantize.calls import is_plain
from adderize.quantize.float_tracer import ForwardHook

_READERS = {"as_strided", "is_contiguous", "output", "stride", "view", ForwardHook.__name__}
# Their results have no channels in the second of four dimensions.
_FLAT = {"Flatten", "Linear", "QuantAdderLinear", "flatten", "linear", "reshape"}


def keep_formats(traced: fx.GraphModule) -> None:
    """Let readers of memory formats find those of the float network, in place."""
    weights = (m.weight for m in traced.modules() if isinstance(m, nn.Conv2d))
    if any(map(is_channels_last, weights)):
        return  # its convolutions give channels_last whatever they get
    image = next(iter(traced.graph.find_nodes(op="placeholder")))
    formatted: set[Node] = set()
    for node in traced.graph.nodes:
        name, sources = operation(node), formatted.intersection(node.all_input_nodes)
        module = module_of(node)
        is_shown = not is_plain(module)
        if sources and (name in _READERS or is_shown):
            with traced.graph.inserting_before(node):
                for source in sorted(sources):
                    call = traced.graph.call_function(in_format_of, (source, image))
                    node.replace_input_with(source, call)
            continue
        makes = isinstance(module, (nn.Conv2d, QuantAdderConv2d)) and not is_shown
        if makes or node.target is max_pool2d_bytes or (sources and name not in _FLAT):
            formatted.add(node)
    traced.recompile()


def use_channels_last(model: nn.Module) -> None:
    """Convolutions that nobody looks at work in channels_last, which bytes come in."""
    for module in model.modules():
        if not isinstance(module, nn.Conv2d) or not is_plain(module):
            continue
        if not isinstance(model, fx.GraphModule) and not is_channels_last(module.weight):
            module.register_forward_hook(_in_format_of_input)
        module.to(memory_format=torch.channels_last)


def _in_format_of_input(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return in_format_of(output, inputs[0])


def in_format_of(value: Tensor, image: Tensor) -> Tensor:
    """A tensor of four dimensions in C order where the image is; other values as they are."""
    if has_torch_function((value, image)):
        traced: Tensor = handle_torch_function(in_format_of, (value, image), value, image)
        return traced
    if not isinstance(value, Tensor) or value.dim() != 4 or is_channels_last(image):
        return value
    return value.contiguous()
