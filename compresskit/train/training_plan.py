"""All that a stage settles before it trains: the samples, the aim, and how long; and what the report says of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from compresskit.stage import Progress, silent
from compresskit.train.augment import Augment
from compresskit.train.loop import Fitted, fit
from compresskit.train.material import Material
from compresskit.train.settings import Training
from compresskit.train.state import Keeper, key_of
from compresskit.train.task import Loss, Task
from compresskit.train.validate import Validation


def _unheard(_text: str) -> None:
    """A line for the user that nobody reads."""


@dataclass(frozen=True)
class TrainingPlan:
    """Ready to train any number of modules in the same way.

    Attributes:
        samples: What is trained on.
        task: What training aims at.
        training: How long and how.
        held: Samples that are measured after each epoch, not trained on.
        augment: Changes the first input of each batch.
        folder: Where the state of training is kept at each epoch's end; None is nowhere.
        origin: What decides the result besides the weights and ``training``, as JSON: options, and the data's
            fingerprint.
        progress: Called after each step.
        tell: Shows the user a line right away.
    """

    samples: Material
    task: Task
    training: Training
    held: Material | None = None
    augment: Augment | None = None
    folder: Path | None = None
    origin: dict[str, Any] | None = None
    progress: Progress = silent
    tell: Callable[[str], None] = _unheard

    def fit(self, module: nn.Module, loss: Loss, after_step: Callable[[], None] | None = None) -> Fitted:
        """Train a module in place; see :func:`~compresskit.train.loop.fit`."""
        return fit(
            module,
            self.samples,
            loss,
            training=self.training,
            augment=self.augment,
            validation=None if self.held is None else Validation(self.held, self.task, loss),
            keeper=self._keeper(module),
            after_step=after_step,
            progress=self.progress,
        )

    def facts(self, fitted: Fitted) -> dict[str, Any]:
        """What the card and the report record of a training."""
        how = self.training
        found = {
            "samples": len(self.samples),
            "batch_size": min(how.batch, len(self.samples)),
            "optimizer": how.optimizing.kind,
            "lr": how.optimizing.lr,
            "epochs": len(fitted.curve),
            "kept_epoch": fitted.kept,
            "curve": fitted.curve,
        }
        if self.held is not None:
            found["held_out"] = len(self.held)
        return found

    def _keeper(self, module: nn.Module) -> Keeper | None:
        if self.folder is None:
            return None
        keeper = Keeper(self.folder, key_of(self.origin or {}, module))
        state = keeper.load()
        if state is not None:
            done = state.facts["epoch"]
            self.tell(f"resuming after epoch {done} of {self.training.epochs} from {self.folder}")
        elif others := keeper.others():
            self.tell(
                f"{self.folder} keeps {others} training{'s' if others > 1 else ''} of other options, data or "
                "weights: this one starts from the beginning"
            )
        return keeper
