"""Exits that are trained and compared: what their heads see of the samples, and what they say of those held out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from compresskit.errors import UsageError
from compresskit.facts.route import ExitFacts
from compresskit.stage import Context

if TYPE_CHECKING:
    from torch import Tensor, nn

    from compresskit.ops.route.places import Places
    from compresskit.ops.route.thresholds import Chosen, Tried
    from compresskit.train.material import Material, Part
    from compresskit.train.training_plan import TrainingPlan

_BATCH = 128
_MEMORY = 4e9
"""Bytes of what heads see, in half precision."""


@dataclass(frozen=True)
class Columns:
    """Tensors of all samples: the features of each place, the last logits, then labels if there are any."""

    columns: list[Tensor]

    @property
    def material(self) -> Material:
        """The same as what training takes."""
        from compresskit.train.material import in_memory

        return in_memory(self.columns)


@dataclass(frozen=True)
class HeldOut:
    """What exits say of the samples that were held out."""

    tried: Tried
    agreements: dict[str, float]
    labelled: bool


@dataclass(frozen=True)
class CandidateExits:
    """A module with its places, and its samples."""

    module: nn.Module
    places: Places
    plan: TrainingPlan
    held: Material

    @property
    def heads(self) -> list[Any]:
        """The modules behind the blocks, in the order of the places."""
        from compresskit.ops.route.exits import HEAD

        return [self.module.get_submodule(name).get_submodule(HEAD) for name in self.places.layers]

    def features(self, samples: Material, ctx: Context) -> Columns:
        """What heads would see of some samples, in half precision."""
        from compresskit.ops.route.exits import closed
        from compresskit.ops.route.places import features_of
        from compresskit.train.material import filled

        def walked() -> Iterator[Part]:
            done = 0
            for part in samples.plain(_BATCH, len(samples)):
                inputs = self.plan.task.inputs(part)
                found, last = features_of(self.module, self.places, inputs, partial(self._run, inputs))
                if not done:
                    _check_room(sum(f.nbytes for f in found.values()) / 2 / len(last) * len(samples))
                done += len(last)
                ctx.progress("features", done, len(samples))
                yield [*(f.half() for f in found.values()), last, *self._labels(part)]

        with closed(self.module):
            return Columns(filled(walked(), len(samples)))

    def _labels(self, part: Part) -> Part:
        return part[-1:] if self.plan.task.labels == "classes" else []

    def _run(self, inputs: dict[str, Tensor]) -> Any:
        return self.plan.task.forward(self.module, inputs)

    def tried(self, ctx: Context) -> HeldOut:
        """What the exits say of the samples that were held out, and what they cost."""
        import torch

        from compresskit.ops.route.exits import confidence
        from compresskit.ops.route.thresholds import Tried

        columns = self.features(self.held, ctx).columns
        count = len(self.places.layers)
        last = columns[count].argmax(-1)
        with torch.no_grad():
            logits = [_by_parts(head, kept) for head, kept in zip(self.heads, columns[:count], strict=True)]
        answers = torch.stack([found.argmax(-1) for found in logits])
        wrong = (answers != last).float()
        labelled = len(columns) > count + 1 and bool((columns[-1] >= 0).all())
        loss = (last == columns[-1]).float() - (answers == columns[-1]).float() if labelled else wrong
        macs = [fact.macs for fact in self.places.layers.values()]
        heads = [self.places.head_share(name) for name in self.places.layers]
        tried = Tried(torch.stack([confidence(found) for found in logits]), loss, [*macs, 1.0], heads)
        agreed = {n: 1 - float(w.mean()) for n, w in zip(self.places.layers, wrong, strict=True)}
        return HeldOut(tried, agreed, labelled)

    def keep(self, found: Chosen, seen: HeldOut) -> dict[str, ExitFacts]:
        """Leave the module with the chosen exits; what is recorded of them."""
        from compresskit.ops.route.exits import keep

        layers = dict[str, ExitFacts]()
        spent = 0.0
        for place, (name, fact) in enumerate(self.places.layers.items()):
            if place in found.thresholds:
                spent += self.places.head_share(name)
                layers[name] = replace(
                    fact, threshold=found.thresholds[place], share=round(found.shares[place], 4),
                    macs=round(fact.macs + spent, 6), agreement=round(seen.agreements[name], 4),
                )  # fmt: skip
        keep(self.module, layers)
        return layers


def _check_room(size: float) -> None:
    """Refuse to keep more of the blocks' outputs than memory should hold."""
    if size > _MEMORY:
        raise UsageError(
            f"what the heads see of the samples takes {size / 1e9:.1f} GB, and {_MEMORY / 1e9:g} GB are the limit",
            "give fewer `candidates`, less `train_samples`, or `convolutions` 0",
        )


def _by_parts(head: Any, kept: Tensor) -> Tensor:
    """A head's logits of many samples."""
    import torch

    return torch.cat([head.of_kept(part.float()) for part in torch.split(kept, _BATCH)])
