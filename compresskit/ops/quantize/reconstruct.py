"""Rounding by reconstruction: codes and scales of a block are learnt so that its output stays what it was.

"Up or Down? Adaptive Rounding for Post-Training Quantization" (AdaRound; Nagel et al., 2020) learns for each weight
whether it is rounded up or down; "BRECQ" (Li et al., 2021) does so for all weights of a block at once, against the
block's output; "Optimize Weight Rounding via Signed Gradient Descent" (SignRound; Cheng et al., 2023) learns a shift in
front of the rounding instead of a soft decision, and scales along with it. The last is what is done here, with Adam:
it needs a tenth of the steps, and what is learnt is at every step what is stored. Steps by the signs of the gradients,
as in SignRound and its program AutoRound, gained less here, from plain codes and from GPTQ's. Left out: BRECQ's Fisher
weights, SignRound's learnt zero points.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compresskit.errors import InputError
from compresskit.ops.calibration.sequential import Segment
from compresskit.ops.calibration.trace import tensors_in
from compresskit.ops.packed.grid import Packed, unpack
from compresskit.ops.quantize.fake import FakeWeight, faked

_INSIDE, _CALIBRATED = 0.499, 0.45
"""How far from a code's middle a weight may start and still be rounded to it: after plain rounding, and where
calibration moved codes away from their weights. At the edge a first step, of whatever size, would undo that."""


@dataclass(frozen=True)
class Effort:
    """How long and how fast a block is learnt.

    Attributes:
        steps: Of Adam, each on one batch.
        lr: Of the shifts, in steps of the grid; falls to zero along a cosine.
        scale_lr: Of the scales, as a fraction of what they are.
        norm_lr: Of the affine parameters of normalization layers and of biases; 0 leaves them.
        seed: Of the order of the batches.
        calibrated: Codes to start from aren't those nearest to the weights.
    """

    steps: int = 300
    lr: float = 1e-2
    scale_lr: float = 1e-3
    norm_lr: float = 1e-3
    seed: int = 0
    calibrated: bool = False


class Shifted(FakeWeight):
    """A weight whose rounding is learnt: a shift of at most half a step in front of it.

    Args:
        start: Where it begins: exactly these codes.
        weight: The original weight.
        term: What is added to what the codes stand for, in the weight's shape; None for nothing.
        inside: How far from its code's middle a weight may begin, below 0.5.
    """

    at: Tensor
    term: Tensor | None

    def __init__(self, start: Packed, weight: Tensor, term: Tensor | None = None, *, inside: float = _INSIDE) -> None:
        super().__init__(start)
        codes = _codes(start)
        self.register_buffer("term", term)
        place = (
            self.grouped(weight.detach() if term is None else weight.detach() - term)
            / start.scales.float().unsqueeze(-1)
            + self.zero
        )
        self.register_buffer("at", codes + (place - codes).clamp(-inside, inside))
        self.shift = nn.Parameter(torch.zeros_like(self.at))

    def forward(self, weight: Tensor) -> Tensor:
        """See :class:`FakeWeight`; with the term."""
        found = super().forward(weight)
        return found if self.term is None else found + self.term.to(found.dtype)

    def place(self, weight: Tensor) -> Tensor:
        """See :class:`FakeWeight`; the original weight has had its say."""
        return self.at + self.shift.clamp(-0.5, 0.5)


def reconstruct(
    segment: Segment,
    start: Mapping[str, Packed],
    effort: Effort,
    progress: Callable[[int, int], None],
    terms: Mapping[str, Tensor] = {},
) -> dict[str, Packed]:
    """Learn the rounding of a segment's layers.

    Args:
        segment: Of a calibration that carries the original stream; its layers still have their original weights. Affine
            parameters of its normalization layers and biases are changed in place if ``effort`` says so.
        start: Where each layer begins, by full name.
        effort: How long.
        progress: Called with the steps done and all steps.
        terms: What is added to the weights of some layers, by full name; stays as it is.

    Returns:
        The weights as learnt; those of ``start`` where learning made the segment's output no better.

    Raises:
        InputError: The block's output isn't finite on the calibration data.
    """
    layers = {name: segment.layer(name) for name in start}
    targets = [_output(segment.replay_original(index)) for index in range(segment.batches)]
    power = torch.stack([t.float().square().mean() for t in targets]).mean()
    if not power.isfinite():
        raise InputError(f"'{segment.name or 'the model'}' gives NaN or Inf on the calibration data")
    scale = 1 / power.clamp_min(1e-12)
    inside = _CALIBRATED if effort.calibrated else _INSIDE
    fakes = {
        name: Shifted(packed, layers[name].get_parameter("weight"), terms.get(name), inside=inside)
        for name, packed in start.items()
    }
    with _frozen(segment.module), faked(layers, fakes):
        others = _affine(segment.module, layers) if effort.norm_lr else []
        before = [p.detach().clone() for p in others]
        first = _error(segment, targets)
        _learn(segment, targets, scale, list(fakes.values()), others, effort, progress)
        better = _error(segment, targets) <= first
        if not better:
            for parameter, value in zip(others, before, strict=True):
                parameter.data.copy_(value)
        found = {name: fake.packed(fake.at) for name, fake in fakes.items()} if better else dict(start)
    return found


def _learn(
    segment: Segment,
    targets: Sequence[Tensor],
    scale: Tensor,
    fakes: Sequence[Shifted],
    others: Sequence[nn.Parameter],
    effort: Effort,
    progress: Callable[[int, int], None],
) -> None:
    for parameter in (*others, *(p for fake in fakes for p in fake.parameters())):
        parameter.requires_grad_(True)
    groups = [{"params": [fake.shift for fake in fakes], "lr": effort.lr}]
    groups += [{"params": [f.scale], "lr": effort.scale_lr * float(f.scale.detach().mean())} for f in fakes]
    groups += [{"params": list(others), "lr": effort.norm_lr}] if others else []
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, effort.steps)
    order = _order(segment.batches, effort)
    # x += f(x) leaves torch without the x that gradients need, unless it is told to keep what is written over.
    kept = torch.autograd.graph.allow_mutation_on_saved_tensors() if segment.writes else nullcontext()
    with torch.enable_grad(), kept:
        for step, index in enumerate(order, 1):
            optimizer.zero_grad()
            error = _squared(_output(segment.replay(index)), targets[index], segment.keep[index])
            if not error.requires_grad:
                return  # the output doesn't depend on the layers in a way that can be learnt
            torch.autograd.backward(error * scale)
            optimizer.step()
            schedule.step()
            progress(step, effort.steps)


def _order(batches: int, effort: Effort) -> Iterator[int]:
    """Batch numbers: all of them in a new order again and again."""
    generator = torch.Generator().manual_seed(effort.seed)
    done = 0
    while done < effort.steps:
        for index in torch.randperm(batches, generator=generator)[: effort.steps - done].tolist():
            done += 1
            yield index


def _error(segment: Segment, targets: Sequence[Tensor]) -> float:
    found = (_squared(_output(segment.replay(i)), target, segment.keep[i]).item() for i, target in enumerate(targets))
    return sum(found) / len(targets)


def _squared(found: Tensor, target: Tensor, keep: Tensor | None) -> Tensor:
    error = (found - target).float().square()
    return error[keep].mean() if keep is not None and error.shape[:2] == keep.shape else error.mean()


def _output(value: object) -> Tensor:
    """The first floating tensor; the first of all where none is."""
    found = list(tensors_in(value))
    return next((t for t in found if t.is_floating_point()), found[0])


def _affine(module: nn.Module, layers: Mapping[str, nn.Module]) -> list[nn.Parameter]:
    """Biases of the layers that are quantized, and what normalization layers multiply by and add."""
    quantized = {id(layer) for layer in layers.values()}
    found: list[nn.Parameter] = []
    for layer in module.modules():
        named = dict(layer.named_parameters(recurse=False))
        found += [p for key, p in named.items() if key == "bias" and id(layer) in quantized]
        if "Norm" in type(layer).__name__:
            found += [p for p in named.values() if p.dim() == 1]
    return list(dict.fromkeys(found))


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """No parameter of the module takes gradients; as before afterwards, without any left."""
    before = [(p, p.requires_grad) for p in module.parameters()]
    try:
        for parameter, _ in before:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, wanted in before:
            parameter.requires_grad_(wanted)
            parameter.grad = None


def _codes(packed: Packed) -> Tensor:
    _, size, _ = packed.grid.layout(torch.Size(packed.shape[1:]).numel())
    return unpack(packed.codes, packed.grid.bits, size).float()
