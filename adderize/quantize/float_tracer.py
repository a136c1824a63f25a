"""Tracing of what `model(inputs)` runs, forward hooks among it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import fx, nn
from torch.utils import _pytree as pytree

from adderize.dataflow.symbolic import LayerTracer
from adderize.errors import AdderizeError

Hooked = dict[str, tuple[int, int]]


class ForwardHook(nn.Module):
    """A block's forward hook, or forward pre-hook, as a layer of a traced network.

    Called with what a hook takes after its module, keyword arguments among it; gives the leaves of
    what the hook leaves: of the output, or of the arguments (a pre-hook). There are no blocks in a
    traced network: the hook gets this layer as its module.
    """

    def __init__(self, hook: Callable[..., Any] | None, block: str, *, with_kwargs: bool) -> None:
        super().__init__()
        self.hook, self.block, self.with_kwargs = hook, block, with_kwargs

    def forward(self, args: Any, kwargs: Any, *output: Any) -> list[Any]:
        leaves, spec = pytree.tree_flatten(self.apply_to(self, args, kwargs, *output))
        expected = pytree.tree_structure(output[0] if output else (args, kwargs))
        if spec != expected:
            raise AdderizeError(
                f"a forward hook of {self.block or 'the model'} gives {spec}; expected {expected}, "
                "the structure of what it was called with"
            )
        return leaves

    def apply_to(self, module: nn.Module, args: Any, kwargs: Any, *output: Any) -> Any:
        """What `nn.Module.__call__` makes of the hook."""
        before = output[0] if output else (args, kwargs)
        if self.hook is None:
            return before
        given = (args, kwargs, *output) if self.with_kwargs else (args, *output)
        result = self.hook(module, *given)
        if result is None:
            return before
        if output or self.with_kwargs:
            return result
        return (result if isinstance(result, tuple) else (result,)), kwargs

    def extra_repr(self) -> str:
        return f"of {self.block or 'the model'}"


class FloatTracer(LayerTracer):
    """Blocks call their forward hooks as layers; options of `forward` have their defaults.

    Args:
        hooked: the pre-hooks and hooks that blocks had at another time, by the blocks' names.

    Attributes:
        layers: the hooks, by the names that the graph calls them by.
        hooked: how many pre-hooks and hooks each block has.
    """

    def __init__(self, hooked: Hooked) -> None:
        super().__init__()
        self.layers: dict[str, ForwardHook] = {}
        self.hooked = dict(hooked)

    def graph_of(self, model: nn.Module) -> fx.Graph:
        """The graph of `model(inputs)`; raises whatever tracing it raises."""
        if "forward" in vars(model):
            raise AdderizeError("the model has a forward of its own, put on the instance")
        options = _options(model)
        graph = self.trace(model, options)
        for node in graph.find_nodes(op="placeholder"):
            name = str(node.target).rpartition("_")[0]
            node.target = name if name in options else node.target
        graph._tracer_cls = LayerTracer  # which traces the graph's code again after unpickling
        return graph

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        function, arguments = super().create_args_for_root(root_fn, is_module, concrete_args)
        root, *inputs = arguments
        given = len(inputs) - len(concrete_args)

        def with_hooks(*_: Any) -> Any:
            def plainly(*args: Any) -> Any:
                return function(root, *args, *inputs[given:])

            return self._call(root, "", plainly, tuple(inputs[:given]), {})

        return with_hooks, arguments

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: dict[str, Any]
    ) -> Any:
        name = self.path_of_module(m)
        if self.is_leaf_module(m, name):
            return super().call_module(m, forward, args, kwargs)

        def plainly(*args: Any, **kwargs: Any) -> Any:
            return super(FloatTracer, self).call_module(m, m.forward, args, kwargs)

        return self._call(m, name, plainly, args, kwargs)

    def _call(
        self, m: nn.Module, name: str, forward: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        """What `nn.Module.__call__` does, with the hooks as layers."""
        pre_hooks, hooks = self._hooks(m, name, "pre_hook"), self._hooks(m, name, "hook")
        if pre_hooks or hooks:
            self.hooked[name] = len(pre_hooks), len(hooks)
        for hook in pre_hooks:
            args, kwargs = self._run(hook, m, (args, kwargs), args, kwargs)
        output = forward(*args, **kwargs)
        for hook in hooks:
            output = self._run(hook, m, output, args, kwargs, output)
        return output

    def _hooks(self, m: nn.Module, name: str, kind: str) -> list[str]:
        """The names of the layers for a block's hooks."""
        table: dict[int, Callable[..., Any]] = getattr(m, f"_forward_{kind}s")
        with_kwargs: dict[int, bool] = getattr(m, f"_forward_{kind}s_with_kwargs")
        found = [ForwardHook(hook, name, with_kwargs=i in with_kwargs) for i, hook in table.items()]
        before = self.hooked.get(name, (0, 0))[kind == "hook"]
        found += [ForwardHook(None, name, with_kwargs=False)] * (before - len(found))
        layers = {f"{name}_{kind}_{i}".lstrip("_"): hook for i, hook in enumerate(found)}
        for target, layer in layers.items():
            self.layers.setdefault(target, layer)
        return list(layers)

    def _run(self, target: str, m: nn.Module, before: Any, *given: Any) -> Any:
        layer = self.layers[target]
        if hook_owner(layer.hook) in set(self.root.modules()):
            # The network's own: what it keeps for later is part of the computation.
            after = layer.apply_to(m, *given)
            del self.layers[target]
            return after
        results: Any = self.create_proxy("call_module", target, given, {})
        leaves, spec = pytree.tree_flatten(before)
        found = [
            results[i] if isinstance(leaf, fx.Proxy) else leaf for i, leaf in enumerate(leaves)
        ]
        return pytree.tree_unflatten(found, spec)


def hook_owner(hook: Any) -> Any:
    """The object whose method a hook is."""
    return getattr(getattr(hook, "func", hook), "__self__", None)


def _options(model: nn.Module) -> dict[str, Any]:
    """The arguments of `forward` that choose what runs, with the values of `model(inputs)`."""
    parameters = list(inspect.signature(model.forward).parameters.values())[1:]
    return {
        p.name: p.default
        for p in parameters
        if p.default is None or isinstance(p.default, (bool, str))
    }
