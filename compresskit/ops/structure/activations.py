"""The activations of a model by name, and what each is given."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

KINKED = ("relu", "relu6", "leaky_relu", "threshold", "prelu")
"""Linear on each side of 0, and relu6 of 6 too."""
SMOOTH = ("gelu", "silu", "mish", "elu", "selu", "celu", "softplus", "tanh", "sigmoid", "hardswish", "hardsigmoid")
"""Bent in places that no sign tells."""
_AFFINE = ("conv1d", "conv2d", "conv3d", "conv_transpose2d", "linear", "addmm", "matmul")


@dataclass(frozen=True)
class Activated:
    """One call of an activation.

    Attributes:
        name: Of the module that it is, or in whose code it stands; a further call there has ``#2`` and so on.
        function: Its name.
        given: What it is given, ``(samples, …)``; it may be overwritten afterwards.
        axis: Where its units stand: 1 behind a convolution, else the last one.
    """

    name: str
    function: str
    given: Tensor
    axis: int

    def rows(self) -> Tensor:
        """``(samples, places, units)``."""
        z = self.given.movedim(self.axis, -1)
        return z.reshape(z.shape[0], -1, z.shape[-1])


class Activations(TorchFunctionMode):
    """Hands each activation of a forward pass to a function, before it is computed.

    Args:
        module: Runs within the context.
        note: Called with each activation in order.
    """

    def __init__(self, module: nn.Module, note: Callable[[Activated], None]) -> None:
        super().__init__()
        self._module, self._note = module, note
        self._stack = ExitStack()
        self._active = [""]
        self._calls: dict[str, int] = {}
        self._axis = -1

    def __enter__(self) -> Activations:
        for name, part in self._module.named_modules():

            def before(_part: nn.Module, _args: Any, name: str = name) -> None:
                self._active.append(name)
                if not name:
                    self._calls.clear()

            def after(_part: nn.Module, _args: Any, _out: Any) -> None:
                self._active.pop()

            self._stack.callback(part.register_forward_pre_hook(before, prepend=True).remove)
            self._stack.callback(part.register_forward_hook(after, always_call=True).remove)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._stack.close()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "").strip("_")
        if name in _AFFINE:
            self._axis = 1 if name.startswith("conv") else -1
        elif (function := _function(name, args, kwargs or {})) and args and isinstance(args[0], Tensor):
            axis = self._axis if args[0].dim() > 2 else -1
            self._note(Activated(self._named(function), function, args[0], axis))
        return func(*args, **(kwargs or {}))

    def _named(self, function: str) -> str:
        name = self._active[-1]
        if any(True for _ in self._module.get_submodule(name).children()) or not name:
            name = f"{name}.{function}" if name else function
        count = self._calls[name] = self._calls.get(name, 0) + 1
        return name if count == 1 else f"{name}#{count}"


def _function(name: str, args: Any, kwargs: dict[str, Any]) -> str:
    """The activation that a function of torch is; empty for any other."""
    if name == "hardtanh":
        limits = [*args[1:3], kwargs.get("min_val"), kwargs.get("max_val")]
        return "relu6" if [float(v) for v in limits if v is not None] == [0.0, 6.0] else "hardtanh"
    return name if name in (*KINKED, *SMOOTH) else ""
