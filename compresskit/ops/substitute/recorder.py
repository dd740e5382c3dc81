"""What a block computes on its way: its sums, and what is given to the activation or normalization at its end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from compresskit.ops.calibration.activation_stream import replaced
from compresskit.ops.calibration.trace import tensors_in

Activation = Literal["relu", "relu6", "silu", "gelu", "hardswish"]
ACTIVATIONS: dict[Activation, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "hardswish": nn.Hardswish,
}
_ADDS = ("add", "iadd", "radd")


@dataclass(frozen=True)
class End:
    """The last step of a block, where it is one that a stand-in can keep.

    Attributes:
        activation: Its name.
        weight: That of a layer normalization.
    """

    activation: Activation | None = None
    weight: Tensor | None = None


@dataclass(frozen=True)
class Seen:
    """One call of a block.

    Attributes:
        given: Its input.
        before: What its last step was given; its output where it has none.
        end: That last step; None: another one.
        sums: Its sums of two tensors in their order, if they were asked for.
        out: What it returned.
    """

    given: Tensor
    before: Tensor
    end: End | None
    sums: list[Tensor]
    out: Any


class Recorder(TorchFunctionMode):
    """Notes the last activation or normalization, and sums.

    Args:
        sums: Keep them; a model may write into a sum, so they are copied.
    """

    def __init__(self, *, sums: bool = False) -> None:
        super().__init__()
        self.sums: list[Tensor] = []
        self.last: tuple[End, Any, Any] | None = None
        self._keeps = sums

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "").strip("_")
        end = _end(name, args, kwargs)
        before = args[0].clone() if end is not None and _in_place(func, args, kwargs) else (args or (None,))[0]
        out = func(*args, **kwargs)
        if end is not None:
            self.last = end, before, out
        elif self._keeps and name in _ADDS and len(args) > 1 and isinstance(args[1], Tensor):
            self.sums.append(out.clone())
        return out


def _in_place(func: Any, args: Any, kwargs: Any) -> bool:
    """True where a call may overwrite its first argument: the name ends so, or a flag says it."""
    flags = [a for a in (*args[1:], *kwargs.values()) if a is True]
    return str(getattr(func, "__name__", "")).endswith("_") or bool(flags)


def _end(name: str, args: Any, kwargs: Any) -> End | None:
    """The step as one that a stand-in can keep; None for any other."""
    if name == "layer_norm":
        weight = args[2] if len(args) > 2 else kwargs.get("weight")
        return None if weight is None else End(weight=weight)
    if name == "hardtanh":  # ReLU6 is one
        limits = [*args[1:3], kwargs.get("min_val"), kwargs.get("max_val")]
        name = "relu6" if [float(v) for v in limits if v is not None] == [0.0, 6.0] else ""
    if name == "gelu" and kwargs.get("approximate", "none") != "none":
        return None
    known = next((key for key in ACTIVATIONS if key == name), None)
    return None if known is None else End(activation=known)


def placed(place: int | str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The argument at a position or keyword."""
    return args[place] if isinstance(place, int) else kwargs[place]


def observed(root: nn.Module, name: str, place: int | str, run: Callable[[], Any], *, sums: bool = False) -> Seen:
    """What a block is given and computes in one run of a module.

    Args:
        root: Holds the block; the block alone, with the name ``""``.
        name: Of the block, which is called once.
        place: Where its input stands.
        run: Calls the module, or the block.
        sums: Keep its sums.
    """
    seen: list[Seen] = []
    with replaced(root, [name], partial(_watching, root, place, sums, seen.append)):
        run()
    return seen[0]


def _watching(root: nn.Module, place: int | str, sums: bool, note: Callable[[Seen], None], name: str) -> Any:
    """A forward that does what the block's own does, and notes it."""
    own = root.get_submodule(name).forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        given = placed(place, args, kwargs).clone()
        with Recorder(sums=sums) as recorder:
            out = own(*args, **kwargs)
        first = next(tensors_in(out))
        end, before, after = recorder.last or (None, first, None)
        if after is not first:
            end, before = None, first
        note(Seen(given, before, end, recorder.sums, out))
        return out

    return forward


def watching(root: nn.Module, place: int | str, note: Callable[[Seen], None], name: str) -> Any:
    """The forward of :func:`observed`, for several blocks at once: give it to
    :func:`~compresskit.ops.calibration.activation_stream.replaced`."""
    return _watching(root, place, False, note, name)
