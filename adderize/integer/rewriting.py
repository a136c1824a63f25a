"""Replacing the nodes of a graph by layers on integers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

from torch import Tensor, fx, nn
from torch.fx import Node

from adderize.integer.fixed_point import Bounds, ShiftEpilogue
from adderize.integer.integer_layers import IntegerScale
from adderize.integer.refusal import RefusedError
from adderize.integer.value import Value, number
from adderize.quantize.calls import clamp_bounds, operation
from adderize.quantize.qparams import quantize_bytes

# They move values without computing any.
MOVES = frozenset({
    "chunk", "contiguous", "flatten", "getitem", "permute", "pixel_shuffle", "pixel_unshuffle",
    "reshape", "split", "squeeze", "transpose", "unsqueeze", "view",
    "ChannelShuffle", "Flatten", "PixelShuffle", "PixelUnshuffle",
})  # fmt: skip
# The bits of the largest magnitude of a value that no bytes follow.
VALUE_BITS = 22
# The bits of what a scale is applied to: the shifts need the others.
OPERAND_BITS = 18


class Rewriting:
    """A graph whose nodes are replaced, and what the integers of each stand for.

    Each node has the shape of its value in ``meta["shape"]``.
    """

    def __init__(self, network: fx.GraphModule, terms: int) -> None:
        self.network, self.graph, self._terms = network, network.graph, terms
        self._values: dict[Node, Value] = {}

    def _call(self, node: Node, module: nn.Module, operands: Sequence[Node], value: Value) -> None:
        name = str(node.target) if node.op == "call_module" else node.name
        while node.op != "call_module" and hasattr(self.network, name):
            name += "_"
        if node.op == "call_module" and len(self._calls_of(node)) > 1:
            name = self._free_name(name)
        self.network.add_submodule(name, module.eval())
        with self.graph.inserting_before(node):
            call = self.graph.call_module(name, tuple(operands))
        call.meta["shape"] = node.meta["shape"]
        self._values[call] = value
        node.replace_all_uses_with(call)
        self.graph.erase_node(node)

    def _calls_of(self, node: Node) -> list[Node]:
        return [n for n in self.graph.nodes if n.op == node.op and n.target == node.target]

    def _free_name(self, name: str) -> str:
        taken = {name for name, _ in self.network.named_modules(remove_duplicate=False)}
        return next(f"{name}_{i}" for i in range(1, 10**6) if f"{name}_{i}" not in taken)

    def _operand(self, node: Node, position: int = 0) -> tuple[Node, Value]:
        source = node.args[position]
        if not isinstance(source, Node) or source not in self._values:
            raise RefusedError("it reads a tensor that does not come from the image")
        return source, self._values[source]

    def _wanted(self, node: Node) -> float | None:
        """The scale of the bytes that a node's value becomes, if it does."""
        for user in node.users:
            if user.target is quantize_bytes:
                return cast(float, user.args[1])
            if clamp_bounds(user) is not None or operation(user) in MOVES:
                wanted = self._wanted(user)
                if wanted is not None:
                    return wanted
        return None

    def _free(self, node: Node, real: float) -> Value:
        """Integers of 32 bits for values up to a magnitude: bytes that follow are some bits of
        them, where any do."""
        unit = real / 2**VALUE_BITS or 1.0
        wanted = self._wanted(node)
        if wanted:
            unit = wanted * 2.0 ** math.ceil(math.log2(unit / wanted))
        return Value(number(unit), number(0.0), Bounds.of(-(2**VALUE_BITS), 2**VALUE_BITS))

    def _pass_on(self, node: Node) -> None:
        source, _ = self._operand(node)
        node.replace_all_uses_with(source)
        self.graph.erase_node(node)

    def _rescaled(
        self,
        value: Value,
        result: Value,
        gain: Tensor | float = 1.0,
        offset: Tensor | float = 0.0,
        added: Value | None = None,
        dim: int = 1,
    ) -> IntegerScale:
        """The layer that gives ``gain * value + offset + added`` in the integers of `result`."""
        drop, value = value.narrowed(OPERAND_BITS)
        other, other_drop = None, 0
        if added is not None:
            other_drop, added = added.narrowed(OPERAND_BITS)
            other = (float(added.scale / result.scale), float(added.zero), added.bounds)
        scale = (gain * value.scale / result.scale).reshape(-1)
        epilogue = ShiftEpilogue(
            scale, (offset / result.scale - scale * value.zero).reshape(-1), value.bounds,
            terms=self._terms, low=int(result.bounds.low), high=int(result.bounds.high),
            zero=int(result.zero), other=other,
        )  # fmt: skip
        return IntegerScale(epilogue, dim, drop, other_drop)

    def _matched(self, name: str, tensor: Node, result: Value, before: Node) -> Node:
        """A tensor in the integers of another value, made right before a node."""
        name = self._free_name(name)
        self.network.add_submodule(name, self._rescaled(self._values[tensor], result))
        with self.graph.inserting_before(before):
            return self.graph.call_module(name, (tensor,))

    def _flatten_last(self) -> None:
        call = list(self._values)[-1]
        call.meta["shape"] = (*call.meta["shape"], 1, 1)
        with self.graph.inserting_after(call):
            flat = self.graph.call_method("flatten", (call, 1))
        call.replace_all_uses_with(flat, delete_user_cb=lambda user: user is not flat)
        flat.meta["shape"] = call.meta["shape"][:2]
        self._values[flat] = self._values[call]
