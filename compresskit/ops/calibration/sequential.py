"""Calibration block by block: memory is one block with its inputs, and later blocks see the quantized earlier ones.

A model is cut into segments: what runs before its chain of blocks
(:func:`~compresskit.ops.calibration.trace.chain`), each block, and what runs after. A model without such a chain is one
segment.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from compresskit.ops.calibration.activation_stream import ActivationStream, Batch, Forward, Stop
from compresskit.ops.calibration.moments import Collector, Moments, collectable
from compresskit.ops.calibration.trace import Trace, chain, tensors_in, trace

Replay = Callable[[nn.Module, int], Any]


_KEPT = 1 << 30
"""Bytes of a block's original activations that are kept, rather than recomputed for each of its layers."""


@dataclass
class Segment:
    """One step of the sequential calibration.

    Attributes:
        name: The block's dotted name; ``""`` for what lies outside the chain, or the whole model.
        root: The whole model; layers are to be replaced in it, in place.
        groups: Full names of the layers to quantize, in the order of their calls, those that share an input together.
        batches: Number of calibration batches.
        keep: For each batch, bool ``(batch, tokens)``, False for padding; None where there is none.
        original: The segment as it was before anything in it was quantized, if asked for.
        calls: How often each layer is called in one pass.
        copied: Modules whose inputs are written into in the pass: what is kept of them is copied.
    """

    name: str
    root: nn.Module
    groups: list[list[str]]
    batches: int
    keep: list[Tensor | None]
    original: nn.Module | None = None
    calls: Mapping[str, int] = field(default_factory=dict)
    copied: Collection[str] = ()
    _kept: dict[int, dict[str, list[Tensor]]] = field(default_factory=dict, repr=False)
    _run: Replay = field(default=lambda _module, _index: None, repr=False)
    _run_original: Replay | None = field(default=None, repr=False)

    @property
    def is_block(self) -> bool:
        """True for a block of the chain: its output is a function of its input alone."""
        return bool(self.name)

    @property
    def module(self) -> nn.Module:
        """The block as it is now, or the whole model."""
        return self.root.get_submodule(self.name)

    @property
    def writes(self) -> bool:
        """True where something in the segment writes into what a module was given."""
        return any(_inside(name, self.name) for name in self.copied)

    def local(self, name: str) -> str:
        """A layer's name within :attr:`module`; empty where the block is the layer."""
        return name[len(self.name) :].removeprefix(".")

    def layer(self, name: str) -> nn.Module:
        """A layer by its full name."""
        return self.root.get_submodule(name)

    def replay(self, index: int) -> Any:
        """Run the segment on batch ``index``, as the quantized model so far would; gives its output.

        What lies before the chain gives the stream in front of the first block, what lies after it the model's output.
        """
        return self._run(self.module, index)

    def replay_original(self, index: int) -> Any:
        """Run the original segment on what the original model gives it."""
        if self._run_original is None or self.original is None:
            raise ValueError("the calibration doesn't carry the original stream")
        return self._run_original(self.original, index)

    def moments(self, names: Sequence[str], *, cross: bool = False) -> dict[str, Moments]:
        """Moments of the inputs of some layers; layers that share an input share the result.

        Args:
            names: Full names; those that aren't
                :func:`~compresskit.ops.calibration.moments.collectable` are left out.
            cross: Collect ``cross`` too, if the calibration carries the original stream.
        """
        wanted = [group for group in self._shared(names) if collectable(self.layer(group[0]))]
        collectors = {group[0]: Collector(self.layer(group[0])) for group in wanted}
        locals_ = {self.local(name): name for name in collectors}
        both = cross and self._run_original is not None
        for index in range(self.batches):
            before = self._originals(index) if both else {}
            for name, found in self._inputs(self.module, locals_, partial(self.replay, index)).items():
                originals = before.get(name, [])
                same = len(originals) == len(found)  # not where routing depends on the data
                for call, x in enumerate(found):
                    collectors[locals_[name]].add(x, self.keep[index], originals[call] if same else None)
        result: dict[str, Moments] = {}
        for group in wanted:
            moments = collectors[group[0]].moments()
            if moments is not None:
                result |= dict.fromkeys(group, moments)
        return result

    def _originals(self, index: int) -> dict[str, list[Tensor]]:
        """What the original segment's layers take in on one batch, by local name; kept while all of it is small."""
        if index not in self._kept:
            names = {self.local(n): n for group in self.groups for n in group if collectable(self.layer(n))}
            found = self._inputs(self.original, names, partial(self.replay_original, index), whole=True)
            size = sum({id(x): x.numel() * x.element_size() for xs in found.values() for x in xs}.values())
            if size * self.batches > _KEPT:
                return found
            self._kept[index] = found
        return self._kept[index]

    def _inputs(
        self, module: nn.Module | None, names: Mapping[str, str], run: Callable[[], Any], *, whole: bool = False
    ) -> dict[str, list[Tensor]]:
        """The inputs that some layers (local name to full name) get in one run; without ``whole`` it may end there."""
        found: dict[str, list[Tensor]] = {}
        if module is None:
            return found
        left = len(names)
        whole = whole or not self.is_block or any(self.calls.get(name, 0) != 1 for name in names.values())

        def hook(name: str, _layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            nonlocal left
            x = next(tensors_in((args, kwargs)))
            # Of layers that the trace missed (experts) nobody knows; the model itself may write into what they got.
            keep = names[name] not in self.copied and names[name] in self.calls
            found.setdefault(name, []).append(x if keep else x.clone())
            left -= 1
            if not left and not whole:
                raise Stop

        with ExitStack() as stack:
            stack.enter_context(suppress(Stop))
            for name in names:
                layer = module.get_submodule(name)
                handle = layer.register_forward_pre_hook(partial(hook, name), with_kwargs=True)
                stack.callback(handle.remove)
            run()
        return found

    def _shared(self, names: Sequence[str]) -> list[list[str]]:
        """The names by shared input; layers whose inputs are cut differently (convolutions) stay alone."""
        shared: list[list[str]] = []
        for group in self.groups:
            here = [n for n in group if n in names]
            linear = [n for n in here if isinstance(self.layer(n), nn.Linear)]
            shared += [linear] if linear else []
            shared += [[n] for n in here if n not in linear]
        return shared


@torch.no_grad()
def run_sequentially(
    module: nn.Module,
    batches: Sequence[Batch],
    forward: Forward,
    names: Sequence[str],
    step: Callable[[Segment], None],
    *,
    original: bool = False,
    found: Trace | None = None,
) -> None:
    """Hand the segments of a model to ``step``, in order; ``step`` replaces their layers in place.

    Args:
        module: In eval mode.
        batches: Calibration inputs by name.
        forward: Calls the module with a batch.
        names: The layers that will be quantized.
        step: Called for each segment that holds any of them, without gradients.
        original: Carry what the original model computes beside what the quantized one does; takes twice the memory.
        found: The trace of the module, if there is one already.

    Raises:
        Exception: Whatever the module's forward raises.
    """
    found = trace(module, partial(forward, module, batches[0])) if found is None else found
    blocks = chain(module, found)
    make = partial(
        Segment,
        root=module,
        batches=len(batches),
        keep=[_mask(batch) for batch in batches],
        calls=Counter(call.name for call in found.calls),
        copied=found.inputs_overwritten(),
    )
    if blocks:
        _Chain(module, ActivationStream(module, forward, batches, blocks, found), blocks, found, make).run(
            names, step, original=original
        )
        return

    def run(target: nn.Module, index: int) -> Any:
        return forward(target, batches[index])

    step(make("", groups=found.groups(names), **_runs(run, run, copy.deepcopy(module) if original else None)))


@dataclass(frozen=True)
class _Chain:
    """A model with a chain of blocks: what lies before them, each of them, and what lies after them."""

    module: nn.Module
    stream: ActivationStream
    blocks: Sequence[str]
    found: Trace
    make: Callable[..., Segment]

    def run(self, names: Sequence[str], step: Callable[[Segment], None], *, original: bool) -> None:
        stem, tail = self._outside(names)
        stream = self.stream
        outside: nn.Module | None = None
        if original:
            stream.start_original()
            # The blocks are shared: outside of them the twin is what the model was.
            blocks = map(self.module.get_submodule, self.blocks)
            outside = copy.deepcopy(self.module, {id(block): block for block in blocks})
        if stem:
            step(self.make("", groups=stem, **_runs(stream.before, stream.before, outside)))
        stream.start()
        for name in self.blocks:
            self._block(name, [n for n in names if _inside(n, name)], step, original=original)
        if tail:
            step(self.make("", groups=tail, **_runs(stream.after, stream.after_original, outside)))

    def _outside(self, names: Sequence[str]) -> tuple[list[list[str]], list[list[str]]]:
        """The groups of layers that are called before the first block, and after the last."""
        order = [call.name for call in self.found.calls]
        start, end = order.index(self.blocks[0]), order.index(self.blocks[-1])
        groups = self.found.groups(n for n in names if not any(_inside(n, block) for block in self.blocks))
        return [g for g in groups if order.index(g[0]) < start], [g for g in groups if order.index(g[0]) > end]

    def _block(self, name: str, own: Sequence[str], step: Callable[[Segment], None], *, original: bool) -> None:
        block = self.module.get_submodule(name)
        if not own:
            self.stream.advance(name, block if original else None)
            return
        # Layers that the traced batch missed (experts) may be reached by another one.
        traced = {call.name for call in self.found.calls}
        groups = self.found.groups(own) + [[n] for n in own if n not in traced]
        twin = copy.deepcopy(block) if original else None
        runs = _runs(partial(self.stream.run, name), partial(self.stream.run_original, name), twin)
        step(self.make(name, groups=groups, **runs))
        self.stream.advance(name, twin)


def _runs(run: Replay, run_original: Replay, original: nn.Module | None) -> dict[str, Any]:
    """How a segment is run, and what it was, where that is carried along."""
    return {"original": original, "_run": run, "_run_original": None if original is None else run_original}


def _inside(name: str, block: str) -> bool:
    return not block or name == block or name.startswith(f"{block}.")


def _mask(batch: Batch) -> Tensor | None:
    mask = batch.get("attention_mask")
    return mask.bool() if mask is not None and mask.dim() == 2 and not mask.bool().all() else None
