"""``share.tie``: layers of one kind that use the same weights."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, model_validator

from compresskit.errors import InputError, UsageError
from compresskit.facts import to_json
from compresskit.facts.share import TieFacts
from compresskit.kinds import SHARE
from compresskit.model import Model, portable
from compresskit.stage import Context, Form
from compresskit.stages.batches import calibration, calibration_data
from compresskit.stages.fields import Exclude, Include, Samples
from compresskit.stages.recovery import Recovery

if TYPE_CHECKING:
    from torch import nn

    from compresskit.checkpoint.tensors import Tensors

_BATCH = 32


class ShareTie(Recovery):
    """Tie layers: runs of transformer layers, or layers with similar weights, use one set of weights. Saves no time.

    The file and the memory hold these weights once; every layer is still computed, so the model is as fast as before.
    Shared weights are fitted on `data` by least squares. The accuracy usually needs training: `epochs` trains the
    result against the original.
    """

    kind: ClassVar = SHARE
    method: ClassVar[str] = "tie"
    takes: ClassVar[tuple[Form, ...]] = ("torch",)
    gives: ClassVar = "same"
    facts: ClassVar = TieFacts

    run_length: Annotated[
        int, Field(ge=2, le=1024, description="Neighbouring blocks that share their weights: 2 ties pairs.")
    ] = 2
    alike: Annotated[
        float | None,
        Field(
            ge=-1,
            le=1,
            description="Tie single layers of one shape whose weights have at least this cosine, in the place of runs "
            "of blocks.",
        ),
    ] = None
    samples: Samples = 256
    include: Include = ()
    exclude: Exclude = ()

    @model_validator(mode="after")
    def _one_way(self) -> ShareTie:
        if self.alike is not None and self.run_length != ShareTie.model_fields["run_length"].default:
            raise UsageError("`alike` ties single layers, `run_length` runs of blocks", "give one of the two")
        return self

    @property
    def promises_speed(self) -> bool:
        """No: every layer is still computed."""
        return False

    def run(self, model: Model, ctx: Context) -> Model:
        """Tie layers of a module in place.

        Raises:
            UsageError: A glob matches nothing, or there are epochs without data.
            InputError: There are no layers to tie, or the data don't fit.
        """
        from compresskit.ops.share.tie import alike, runs_of, tie

        self.check_training_data(ctx)
        module = model.module.eval()
        groups = runs_of(module, self.run_length) if self.alike is None else alike(module, self.alike)
        groups, skipped = self._chosen(groups)
        if not groups:
            what = (
                "neighbouring blocks of the same shapes" if self.alike is None else "layers with such similar weights"
            )
            raise InputError(f"this model has no {what}", "`alike` COSINE ties single layers: a smaller one ties more")
        original = copy.deepcopy(module) if self.epochs else None
        data = calibration_data(model, ctx, samples=self.samples, size=_BATCH, rows=1)
        before = sum(p.numel() for p in module.parameters())
        layers, fitted = tie(module, groups, data, ctx.progress)
        share = sum(p.numel() for p in module.parameters()) / before
        how = "their mean"
        if ctx.data is not None:
            how = f"fitted on {min(self.samples, len(ctx.data))} samples of {portable(ctx.data.name)}"
        facts: dict[str, Any] = {
            "layers": {name: to_json(fact) for name, fact in layers.items()},
            "fitted": fitted,
            "notes": [
                f"{len(layers)} modules share others' weights, {how}; {100 * share:.0f} % of the parameters are left",
                "as fast as before: every layer is still computed; the file and the memory are smaller",
            ],
        }
        if ctx.data is not None:
            facts["calibration"] = calibration(ctx.data, self.samples)
        trained = self.train(module, model.card, ctx, teacher=original)
        facts["notes"] += trained.pop("notes", [])
        return self.recorded(model, facts | trained, skipped)

    def _chosen(self, groups: list[list[str]]) -> tuple[list[list[str]], dict[str, str]]:
        """The groups without what the globs leave out, and why that is."""
        from compresskit.ops.globs import check_globs, left_out

        names = [name for group in groups for name in group]
        if names:
            check_globs(names, (*self.include, *self.exclude))
        skipped = {n: reason for n in names if (reason := left_out(n, self.include, self.exclude))}
        kept = [[name for name in group if name not in skipped] for group in groups]
        return [group for group in kept if len(group) > 1], skipped

    @classmethod
    def replay(cls, module: nn.Module, facts: TieFacts, tensors: Tensors) -> Tensors:
        """Tie the same layers of a freshly built module."""
        from compresskit.ops.share.tie import share

        share(module, {name: fact.owner for name, fact in facts.layers.items()})
        return tensors
