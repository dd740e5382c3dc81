"""``substitute.fold``: layers put together, exactly; and units that never or always fire."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from compresskit.errors import InputError, UsageError, listing
from compresskit.facts import to_json
from compresskit.facts.substitute import FiringFacts, FoldedFacts, FoldFacts
from compresskit.kinds import SUBSTITUTE
from compresskit.model import Model, portable
from compresskit.stage import Context, Form, Stage
from compresskit.stages.batches import calibration, calibration_data
from compresskit.stages.fields import Exclude, Include

if TYPE_CHECKING:
    from torch import nn

    from compresskit.checkpoint.tensors import Tensors
    from compresskit.ops.substitute.firing import Fired
    from compresskit.ops.substitute.fold import Folded

_BATCH = 32


class SubstituteFold(Stage):
    """Merge layers that compute one linear function together, exactly: parallel branches, batch normalization, scales.

    Also identity branches, and consecutive layers without an activation between them. The output stays the same. Needs
    no data. With `units`, units that never or always switch on in the samples of `data` are removed too.
    """

    kind: ClassVar = SUBSTITUTE
    method: ClassVar[str] = "fold"
    takes: ClassVar[tuple[Form, ...]] = ("torch",)
    gives: ClassVar = "same"
    facts: ClassVar = FoldFacts

    units: Annotated[
        bool,
        Field(
            description="Also remove hidden units that never switch on in the samples of `data` (their ReLU is always "
            "0), and merge the layers around a ReLU for units that are always on."
        ),
    ] = False
    margin: Annotated[
        float,
        Field(
            ge=0,
            le=10,
            description="How far from 0 the input of a unit's ReLU must stay in all samples for `units`, in standard "
            "deviations. A larger margin removes fewer units, and the output changes less on other samples.",
        ),
    ] = 0.0
    include: Include = ()
    exclude: Exclude = ()
    samples: Annotated[int, Field(ge=4, description="Maximum number of samples for `units`.")] = 2048

    @property
    def promises_speed(self) -> bool:
        """No: an engine may put some of these layers together itself."""
        return False

    @property
    def wanted_data(self) -> str | None:
        """Samples, to see which units switch on."""
        return "calibration" if self.units else None

    def run(self, model: Model, ctx: Context) -> Model:
        """Put layers of a module together in place.

        Raises:
            UsageError: A glob matches nothing, or there are no data for `units`.
            InputError: There is nothing to put together.
        """
        from compresskit.ops.globs import check_globs, left_out
        from compresskit.ops.substitute.firing import without
        from compresskit.ops.substitute.fold import fold

        if self.units and ctx.data is None:
            raise UsageError("`units` needs samples to see which units switch on", "give `data` FILE")
        module = model.module.eval()
        check_globs([name for name, _ in module.named_modules()], (*self.include, *self.exclude))

        def skip(name: str) -> str:
            return left_out(name, self.include, self.exclude)

        data = calibration_data(model, ctx, samples=2, size=2, rows=2)
        found, left = fold(module, skip, data.run)
        facts: dict[str, Any] = {"layers": _merged(found), "notes": _notes(found)}
        if self.units and ctx.data is not None:
            data = calibration_data(model, ctx, samples=self.samples, size=_BATCH, rows=2, by_length=False)
            fired = without(module, data, skip, ctx.seed, ctx.progress, margin=self.margin)
            left |= fired.left
            _add(facts, fired, portable(ctx.data.name))
            if self.margin:
                facts["notes"].append(f"their ReLU took nothing within {self.margin:g} standard deviations of 0 there")
            facts["calibration"] = calibration(ctx.data, self.samples)
        if not facts["layers"]:
            why = f" ({listing([f'{name}: {reason}' for name, reason in left.items()], 1)})" if left else ""
            also = ", and no unit that never or always switches on" if self.units else ""
            raise InputError(f"this model has no layers that can be merged exactly{also}{why}", "nothing is left to do")
        if model.card.arch.kind == "transformers":
            facts["notes"].append("transformers alone cannot load merged layers; compresskit can")
        return self.recorded(model, facts, left)

    @classmethod
    def replay(cls, module: nn.Module, facts: FoldFacts, tensors: Tensors) -> Tensors:
        """Merge the same layers of a freshly built module, and remove as many units."""
        from compresskit.ops.substitute import firing, fold

        fold.replay(module.eval(), facts.layers)
        firing.replay(module, facts.layers)
        return tensors


def _merged(found: list[Folded]) -> dict[str, dict[str, Any]]:
    """What is recorded of merged layers."""
    return {
        one.full: to_json(FoldedFacts(holder=one.holder, gone=list(one.gone)))
        | {"about": f"merged with {listing(list(one.gone), 3)}" if one.gone else "merged with its factor"}
        for one in found
    }


def _notes(found: list[Folded]) -> list[str]:
    gone = sum(len(one.gone) for one in found)
    return [f"{gone} layers were merged exactly into {len(found)}; the model's output stays the same"] if found else []


def _add(facts: dict[str, Any], fired: Fired, source: str) -> None:
    """Record units that are gone, beside what was merged."""
    layers, known = facts["layers"], fired.found
    told = dict(fired.cut)
    for name, bypass in fired.bypasses.items():
        layers[name] = layers.get(name, {}) | {"bypass": to_json(bypass)}
    for name, fact in told.items():
        layers[name] = layers.get(name, {}) | {"cut": {k: v for k, v in fact.items() if k != "about"}}
    for name in (*told, *fired.bypasses):
        about = [layers[name].get("about"), told.get(name, {}).get("about")]
        if name in fired.bypasses:
            about.append(f"{fired.bypasses[name].kept} units still pass through its ReLU")
        layers[name]["about"] = "; ".join(dict.fromkeys(filter(None, about)))
    facts["firing"] = to_json(known)
    facts["notes"] += _told(known, source)


def _told(known: FiringFacts, source: str) -> list[str]:
    notes = [
        f"{known.never} of {known.units} units never switch on in {known.samples} samples of {source} and were "
        f"removed; {known.always} units are always on and were led past their ReLU"
    ]
    gone = known.never + known.always
    if known.returned:
        notes.append(f"{known.returned} other units were left: they behave otherwise in further samples")
    if gone:
        notes.append(
            f"for {known.proven} of these {gone} units interval arithmetic proves it for every input within the ranges "
            f"of the samples; {known.within} of {known.held_out} held-out samples lie within"
        )
        notes.append(
            f"held out: in {known.deviating} of {known.held_out} samples any of them behaves otherwise (at most "
            f"{100 * known.bound:.2g} % of samples with 95 % confidence); the output changes by {known.change:.2g} at "
            "most"
        )
    return notes
