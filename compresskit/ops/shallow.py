"""The code of one module as a graph, its submodules being single steps."""

from __future__ import annotations

from torch import fx, nn


class _Shallow(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def shallow_graph(module: nn.Module) -> fx.GraphModule:
    """Follow the code of a module.

    Raises:
        Exception: Of any kind, where the code depends on values.
    """
    return fx.GraphModule(module, _Shallow().trace(module), type(module).__name__)
