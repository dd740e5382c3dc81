"""What methods share that keep all weights and change how the whole model runs: merged tokens, cheaper attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compresskit.errors import InputError
from compresskit.stages.recovery import Recovery

if TYPE_CHECKING:
    from compresskit.model import Model


class ChangedFlow(Recovery):
    """Keeps all weights, and is kept only where the whole model gets faster."""

    @property
    def promises_size(self) -> bool:
        """No: all weights stay, and a file has further operators."""
        return False

    def check_faster(self, time: float, what: str, hint: str) -> None:
        """Refuse what takes no less time than the original.

        Args:
            time: Share of the original's time.
            what: What gains nothing: ``merging gains nothing with 64 tokens``.
            hint: When it would.

        Raises:
            InputError: The model gets no faster.
        """
        if time >= 1:
            raise InputError(
                f"{what}: the model took {time:.2f} of the original's time under onnxruntime",
                f"it pays with {hint}; `guard` size skips the measurement",
            )

    def use_notes(self, model: Model, time: float | None, what: str) -> list[str]:
        """How fast the result is, whether it was trained, and who can load it.

        Args:
            model: What was changed.
            time: Share of the original's time; None where it wasn't measured.
            what: What transformers doesn't know: ``this attention``.
        """
        notes = []
        if time is not None:
            notes.append(f"one sample took {time:.3f} of the original's time under onnxruntime")
        if not self.epochs:
            notes.append("no training was done, `epochs` N trains the result")
        if model.card.arch.kind == "transformers":
            notes.append(f"transformers alone cannot load {what}; compresskit can")
        return notes
