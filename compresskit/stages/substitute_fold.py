"""``substitute.fold``: layers put together, exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from compresskit.errors import InputError, listing
from compresskit.facts import to_json
from compresskit.facts.substitute import FoldedFacts, FoldFacts
from compresskit.kinds import SUBSTITUTE
from compresskit.model import Model
from compresskit.stage import Context, Form, Stage
from compresskit.stages.batches import calibration_data
from compresskit.stages.fields import Exclude, Include

if TYPE_CHECKING:
    from torch import nn

    from compresskit.checkpoint.tensors import Tensors


class SubstituteFold(Stage):
    """Merge layers that compute one linear function together, exactly: parallel branches, batch normalization, scales.

    Also identity branches, and consecutive layers without an activation between them. The output stays the same. Needs
    no data.
    """

    kind: ClassVar = SUBSTITUTE
    method: ClassVar[str] = "fold"
    takes: ClassVar[tuple[Form, ...]] = ("torch",)
    gives: ClassVar = "same"
    facts: ClassVar = FoldFacts

    include: Include = ()
    exclude: Exclude = ()

    @property
    def promises_speed(self) -> bool:
        """No: an engine may put some of these layers together itself."""
        return False

    def run(self, model: Model, ctx: Context) -> Model:
        """Put layers of a module together in place.

        Raises:
            UsageError: A glob matches nothing.
            InputError: There is nothing to put together.
        """
        from compresskit.ops.globs import check_globs, left_out
        from compresskit.ops.substitute.fold import fold

        module = model.module.eval()
        data = calibration_data(model, ctx, samples=2, size=2, rows=2)
        check_globs([name for name, _ in module.named_modules()], (*self.include, *self.exclude))
        found, left = fold(module, lambda name: left_out(name, self.include, self.exclude), data.run)
        if not found:
            why = f" ({listing([f'{name}: {reason}' for name, reason in left.items()], 1)})" if left else ""
            raise InputError(f"this model has no layers that can be merged exactly{why}", "nothing is left to do")
        layers = {
            one.full: to_json(FoldedFacts(holder=one.holder, gone=list(one.gone)))
            | {"about": f"merged with {listing(list(one.gone), 3)}" if one.gone else "merged with its factor"}
            for one in found
        }
        gone = sum(len(one.gone) for one in found)
        notes = [f"{gone} layers were merged exactly into {len(layers)}; the model's output stays the same"]
        return self.recorded(model, {"layers": layers, "notes": notes}, left)

    @classmethod
    def replay(cls, module: nn.Module, facts: FoldFacts, tensors: Tensors) -> Tensors:
        """Merge the same layers of a freshly built module."""
        from compresskit.ops.substitute.fold import replay

        replay(module.eval(), facts.layers)
        return tensors
