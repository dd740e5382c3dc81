"""Weight-only quantization with calibration data: block by block, each layer by what its inputs are by then."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from compresskit.errors import InputError, listing
from compresskit.facts import read_facts
from compresskit.facts.quantize import QuantizeFacts
from compresskit.ops.calibration.activation_stream import Batch, Forward
from compresskit.ops.calibration.gram import corrected
from compresskit.ops.calibration.moments import Moments, collectable
from compresskit.ops.calibration.sequential import Segment, run_sequentially
from compresskit.ops.calibration.trace import Trace, trace
from compresskit.ops.packed.grid import Grid, Packed, dequantize
from compresskit.ops.packed.modules import PackedLinear, packed_twin, set_module
from compresskit.ops.quantize.awq import scale_group
from compresskit.ops.quantize.eora import Repair, repaired, term
from compresskit.ops.quantize.kept_blocks import KeptBlocks
from compresskit.ops.quantize.opened import opened
from compresskit.ops.quantize.rtn import quantize_rtn
from compresskit.ops.quantize.select import Selection
from compresskit.ops.quantize.weights import Layers, add_extras, empty, fact, named, packed_at, plan_layers
from compresskit.ranks import ALONE, Part, Ranks

Calibrated = Callable[[Tensor, Grid, Moments], Packed]
DataFree = Callable[[Tensor, Grid], Packed]
Learn = Callable[[Segment, Mapping[str, Packed]], Mapping[str, Packed]]
Tune = Callable[[Segment, Mapping[str, Packed], Mapping[str, Tensor]], Mapping[str, Packed]]
Progress = Callable[[str, int, int], None]

_PIECE = 1 << 24
"""Weights of a layer that are worked on at once, where its rows may be parted."""


@dataclass(frozen=True)
class Method:
    """How layers are quantized.

    Attributes:
        calibrated: For layers whose inputs are known.
        free: For the others: embeddings, and what calibration never reached.
        drift: How much of what earlier layers lost is compensated, 0 to 1; above 0 the original model's activations
            are carried along.
        repair: Rank of the low-rank repair; 0 for none.
        scale: Scale each group of Linear layers that share an input, as AWQ does.
        learn: Called with each segment and plainly rounded weights of its layers, by full name; gives better ones.
            The original model's activations are carried along. Tied layers go without.
        tune: The same, called with what ``calibrated`` gave, and the low-rank terms beside it as matrices.
        kept: Where the first process keeps blocks, so that a run that was killed goes on; for methods that change
            nothing but the layers they quantize. None keeps nothing.
        by_rows: Rows are rounded each for itself, so those of a large weight are worked on in pieces.
        spares: A layer whose weight can't be quantized stays as it is; else that is an error. In one process only.
    """

    calibrated: Calibrated
    free: DataFree = quantize_rtn
    drift: float = 0.0
    repair: int = 0
    scale: bool = False
    learn: Learn | None = None
    tune: Tune | None = None
    kept: KeptBlocks | None = None
    by_rows: bool = False
    spares: bool = False


@dataclass
class _Run:
    """One quantization; collects what the card records."""

    module: nn.Module
    plan: Layers
    method: Method
    progress: Progress
    found: Trace | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    free: list[str] = field(default_factory=list)
    spared: dict[str, str] = field(default_factory=dict)
    kept: KeptBlocks | None = None
    ranks: Ranks = ALONE

    def step(self, segment: Segment) -> None:
        """Quantize the layers of a segment, or take them from an earlier run."""
        if self.kept is None:
            self._quantize(segment)
            return
        done, free = set(self.facts), len(self.free)
        if not self._restored(self.kept):
            self._quantize(segment)
            if self.ranks.rank == 0:
                self.kept.save(*self._made([name for name in self.facts if name not in done], free))
        self.kept = self.kept.next

    def _restored(self, kept: KeptBlocks) -> bool:
        """Take the layers of a block that the first process finds on its disk."""
        found: list[Part] = []

        def load(_block: str) -> Part:
            found.append(kept.load() or ({}, {}))
            return found[0]

        self.ranks.shared({"block": 1}, load, found.append)
        if not found[0][0]:
            return False
        self._take(found[0], str(kept.folder))
        return True

    def _made(self, names: Iterable[str], free: int) -> Part:
        """Layers as they are stored, with those of them that were rounded without data from number ``free`` on."""
        facts = {"layers": {name: self.facts[name] for name in names if name in self.facts}, "free": self.free[free:]}
        return facts, {k: v for name in facts["layers"] for k, v in _state(name, self.module).items()}

    def _take(self, made: Part, origin: str = "another process") -> None:
        """Put layers in place that were quantized elsewhere."""
        facts, tensors = made
        layers = read_facts(QuantizeFacts, {"layers": facts["layers"], "ties": {}}, origin).layers
        for name, known in layers.items():
            owner = self.plan.ties.get(name, name)
            own = {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.rpartition(".")[0] == name}
            packed = packed_at(self.module, owner) if owner != name else empty(known, self.plan.grids[name])
            twin = packed_twin(self.plan.layers[name], packed)
            add_extras(twin, known)
            twin.load_state_dict(own)
            set_module(self.module, name, twin)
        self.facts |= facts["layers"]
        self.free += facts["free"]
        self._tell()

    def _quantize(self, segment: Segment) -> None:
        """Quantize the layers of a segment, those that share an input together."""
        if self.method.learn is not None:
            self._learned(segment, self.method.learn)
        for group in segment.groups:
            names = [name for name in group if not self._is_done(name) and not self._waits(name)]
            if not names:
                continue
            self._group(segment, names)
        if self.method.tune is not None and segment.original is not None:
            self._tuned(segment, self.method.tune)

    def _group(self, segment: Segment, names: Sequence[str]) -> None:
        """Quantize layers that share an input."""
        moments = segment.moments(names, cross=self.method.drift > 0)
        input_scale: Tensor | None = None
        known = [n for n in names if n in moments and isinstance(segment.layer(n), nn.Linear)]
        weights = {name: segment.layer(name).weight for name in known}
        if self.method.scale and self.found is not None and not any(map(self._tied, known)):
            scaled = scale_group(segment, known, moments, self.plan.grids, self.found)
            moments, input_scale = scaled.moments, scaled.input_scale
        self._split(names, lambda n: self.layer(n, moments.get(n), input_scale if n in known else None))
        for name, weight in weights.items():
            self.plan.layers[name].weight = weight  # a scaled one is packed, and takes memory

    def _split(self, names: Sequence[str], quantize: Callable[[str], None]) -> None:
        """Quantize layers that don't depend on each other, with those that share their weights, in some process."""

        def make(name: str) -> Part:
            free = len(self.free)
            quantize(name)
            tied = self._tied(name)
            return self._made([self.plan.ties.get(name, name), *tied] if tied else [name], free)

        start = len(self.free)
        costs = {name: self.plan.layers[name].get_parameter("weight").numel() for name in names}
        self.ranks.shared(costs, make, self._take)
        order = [self.plan.ties.get(name, name) for name in names]
        self.free[start:] = sorted(self.free[start:], key=order.index)  # as one process finds them

    def _is_done(self, name: str) -> bool:
        return name in self.facts or name in self.spared

    def _tuned(self, segment: Segment, tune: Tune) -> None:
        """Improve the layers of a segment together; those with an input scale or a tie stay as they are."""
        start: dict[str, Packed] = {}
        repairs: dict[str, Repair] = {}
        for name in (n for group in segment.groups for n in group if n in self.facts and not self._tied(n)):
            layer, original = self.module.get_submodule(name), self.plan.layers[name]
            if not collectable(original) or self.facts[name].get("input_scale"):
                continue
            start[name] = packed_at(self.module, name)
            if isinstance(layer, PackedLinear) and layer.repair_in is not None and layer.repair_out is not None:
                repairs[name] = layer.repair_in, layer.repair_out
            set_module(self.module, name, original)
        better = tune(segment, start, {name: term(repair) for name, repair in repairs.items()}) if start else {}
        for name, packed in better.items():
            self._place(name, packed, self.plan.layers[name].get_parameter("weight"), repairs.get(name))

    def _learned(self, segment: Segment, learn: Learn) -> None:
        """Quantize the untied layers of a segment together."""
        names = [n for group in segment.groups for n in group if n not in self.facts and not self._tied(n)]
        weights = {n: self.plan.layers[n].get_parameter("weight") for n in names if n not in self.plan.ties}
        weights = {n: w for n, w in weights.items() if not isinstance(self.plan.layers[n], nn.Embedding)}
        if not weights:
            return
        start = {n: named(n, partial(self.method.free, w, self.plan.grids[n])) for n, w in weights.items()}
        for name, packed in learn(segment, start).items():
            self._place(name, packed, weights[name])
        self._tell()

    def layer(self, name: str, moments: Moments | None, input_scale: Tensor | None = None) -> None:
        """Quantize one layer, and those that share its weight."""
        try:
            self._layer(name, moments, input_scale)
        except InputError as error:
            if not self.method.spares:
                raise
            family = {self.plan.ties.get(name, name), *self._tied(name)}
            self.free = [free for free in self.free if free not in family]
            self.spared |= dict.fromkeys(family, f"left as it was: {error.message.partition(': ')[2]}")

    def _layer(self, name: str, moments: Moments | None, input_scale: Tensor | None) -> None:
        tied = self._tied(name)
        if not tied:
            self._alone(name, moments, input_scale)
            return
        owner = self.plan.ties.get(name, name)
        layer = self.plan.layers[owner]
        weight, grid = layer.get_parameter("weight"), self.plan.grids[owner]
        if moments is None:
            packed = named(owner, partial(self.method.free, weight, grid))
            self.free.append(owner)
        else:
            packed = named(owner, partial(self.method.calibrated, weight, grid, _shared(moments)))
        self._place(owner, packed, weight)
        for other in tied:
            self.facts[other] = self.facts[owner]
            set_module(self.module, other, packed_twin(self.plan.layers[other], packed_at(self.module, owner)))
        self._tell()

    def rest(self) -> list[str]:
        """Quantize what calibration never came to; gives the names of those that calibration should have reached."""
        missed = [name for name in self.plan.layers if not self._is_done(name)]
        self._split([name for name in missed if name not in self.plan.ties], partial(self.layer, moments=None))
        return [name for name in missed if collectable(self.plan.layers[name])]

    def _alone(self, name: str, moments: Moments | None, input_scale: Tensor | None) -> None:
        layer, grid = self.plan.layers[name], self.plan.grids[name]
        weight = layer.get_parameter("weight")
        biased = layer._parameters.get("bias") is not None
        seen = moments.centred() if moments is not None and biased else moments
        if seen is None:
            self.free.append(name)

        def aimed(part: Tensor) -> Tensor:
            return part if seen is None else named(name, partial(corrected, part.float(), seen, self.method.drift))

        def rounded(part: Tensor) -> Packed:
            round_ = partial(self.method.free, part, grid)
            return named(name, round_ if seen is None else partial(self.method.calibrated, part, grid, seen))

        repair: Repair | None = None
        if self.method.repair and isinstance(layer, nn.Linear):
            packed, repair = repaired(aimed(weight.detach()).float(), self.method.repair, seen, rounded)
        elif seen is not None and self.method.by_rows and isinstance(layer, nn.Linear):
            step = max(1, _PIECE // weight.shape[1])
            parts = (weight.detach()[start : start + step] for start in range(0, len(weight), step))
            packed = Packed.stacked([rounded(aimed(part)) for part in parts])
        else:
            packed = rounded(aimed(weight.detach()))
        if moments is not None and biased:
            found = dequantize(packed) if repair is None else dequantize(packed) + term(repair)
            correct_bias(layer, weight, found, moments, self.method.drift)
        self._place(name, packed, weight, repair, input_scale)
        self._tell()

    def _place(
        self, name: str, packed: Packed, weight: Tensor, repair: Repair | None = None, scale: Tensor | None = None
    ) -> None:
        layer = self.plan.layers[name]
        twin = packed_twin(layer, packed)
        if isinstance(twin, PackedLinear):
            twin.repair_in, twin.repair_out = repair or (None, None)
            twin.input_scale = scale
        self.facts[name] = fact(type(layer).__name__, packed, weight, twin)
        set_module(self.module, name, twin)

    def _tied(self, name: str) -> list[str]:
        """The layers that follow the owner of this layer's weight."""
        owner = self.plan.ties.get(name, name)
        return [other for other, first in self.plan.ties.items() if first == owner]

    def _waits(self, name: str) -> bool:
        """True for a layer without moments whose weight a later layer with moments shares."""
        family = {self.plan.ties.get(name, name), *self._tied(name)}
        return not collectable(self.plan.layers[name]) and any(collectable(self.plan.layers[n]) for n in family)

    def _tell(self) -> None:
        self.progress("quantize", len(self.facts), len(self.plan.layers))


def _state(name: str, module: nn.Module) -> dict[str, Tensor]:
    return {f"{name}.{part}": tensor for part, tensor in module.get_submodule(name).state_dict().items()}


def _shared(moments: Moments) -> Moments:
    """For a weight that is read by rows too (an embedding): half the weight goes to plain squared errors."""
    gram = moments.gram
    level = gram.diagonal(dim1=1, dim2=2).mean()
    return Moments(gram + level * torch.eye(gram.shape[1]), moments.mean, moments.count)


@torch.no_grad()
def correct_bias(layer: nn.Module, weight: Tensor, found: Tensor, moments: Moments, drift: float) -> None:
    """Move the layer's bias by the mean error of its output, and by what earlier layers' errors add to it."""
    bias = layer._parameters.get("bias")
    if bias is None:
        return
    parts, columns = moments.mean.shape
    original = weight.detach().float().reshape(parts, -1, columns)
    error: Tensor = (original - found.float().reshape(original.shape)) @ moments.mean.unsqueeze(2)
    if moments.drift is not None:
        error = error + drift * (original @ moments.drift.unsqueeze(2))
    bias.add_(error.reshape(-1).to(bias.dtype))


def quantize_calibrated(
    module: nn.Module,
    selection: Selection,
    method: Method,
    batches: Sequence[Batch],
    forward: Forward,
    progress: Progress,
    ranks: Ranks = ALONE,
) -> tuple[dict[str, Any], dict[str, str]]:
    """Replace the module's layers by packed ones, in place.

    Args:
        module: In eval mode.
        selection: Which layers, and their grids.
        method: The algorithm, with its options.
        batches: Calibration inputs by name; without any, every layer is quantized data-free.
        forward: Calls the module with a batch.
        progress: Called after each layer.
        ranks: Processes that share the layers; each walks the activations, and holds all layers in the end. Not for
            methods with ``scale``, ``learn`` or ``tune``.

    Returns:
        The facts, as those of :func:`~compresskit.ops.quantize.weights.quantize_module` with ``notes``, and the layers
        left alone with the reason.

    Raises:
        UsageError: A pattern matches nothing.
        InputError: There is no layer that could be quantized, or its inputs hold NaN or Inf.
    """
    with opened(module):
        plan = plan_layers(module, selection)
        run = _Run(module, plan, method, progress, kept=method.kept, ranks=ranks)
        if batches:
            with torch.no_grad():
                run.found = trace(module, partial(forward, module, batches[0]))
            original = method.drift > 0 or method.learn is not None or method.tune is not None
            run_sequentially(module, batches, forward, list(plan.layers), run.step, original=original, found=run.found)
        missed = run.rest()
        ordered = {name: run.facts[name] for name in plan.layers if name in run.facts}
        if not ordered:
            name, reason = next(iter(run.spared.items()))
            raise InputError(f"none of {len(run.spared)} layers can be quantized; '{name}': {reason}")
        ties = {name: owner for name, owner in plan.ties.items() if name in ordered}
        notes = list(_notes(run, missed)) if batches else []
        return {"layers": ordered, "ties": ties, "notes": notes}, plan.skipped | run.spared


def _notes(run: _Run, missed: Sequence[str]) -> Iterable[str]:
    reasons: dict[str, list[str]] = {}
    for name in [*run.free, *(n for n in missed if n not in run.free)]:
        layer = run.plan.layers[name]
        if isinstance(layer, nn.Embedding):
            reason = "they only look rows up"
        elif not collectable(layer):
            reason = "their inputs can't be written as rows"
        else:
            reason = "the first batch didn't reach them" if name in missed else "no sample reached them"
        reasons.setdefault(reason, []).append(name)
    for reason, names in reasons.items():
        yield f"rounded without calibration because {reason}: {listing(names)}"
