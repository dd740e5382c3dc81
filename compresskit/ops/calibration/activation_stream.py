"""The stream along a model's chain of blocks: what stands before each block, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from torch import Tensor, nn

from compresskit.ops.calibration.trace import Trace, copied, tensors_in

Batch = dict[str, Tensor]
Forward = Callable[[nn.Module, Batch], Any]


class Stop(Exception):
    """Ends a forward pass when what was wanted has been seen."""


class ActivationStream:
    """What stands before each block: its arguments for each batch, the first tensor being the stream.

    A block is run many times on the same arguments. One that writes into them (``x += f(x)``) gets copies; the others
    get what is kept, since copies would cost every model memory and time.
    """

    def __init__(
        self, module: nn.Module, forward: Forward, batches: Sequence[Batch], blocks: Sequence[str], found: Trace
    ) -> None:
        self._module, self._forward, self._batches, self._blocks = module, forward, batches, list(blocks)
        once = found.once()
        self._place = {name: once[name].first for name in blocks}
        self._copied = found.inputs_overwritten()
        self._end_copied = blocks[-1] in found.outputs_overwritten()
        self._stream: list[Tensor] = []
        self._original: list[Tensor] = []
        self._next: dict[int, Tensor] = {}
        self._others: list[dict[str, tuple[tuple[Any, ...], dict[str, Any]]]] = []
        self._shape: dict[str, Any] = {}

    def before(self, module: nn.Module, index: int) -> Tensor:
        """Run what lies before the first block; gives the stream in front of it."""
        found: list[Tensor] = []

        def stop(_layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found.append(_taken(args, kwargs, self._place[self._blocks[0]])[0])
            raise Stop

        handle = module.get_submodule(self._blocks[0]).register_forward_pre_hook(stop, with_kwargs=True)
        try:
            self._forward(module, self._batches[index])
        except Stop:
            if not found:
                raise  # another hook's
        finally:
            handle.remove()
        return found[0]

    def start(self) -> None:
        """Take the stream in front of the first block, and every block's other arguments."""
        self._stream, self._others = self._captured()

    def start_original(self) -> None:
        """The same of the original model; to be called before anything is quantized."""
        self._original = self._captured()[0]

    def _captured(self) -> tuple[list[Tensor], list[dict[str, tuple[tuple[Any, ...], dict[str, Any]]]]]:
        stream: list[Tensor] = []
        others: list[dict[str, tuple[tuple[Any, ...], dict[str, Any]]]] = []
        for index in range(len(self._batches)):
            seen: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}

            def stub(seen: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
                x, args, kwargs = _taken(args, kwargs, self._place[name])
                if name == self._blocks[0]:
                    stream.append(x)
                    if name not in self._shape:
                        self._shape |= self._shapes(x, args, kwargs)
                seen[name] = (args, kwargs)
                if name == self._blocks[-1]:
                    raise Stop
                return filled(self._shape.get(name), x)

            make = partial(_stub, stub, seen)
            with suppress(Stop), replaced(self._module, self._blocks, make):
                self._forward(self._module, self._batches[index])
            others.append(seen)
        return stream, others

    def _shapes(self, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """What kind of value each block returns: learnt from the first, for blocks of the same type, else tensors."""
        name = self._blocks[0]
        kind = type(self._module.get_submodule(name))
        given, named = self._arguments(name, args, kwargs, x)
        out = kind.forward(self._module.get_submodule(name), *given, **named)
        return {n: out for n in self._blocks if type(self._module.get_submodule(n)) is kind}

    def run(self, name: str, block: nn.Module, index: int) -> Any:
        """Run one block on the quantized stream."""
        return self._called(name, block, index, self._stream[index])

    def run_original(self, name: str, block: nn.Module, index: int) -> Any:
        """Run one block on the original stream; what it gives is where the stream goes next."""
        out = self._called(name, block, index, self._original[index])
        self._next[index] = next(tensors_in(out))
        return out

    def _called(self, name: str, block: nn.Module, index: int, x: Tensor) -> Any:
        args, kwargs = self._arguments(name, *self._others[index][name], x)
        return block(*args, **kwargs)

    def _arguments(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], x: Tensor
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with the stream in its place, for the block to do with as it likes."""
        args, kwargs = _given(args, kwargs, self._place[name], x)
        return copied((args, kwargs)) if name in self._copied else (args, kwargs)

    def advance(self, name: str, original: nn.Module | None) -> None:
        """Replace the stream by the block's output."""
        block = self._module.get_submodule(name)
        for index in range(len(self._batches)):
            if original is not None:
                if index not in self._next:
                    self.run_original(name, original, index)
                self._original[index] = self._next.pop(index)
            self._stream[index] = next(tensors_in(self.run(name, block, index)))
            self._others[index].pop(name)

    def after(self, module: nn.Module, index: int) -> Any:
        """Run what lies after the last block, on the quantized stream; gives the model's output."""
        return self._ended(module, index, self._stream[index])

    def after_original(self, module: nn.Module, index: int) -> Any:
        """The same on the original stream."""
        return self._ended(module, index, self._original[index])

    def _ended(self, module: nn.Module, index: int, stream: Tensor) -> Any:
        stream = stream.clone() if self._end_copied else stream

        def stub(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            x = stream if name == self._blocks[-1] else _taken(args, kwargs, self._place[name])[0]
            return filled(self._shape.get(name), x)

        with replaced(module, self._blocks, partial(_stub, stub)):
            return self._forward(module, self._batches[index])


def _stub(stub: Callable[..., Any], *lead: Any) -> Callable[..., Any]:
    """A forward that hands its arguments to ``stub`` as they are."""
    return lambda *args, **kwargs: stub(*lead, args, kwargs)


@contextmanager
def replaced(module: nn.Module, blocks: Sequence[str], make: Callable[[str], Any]) -> Iterator[None]:
    """The blocks with other forwards for a while."""
    layers = [(name, module.get_submodule(name)) for name in blocks]
    before = {name: layer.__dict__.get("forward") for name, layer in layers}
    try:
        for name, layer in layers:
            layer.__dict__["forward"] = make(name)
        yield
    finally:
        for name, layer in layers:
            if before[name] is None:
                layer.__dict__.pop("forward", None)
            else:
                layer.__dict__["forward"] = before[name]


def _taken(
    args: tuple[Any, ...], kwargs: dict[str, Any], place: int | str | None
) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
    """The stream, and the arguments without it."""
    if isinstance(place, int):
        return args[place], (*args[:place], None, *args[place + 1 :]), kwargs
    if place is None:
        raise ValueError("a block without an input")
    return kwargs[place], args, {key: value for key, value in kwargs.items() if key != place}


def _given(
    args: tuple[Any, ...], kwargs: dict[str, Any], place: int | str | None, x: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with the stream in its place."""
    if isinstance(place, int):
        return (*args[:place], x, *args[place + 1 :]), kwargs
    return args, {**kwargs, str(place): x}


def filled(shape: Any, x: Tensor) -> Any:
    """A value like ``shape`` whose first tensor is ``x``."""
    if isinstance(shape, tuple) and shape:
        return (filled(shape[0], x), *shape[1:])
    if isinstance(shape, list) and shape:
        return [filled(shape[0], x), *shape[1:]]
    return x
