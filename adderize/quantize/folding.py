"""Calls that evaluation does without: identities, and the norms of kept convolutions."""

from __future__ import annotations

import torch
from torch import fx, nn
from torch.fx import Node
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.utils.fusion import fuse_conv_bn_eval

from adderize.dataflow.graphs import is_idle_dropout, module_of
from adderize.quantize.calls import is_foldable, is_plain, read_layers
from adderize.quantize.constants import never_vary
from adderize.quantize.fake_layers import FakeQuantize


def leave_out_identities(traced: fx.GraphModule, keep: type[nn.Module] | tuple[()] = ()) -> None:
    """Take out what does nothing in evaluation, in place.

    Args:
        keep: classes of layers that stay.
    """
    for node in traced.graph.nodes:
        if _is_identity(node) and not isinstance(module_of(node), keep):
            _take_out(node, node.args[0])


def _is_identity(node: Node) -> bool:
    module = module_of(node)
    if module is not None:
        return isinstance(module, (nn.Identity, _DropoutNd, FakeQuantize)) and is_plain(module)
    return is_idle_dropout(node)


def fold_into_convolutions(traced: fx.GraphModule) -> None:
    """Let kept convolutions take the batch norms behind them in, in place."""
    calls = [module_of(node) for node in traced.graph.nodes]
    read = [traced.get_submodule(name) for name in read_layers(traced.graph)]
    for node in list(traced.graph.nodes):
        norm = module_of(node)
        if not isinstance(norm, nn.BatchNorm2d) or not is_foldable(norm):
            continue
        (source,) = node.all_input_nodes
        convolution = module_of(source)
        once = len(source.users) == 1 and calls.count(convolution) == 1
        alone = once and not any(convolution is layer for layer in read)
        if type(convolution) is nn.Conv2d and alone and is_plain(convolution):
            traced.set_submodule(str(source.target), _folded(convolution, norm))
            _take_out(node, source)


def _folded(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """A convolution with its norm. Channels that never vary give the norm's bias: scaled by
    1/sqrt(eps), their filters would take the bits of all others' where integers hold them."""
    fused, constant = fuse_conv_bn_eval(convolution, norm), never_vary(norm)
    assert fused.bias is not None
    bias = torch.zeros_like(fused.bias) if norm.bias is None else norm.bias
    with torch.no_grad():
        fused.weight.masked_fill_(constant.view(-1, 1, 1, 1), 0)
        fused.bias.copy_(torch.where(constant, bias, fused.bias))
    return fused


def _take_out(node: Node, source: Node) -> None:
    """Let what reads a node read what it reads, which is rounded as it was."""
    if "qparams" in node.meta:
        source.meta["qparams"] = node.meta["qparams"]
    node.replace_all_uses_with(source)
    node.graph.erase_node(node)
