"""What can't be cut as it stands is written in another way first, computing exactly the same.

A shortcut that fills up channels with zeros ("option A" of He et al., 2016) has no layer whose channels could be cut:
it becomes a 1×1 convolution whose weight is a part of the identity. The module that holds it is traced by ``torch.fx``;
its submodules and their names stay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from compresskit.errors import InputError, missing_extra
from compresskit.facts.prune import Shortcut
from compresskit.ops.calibration.trace import tensors_in
from compresskit.ops.packed.modules import set_module
from compresskit.ops.shallow import shallow_graph

_EXACT = 1e-6
_WIDEST = 1 << 16
"""Channels of a shortcut; facts that say more are damaged."""


def rewrite_shortcuts(module: nn.Module, run: Callable[[nn.Module], Any]) -> dict[str, list[Shortcut]]:
    """Turn zero-filled shortcuts into convolutions, in place.

    Args:
        module: In eval mode.
        run: Calls a module with an example input.

    Returns:
        For each submodule that was rewritten what :func:`replay_shortcuts` needs; those that can't be traced, or where
        the result would not be the same, stay as they are.
    """
    found: dict[str, list[Shortcut]] = {}
    for name, widths in _padded(module, run).items():
        before = module.get_submodule(name)
        try:
            nodes = _pads(shallow_graph(before))
            shortcuts = [_shortcut(i, node, widths[i]) for i, node in enumerate(nodes)]
            new = _rewritten(before, shortcuts)
        except Exception:  # fx refuses code that depends on values: then the channels concerned are left alone
            continue
        if name and shortcuts and _fits(module, name, new, run):
            found[name] = shortcuts
    return found


@torch.no_grad()
def _fits(module: nn.Module, name: str, new: nn.Module, run: Callable[[nn.Module], Any]) -> bool:
    """Put a rewritten submodule in place; False, with everything as before, where the outputs would change."""
    before, wanted = module.get_submodule(name), run(module)
    set_module(module, name, new)
    try:
        if _same(wanted, run(module)):
            return True
    except Exception:  # the user's forward, with a module that lacks something it relies on
        pass
    set_module(module, name, before)
    return False


def replay_shortcuts(module: nn.Module, facts: Mapping[str, Sequence[Shortcut]]) -> None:
    """The same on a freshly built module, from what :func:`rewrite_shortcuts` returned.

    Raises:
        InputError: The facts don't fit this architecture.
    """
    for name, shortcuts in facts.items():
        try:
            set_module(module, name, _rewritten(module.get_submodule(name), shortcuts))
        except Exception as error:
            raise InputError(f"the architecture has no shortcut in '{name}' that was rewritten: {error}") from error


class _Pads(TorchFunctionMode):
    """Notes how many channels stood before each zero-filling of channels, by the submodule whose code does it."""

    def __init__(self, active: list[str]) -> None:
        super().__init__()
        self.found: dict[str, list[int]] = {}
        self._active = active

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") == "pad" and isinstance(args[0], Tensor):
            filled = _filled(args, kwargs or {})
            if filled is not None and args[0].dim() == filled[2] + 2:
                self.found.setdefault(self._active[-1], []).append(int(args[0].shape[1]))
        return func(*args, **(kwargs or {}))


def _padded(module: nn.Module, run: Callable[[nn.Module], Any]) -> dict[str, list[int]]:
    active = [""]
    pads = _Pads(active)
    with ExitStack() as stack:
        for name, layer in module.named_modules():
            if name:
                stack.callback(layer.register_forward_pre_hook(_entering(active, name)).remove)
                stack.callback(layer.register_forward_hook(_leaving(active), always_call=True).remove)
        stack.enter_context(torch.no_grad())
        stack.enter_context(pads)
        run(module)
    return pads.found


def _entering(active: list[str], name: str) -> Any:
    return lambda *_: active.append(name)


def _leaving(active: list[str]) -> Any:
    def hook(*_: Any) -> None:
        active.pop()

    return hook


def _filled(args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[int, int, int] | None:
    """Zero channels in front, behind, and how many axes follow the channels; None for padding of another kind."""
    pad, mode, value = [*args[1:], None, None, None][:3]
    pad, mode, value = kwargs.get("pad", pad), kwargs.get("mode", mode), kwargs.get("value", value)
    if mode not in (None, "constant") or value not in (None, 0) or len(pad) not in (4, 6):
        return None
    pad = [int(n) for n in pad]
    if any(pad[:-2]) or min(pad[-2:]) < 0 or not any(pad[-2:]):
        return None
    return pad[-2], pad[-1], len(pad) // 2 - 1


def _pads(graph: fx.GraphModule) -> list[fx.Node]:
    named = [n for n in graph.graph.nodes if getattr(n.target, "__name__", n.target) == "pad"]
    return [n for n in named if n.op in ("call_function", "call_method") and _filled(n.args, n.kwargs) is not None]


def _shortcut(index: int, node: fx.Node, channels: int) -> Shortcut:
    filled = _filled(node.args, node.kwargs)
    if filled is None:
        raise TypeError("not a padding of channels")
    front, behind, axes = filled
    stride = _strides(node.args[0], axes)
    out = channels + front + behind
    return Shortcut(pad=index, into=channels, out=out, at=front, stride=stride or [1] * axes)


def _strides(node: Any, axes: int) -> list[int] | None:
    """The steps of ``x[:, :, ::2, ::2]``; None where the node is something else."""
    if not isinstance(node, fx.Node) or getattr(node.target, "__name__", "") != "getitem" or len(node.users) != 1:
        return None
    index: Any = node.args[1]
    if not isinstance(index, tuple) or len(index) != axes + 2:
        return None
    steps = [_step(part) for part in index]
    return steps[2:] if steps[:2] == [1, 1] and all(steps) else None


def _step(part: Any) -> int:
    """The step of a slice over a whole axis; 0 for any other index."""
    if not isinstance(part, slice) or part.start not in (None, 0) or part.stop is not None:
        return 0
    step = 1 if part.step is None else part.step
    return step if isinstance(step, int) and step > 0 else 0


def _rewritten(module: nn.Module, shortcuts: Sequence[Shortcut]) -> fx.GraphModule:
    """A module as its own graph, with a convolution in the place of each padding.

    Raises:
        ValueError: A shortcut isn't one that this module has.
    """
    graph = shallow_graph(module)
    nodes = _pads(graph)
    like = next((t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()), torch.empty(0))
    for fact in shortcuts:
        index = fact.pad
        if index >= len(nodes) or fact.into > _WIDEST or _shortcut(index, nodes[index], fact.into) != fact:
            raise ValueError(f"no padding of {fact.into} to {fact.out} channels there")
        name = f"shortcut_{index}"
        if hasattr(graph, name):
            raise ValueError(f"it has a '{name}' already")
        graph.add_submodule(name, _identity(fact, like))
        _replace(graph.graph, nodes[index], name, merged=any(s > 1 for s in fact.stride))
    graph.graph.lint()
    graph.recompile()
    graph.train(module.training)
    return graph


def _replace(graph: fx.Graph, node: fx.Node, name: str, *, merged: bool) -> None:
    before: Any = node.args[0]
    source = before.args[0] if merged else before
    with graph.inserting_before(node):
        new = graph.call_module(name, (source,))
    node.replace_all_uses_with(new)
    graph.erase_node(node)
    if merged:
        graph.erase_node(before)


def _identity(fact: Shortcut, like: Tensor) -> nn.Module:
    """A 1×1 convolution that copies its inputs to the channels from ``at`` on; the others are zero."""
    kind: Any = nn.Conv2d if len(fact.stride) == 2 else nn.Conv1d
    layer: nn.Module = kind(fact.into, fact.out, 1, stride=tuple(fact.stride), bias=False)
    weight = torch.zeros(layer.get_parameter("weight").shape, device=like.device, dtype=like.dtype)
    weight[fact.at : fact.at + fact.into].flatten(1).fill_diagonal_(1)
    layer.weight = nn.Parameter(weight, requires_grad=True)
    return layer


def _same(first: Any, second: Any) -> bool:
    pairs = list(zip(tensors_in(first), tensors_in(second), strict=True))
    return all(a.shape == b.shape and torch.allclose(a, b, rtol=_EXACT, atol=_EXACT) for a, b in pairs)


def is_conv1d(layer: nn.Module) -> bool:
    """True for transformers' Conv1D."""
    return type(layer).__name__ == "Conv1D" and hasattr(layer, "nf")


