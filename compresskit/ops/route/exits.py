"""Early exits in a classifier: heads behind some of its blocks; a pass ends at the first confident one.

After "BranchyNet" (Teerapittayanon et al., 2016) and "Shallow-Deep Networks" (Kaya et al., 2019), with the largest
softmax probability as confidence. The module stays what it is: its class gets a subclass with another ``forward``, and
each block that has an exit holds its head as ``exit``, so no tensor of the body changes its name.

A sample's answer is that of the first exit that is confident about it, whatever else is in its batch. The pass ends
when every sample of the batch has an answer.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compresskit.errors import InputError
from compresskit.facts.route import ExitFacts
from compresskit.ops.calibration.trace import tensors_in
from compresskit.ops.packed.modules import layer_of_card

HEAD = "exit"
"""Name of a head in its block."""
PLACEHOLDER = "compresskit::Exits"
"""The operator that an export emits: the last logits, then those of each exit; ``thresholds`` is its attribute."""


class ExitHead(nn.Module):
    """From what a block gives to logits.

    Args:
        fact: Sizes and form.
        dtype: Of the parameters.
        device: Where they are.
    """

    def __init__(self, fact: ExitFacts, dtype: torch.dtype = torch.float32, device: Any = None) -> None:
        super().__init__()
        self.form, self.pool = fact.form, tuple(fact.pool)
        inside = features(fact)
        where: Any = {"dtype": dtype, "device": device}
        self.convs = _convolutions(fact, where) if fact.convs else None
        self.hidden = nn.Linear(inside, fact.hidden, **where) if fact.hidden else None
        self.last = nn.Linear(fact.hidden or inside, fact.classes, **where)

    def forward(self, given: Tensor, mask: Tensor | None = None) -> Tensor:
        """What the block gave, and the mask of its tokens, to logits ``(n, classes)``."""
        return self.of_kept(self.kept(given, mask))

    def kept(self, given: Tensor, mask: Tensor | None = None) -> Tensor:
        """What the head sees of what the block gave, as far as nothing in it is trained."""
        return given if self.convs is not None else pooled(given, self.form, self.pool, mask)

    def of_kept(self, kept: Tensor) -> Tensor:
        """What :meth:`kept` gave to logits ``(n, classes)``."""
        found = kept if self.convs is None else pooled(self.convs(kept), self.form, self.pool)
        logits: Tensor = self.last(found if self.hidden is None else F.relu(self.hidden(found)))
        return logits


def features(fact: ExitFacts) -> int:
    """How many features the last layers of a head look at."""
    return (fact.convs or [fact.width])[-1] * (2 if fact.form == "tokens" else fact.cells)


def _convolutions(fact: ExitFacts, where: Any) -> nn.Sequential:
    layers, inside = list[nn.Module](), fact.width
    for place, outside in enumerate(fact.convs):
        stride = fact.stride if place == 0 else 1
        layers += [nn.Conv2d(inside, outside, 3, stride, 1, bias=False, **where), nn.BatchNorm2d(outside, **where)]
        layers.append(nn.ReLU())
        inside = outside
    return nn.Sequential(*layers)


def pooled(given: Tensor, form: str, pool: tuple[int, ...], mask: Tensor | None = None) -> Tensor:
    """The features of what a block gives: ``(n, features)``.

    Args:
        given: As ``form`` says.
        form: ``pictures`` are averaged over windows, of ``tokens`` the first and the mean over the real ones is taken.
        pool: Height and width of a window; empty is the whole picture.
        mask: ``(n, length)``, zero at padding.
    """
    if form == "pictures":
        return F.avg_pool2d(given, pool).flatten(1) if pool else given.mean((2, 3))
    if form == "vectors":
        return given
    if mask is None or mask.shape != given.shape[:2]:
        return torch.cat([given[:, 0], given.mean(1)], 1)
    weight = mask.to(given.dtype).unsqueeze(-1)
    return torch.cat([given[:, 0], (given * weight).sum(1) / weight.sum(1).clamp_min(1)], 1)


def confidence(logits: Tensor) -> Tensor:
    """The largest probability of each sample, float32 ``(n,)``."""
    return logits.float().softmax(-1).amax(-1)


@dataclass(frozen=True)
class Exits:
    """Where a module may be left.

    Attributes:
        thresholds: By block, in the order of the pass: the confidence from which on a sample leaves.
        output: The key of the logits in the module's output; None where that is the logits themselves.
    """

    thresholds: Mapping[str, float]
    output: str | None = None


class _Left(BaseException):
    """Every sample has an answer. No error, so that no ``except Exception`` of a model's code takes it for one."""


