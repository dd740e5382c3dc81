"""What happens in one forward pass: which submodules are called, in what order, and whose output goes where."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing import reductions
from torch.overrides import TorchFunctionMode

OUTPUT = "(output)"
"""What stands for the model's own output among the consumers."""


@dataclass(frozen=True)
class Call:
    """One call of a submodule; tensors are known by number, the same number being the same values of the same tensor.

    Attributes:
        name: Dotted name of the submodule; ``""`` is the model itself.
        inputs: The tensors it was given.
        outputs: The tensors it returned.
        first: Where the first input tensor stood: a position, or a keyword; None when there was none.
    """

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    first: int | str | None


@dataclass
class Trace:
    """One forward pass.

    Attributes:
        calls: In the order in which they began.
        users: For each tensor, the innermost submodules whose code read it, and :data:`OUTPUT`; what is read by
            the model's own code between submodules is under the name of the submodule that holds that code.
        overwritten: The tensors that were written into (``x += y``) after a submodule was given them, or returned them.
    """

    calls: list[Call] = field(default_factory=list)
    users: dict[int, set[str]] = field(default_factory=dict)
    overwritten: set[int] = field(default_factory=set)

    def called(self, name: str) -> list[Call]:
        """The calls of one submodule."""
        return [call for call in self.calls if call.name == name]

    def once(self) -> dict[str, Call]:
        """The submodules that are called exactly once, in order."""
        count: dict[str, int] = {}
        for call in self.calls:
            count[call.name] = count.get(call.name, 0) + 1
        return {call.name: call for call in self.calls if count[call.name] == 1}

    def inputs_overwritten(self) -> set[str]:
        """The submodules whose inputs are written into, by themselves or later: to be kept, they must be copied."""
        return {call.name for call in self.calls if not self.overwritten.isdisjoint(call.inputs)}

    def outputs_overwritten(self) -> set[str]:
        """The same of what submodules return."""
        return {call.name for call in self.calls if not self.overwritten.isdisjoint(call.outputs)}

    def consumers(self, name: str) -> set[str]:
        """Who reads the output of a submodule that is called once; empty when it isn't."""
        calls = self.called(name)
        if len(calls) != 1 or not calls[0].outputs:
            return set()
        return set().union(*(self.users.get(key, set()) for key in calls[0].outputs))

    def producer(self, name: str) -> str | None:
        """The innermost submodule whose output is the first input of ``name``."""
        calls = self.called(name)
        if len(calls) != 1 or not calls[0].inputs:
            return None
        made = [c.name for c in self.calls if calls[0].inputs[0] in c.outputs and c.name and c.name != name]
        return made[-1] if made else None

    def groups(self, names: Iterable[str]) -> list[list[str]]:
        """Layers in the order of their first call, those that share an input together; uncalled ones left out."""
        wanted, found = set(names), dict[Any, list[str]]()
        placed: set[str] = set()
        for call in self.calls:
            if call.name in wanted and call.name not in placed:
                placed.add(call.name)
                key = call.inputs[0] if call.inputs else call.name
                found.setdefault(key, []).append(call.name)
        return list(found.values())


def trace(module: nn.Module, forward: Callable[[], Any]) -> Trace:
    """Run ``forward`` once, and record what is called in ``module``.

    Args:
        module: In eval mode.
        forward: Calls the module; gradients should be off.

    Returns:
        The record; it holds no tensor.
    """
    result, numbers = Trace(), _Numbers()
    active: list[str] = [""]
    with ExitStack() as stack:
        for name, layer in module.named_modules():
            if name:
                hooks = _hooks(name, result, numbers, active)
                stack.callback(layer.register_forward_pre_hook(hooks[0], with_kwargs=True, prepend=True).remove)
                stack.callback(layer.register_forward_hook(hooks[1], with_kwargs=True, always_call=True).remove)
        stack.enter_context(_Reads(result, numbers, active))
        out = forward()
    for tensor in tensors_in(out):
        result.users.setdefault(numbers.of(tensor), set()).add(OUTPUT)
    result.overwritten = numbers.overwritten()
    return result


class _Numbers:
    """A number for each piece of memory, as a tensor looks at it, and what it held; no tensor is kept alive.

    ``x += y`` leaves the object and changes what it holds, so it gets another number, as ``x = x + y`` does. A storage
    that was let go keeps its identity through a weak reference, so that no later one is taken for it.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[Any, ...], int] = {}
        self._storages: dict[Hashable, tuple[int, list[int]]] = {}
        self._opaque: list[Tensor] = []
        self._overwritten: set[int] = set()

    def of(self, tensor: Tensor) -> int:
        storage = self._seen(tensor)
        key = (storage, _version(tensor), *_look(tensor)) if storage is not None else (id(tensor), _version(tensor))
        if key not in self._kept:
            self._kept[key] = len(self._kept)
            if storage is None:
                self._opaque.append(tensor)
            else:
                self._storages[storage][1].append(self._kept[key])
        return self._kept[key]

    def written(self, tensors: Iterable[Tensor]) -> None:
        """Look at tensors that a call may have written into."""
        for tensor in tensors:
            self._seen(tensor)

    def overwritten(self) -> set[int]:
        return self._overwritten

    def _seen(self, tensor: Tensor) -> Hashable | None:
        """The tensor's storage, after noting whether it was written into; None where it has none (sparse)."""
        if tensor.layout != torch.strided:
            return None
        storage, version = _weak_reference(tensor.untyped_storage()), _version(tensor)
        latest, numbers = self._storages.setdefault(storage, (version, []))
        if version > latest:
            self._overwritten.update(numbers)
            self._storages[storage] = (version, [])
        return storage