def conv1d_to_linear(module: nn.Module, among: Sequence[str] | None = None) -> list[str]:
    """Put a Linear in the place of each Conv1D of transformers (GPT-2), in place; returns their names.

    Conv1D is a Linear with its weight the other way round, which torch-pruning doesn't know.

    Args:
        module: Any module.
        among: Names of submodules; None: all.
    """
    names = [n for n, m in module.named_modules() if n and is_conv1d(m)]
    names = [name for name in names if among is None or name in among]
    for name in names:
        old = module.get_submodule(name)
        weight, bias = old.get_parameter("weight"), old.get_parameter("bias")
        new = nn.Linear(1, 1)
        new.weight, new.bias = nn.Parameter(weight.detach().t().contiguous()), bias
        new.out_features, new.in_features = (int(n) for n in new.weight.shape)
        set_module(module, name, new)
    return names


def linear_to_conv1d(module: nn.Module, names: Sequence[str]) -> None:
    """The way back, with the widths that the layers have by now; without names nothing of transformers is needed.

    Raises:
        InputError: A layer isn't Linear.
        MachineError: transformers isn't installed.
    """
    if not names:
        return
    try:
        from transformers.pytorch_utils import Conv1D
    except ImportError as error:
        raise missing_extra("transformers", "hf") from error

    for name in names:
        old = module.get_submodule(name)
        if not isinstance(old, nn.Linear):
            raise InputError(f"layer '{name}' is a {type(old).__name__}, which can't have been a Conv1D")
        new = Conv1D(1, 1)
        weight = old.get_parameter("weight")
        new.weight, new.bias = nn.Parameter(weight.detach().t().contiguous()), old.get_parameter("bias")
        new.nf, new.nx = int(weight.shape[0]), int(weight.shape[1])
        set_module(module, name, new)