class WithExits(nn.Module):
    """Mixed into the class of a module with exits.

    Attributes:
        exits: Where it may be left.
        exits_closed: All of it runs, heads included, and gives the last exit's answer.
    """

    exits: Exits
    exits_closed: bool

    def _leaving(self, body: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A pass of the module, whose own code is ``body``."""
        if self.training:
            return body(*args, **kwargs)
        found: list[Tensor] = []
        answer = _Answer(tuple(self.exits.thresholds.values()))
        exporting = torch.compiler.is_exporting()

        def arrived(logits: Tensor) -> None:
            found.append(logits)
            if not (exporting or self.exits_closed) and answer.settled(logits, len(found) - 1):
                raise _Left

        try:
            with watched(self, self.exits.thresholds, (args, kwargs), arrived):
                out = body(*args, **kwargs)
        except _Left:
            return self._as_output(found[-1] if answer.logits is None else answer.logits)
        last = _logits(out, self.exits.output)
        if exporting:
            last = torch.onnx.ops.symbolic(
                PLACEHOLDER, [last, *found], {"thresholds": list(answer.thresholds)}, dtype=last.dtype,
                shape=last.shape, version=1,
            )  # fmt: skip
        elif not self.exits_closed:
            last = answer.with_last(last)
        return self._as_output(last)

    def _as_output(self, logits: Tensor) -> Any:
        return logits if self.exits.output is None else Logits({self.exits.output: logits})


class Logits(dict[str, Tensor]):
    """What a model of transformers gives: its values by key, and as attributes."""

    def __getattr__(self, name: str) -> Tensor:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


@dataclass
class _Answer:
    """The answers of a batch so far."""

    thresholds: tuple[float, ...]
    logits: Tensor | None = None
    sure: Tensor | None = None

    def settled(self, logits: Tensor, place: int) -> bool:
        """Take the answers that an exit is confident about; whether all samples have one."""
        sure = confidence(logits) >= self.thresholds[place]
        self._take(logits)
        self.sure = sure if self.sure is None else self.sure | sure
        return bool(self.sure.all())

    def _take(self, logits: Tensor) -> Tensor:
        if self.logits is not None and self.sure is not None:
            logits = torch.where(self.sure.unsqueeze(-1), self.logits, logits)
        self.logits = logits
        return logits

    def with_last(self, logits: Tensor) -> Tensor:
        """The answers, with the last exit's for those that no other was sure of."""
        return self._take(logits)


@contextmanager
def watched(
    module: nn.Module, blocks: Mapping[str, Any], given: tuple[Any, Any], arrived: Callable[[Tensor], None]
) -> Iterator[None]:
    """Call the heads of some blocks while the module is called."""
    heads = {name: module.get_submodule(name).get_submodule(HEAD) for name in blocks}
    reads = any(isinstance(head, ExitHead) and head.form == "tokens" for head in heads.values())
    mask = mask_in(module, *given) if reads else None

    def hook(block: nn.Module, _args: Any, out: Any) -> None:
        if "forward" in vars(block):
            return  # calibration put a stub in its place, and passes on what is no output of the block
        arrived(block.get_submodule(HEAD)(next(tensors_in(out)), mask))

    with ExitStack() as stack:
        for name in blocks:
            stack.callback(module.get_submodule(name).register_forward_hook(hook).remove)
        yield


def mask_in(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The attention mask among the arguments of a module, as it was given."""
    names = [name for name in inspect.signature(module.forward).parameters if name != "self"]
    found = kwargs.get("attention_mask", dict(zip(names, args, strict=False)).get("attention_mask"))
    return found if isinstance(found, Tensor) and found.dim() == 2 else None


def _logits(out: Any, key: str | None) -> Tensor:
    found: Tensor = out if key is None else out[key]
    return found


def attach(module: nn.Module, layers: Mapping[str, ExitFacts], output: str | None) -> None:
    """Give a module exits, in place: heads without values, and the forward pass that leaves by them.

    Args:
        module: A classifier.
        layers: The exits by block.
        output: See :class:`Exits`.

    Raises:
        InputError: There is no such block, or it has something called ``exit`` already.
    """
    order = sorted(layers, key=lambda name: layers[name].macs)
    for name in order:
        block = layer_of_card(module, name, "has an exit")
        if hasattr(block, HEAD):
            raise InputError(f"block '{name}' has an attribute '{HEAD}' already", "it cannot get an exit")
        like = next((p for p in module.parameters() if p.is_floating_point()), torch.empty(0))
        block.add_module(HEAD, ExitHead(layers[name], like.dtype, like.device).train(block.training))
    module.__class__ = _with_exits(type(module))  # type: ignore[arg-type]
    module.exits = Exits({name: layers[name].threshold for name in order}, output)  # type: ignore[assignment]
    module.exits_closed = False  # type: ignore[assignment]


def keep(module: nn.Module, layers: Mapping[str, ExitFacts]) -> None:
    """Leave a module with some of its exits, and their thresholds; the other heads are removed."""
    if not isinstance(module, WithExits):
        raise TypeError("the module has no exits")
    for name in module.exits.thresholds.keys() - layers.keys():
        delattr(module.get_submodule(name), HEAD)
    found = {name: layers[name].threshold for name in module.exits.thresholds if name in layers}
    module.exits = Exits(found, module.exits.output)


@functools.cache
def _with_exits(base: type[nn.Module]) -> type[nn.Module]:
    """The class of modules of a class that have exits."""

    @functools.wraps(base.forward)
    def forward(self: WithExits, *args: Any, **kwargs: Any) -> Any:
        return self._leaving(functools.partial(base.forward, self), args, kwargs)

    names = {"forward": forward, "__module__": base.__module__, "__qualname__": f"{WithExits.__name__}.{base.__name__}"}
    return type(base.__name__, (WithExits, base), names)


@contextmanager
def closed(module: Any) -> Iterator[None]:
    """Let all of a module run, whatever its exits say: for stages that look at each layer, and for counting."""
    if not isinstance(module, WithExits):
        yield
        return
    before, module.exits_closed = module.exits_closed, True
    try:
        yield
    finally:
        module.exits_closed = before