_weak_reference: Callable[[torch.UntypedStorage], Hashable] = reductions.StorageWeakRef


def _look(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.dtype, tensor.storage_offset(), tuple(tensor.shape), tensor.stride()


def _version(tensor: Tensor) -> int:
    """How often the tensor's memory was written into; tensors made for inference alone don't count."""
    return 0 if tensor.is_inference() else tensor._version


class _Reads(TorchFunctionMode):
    """Notes who reads a tensor, and what a call writes into."""

    def __init__(self, result: Trace, numbers: _Numbers, active: list[str]) -> None:
        super().__init__()
        self._state = result, numbers, active

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result, numbers, active = self._state
        if _looks(func):
            return func(*args, **(kwargs or {}))
        for tensor in tensors_in((args, kwargs)):
            result.users.setdefault(numbers.of(tensor), set()).add(active[-1])
        out = func(*args, **(kwargs or {}))
        numbers.written(tensors_in((args, kwargs)))
        return out


def _looks(func: Any) -> bool:
    """True for the calls that read no values: shape, dtype and the like."""
    return getattr(func, "__name__", "") in (
        "__get__", "size", "dim", "numel", "is_floating_point", "is_inference", "stride",
        "storage_offset", "untyped_storage",
    )  # fmt: skip


def _hooks(name: str, result: Trace, numbers: _Numbers, active: list[str]) -> tuple[Any, Any]:
    begun: list[int] = []

    def before(_layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = tuple(numbers.of(t) for t in tensors_in((args, kwargs)))
        begun.append(len(result.calls))
        result.calls.append(Call(name, given, (), _first(args, kwargs)))
        active.append(name)

    def after(_layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        active.pop()
        at = begun.pop()
        made = tuple(numbers.of(t) for t in tensors_in(out))
        result.calls[at] = Call(name, result.calls[at].inputs, made, result.calls[at].first)

    return before, after


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int | str | None:
    places: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
    return next((place for place, value in places if isinstance(value, Tensor)), None)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists and dicts, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)


def copied(value: Any) -> Any:
    """Nested tuples, lists and dicts with copies of their tensors."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        twin = copy.copy(value)
        twin.update({key: copied(item) for key, item in value.items()})
        return twin
    if isinstance(value, (tuple, list)):
        items = [copied(item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def chain(module: nn.Module, found: Trace) -> list[str]:
    """The blocks of a model: submodules that are called once each and hand their first output to the next.

    They are members of a ``ModuleList`` or ``Sequential`` (several in a row may join), outermost first; no layer with a
    weight is called between them, and nothing but the next block reads what a block gives. The longest such run by
    parameters is taken.

    Returns:
        Dotted names in order; empty when there is no run of at least two.
    """
    once = found.once()
    members: list[str] = []
    for name, holder in module.named_modules():
        if isinstance(holder, (nn.ModuleList, nn.Sequential)) and not any(_within(name, m) for m in members):
            own = _members(holder, name)
            if own and all(n in once and n not in members for n in own):
                members += own
    ordered = sorted((n for n in members if _gives_one(found, once[n])), key=lambda n: found.calls.index(once[n]))
    runs: list[list[str]] = []
    for name in ordered:
        if runs and _follows(module, found, once, runs[-1], name):
            runs[-1].append(name)
        else:
            runs.append([name])
    runs = [run for run in runs if len(run) > 1]
    return max(runs, key=lambda run: sum(_size(module.get_submodule(n)) for n in run), default=[])


def _members(holder: nn.Module, name: str) -> list[str]:
    """The children by full name; a child that is a ``Sequential`` itself stands for its own children."""
    found: list[str] = []
    for leaf, child in holder.named_children():
        full = f"{name}.{leaf}" if name else leaf
        found += _members(child, full) if type(child) is nn.Sequential and len(child) else [full]
    return found


def _gives_one(found: Trace, call: Call) -> bool:
    """True where only the first output of a block is of use to others: a residual beside it, say, isn't carried."""
    others = set(call.outputs[1:]) - {call.outputs[0]} if call.outputs else set[int]()
    users = set().union(*(found.users.get(key, set()) for key in others))
    given = (c.name for c in found.calls[found.calls.index(call) + 1 :] if not others.isdisjoint(c.inputs))
    return all(_within(name, call.name) for name in (*users, *given))


def _follows(module: nn.Module, found: Trace, once: dict[str, Call], run: list[str], name: str) -> bool:
    before = run[-1]
    first, second = once[before], once[name]
    if not first.outputs or not second.inputs or first.outputs[0] != second.inputs[0]:
        return False
    # What the next block hands on as it is (dropout) is judged at the join behind it.
    if second.outputs[:1] != first.outputs[:1]:
        users = found.users.get(first.outputs[0], set())
        if any(not any(_within(user, block) for block in (*run, name)) for user in users):
            return False
    start, end = found.calls.index(first), found.calls.index(second)
    between = [c.name for c in found.calls[start + 1 : end] if not _within(c.name, before)]
    return not any(module.get_submodule(n)._parameters for n in between)


def _within(name: str, holder: str) -> bool:
    return name == holder or name.startswith(holder + ".")


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
