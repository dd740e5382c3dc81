"""What a target is: a format in which other programs run a language model."""

from __future__ import annotations

import importlib.util
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from compresskit.checkpoint.bundle import extras_of
from compresskit.errors import UsageError, listing, missing_extra
from compresskit.model import Model
from compresskit.report import Gate
from compresskit.stage import Progress, silent

if TYPE_CHECKING:
    from torch import nn

    from compresskit.ops.packed.layout import Grid


DENSE = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text", "phi3")
"""``model_type`` of decoders without experts whose layers have Llama's names."""


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        gates: What holds it against the module; a miss raises.
        notes: What a user must know of it.
    """

    gates: list[Gate]
    notes: list[str] = field(default_factory=list)


class Target(ABC):
    """A format, written by its own library.

    Attributes:
        name: As ``--to`` takes it.
        package: What must be installed, as it is imported.
        extra: The extra of compresskit that brings it.
        ending: What is put behind the output's name: ``.gguf``, or ``-genai`` of a folder.
        marker: A file that each folder of the format has; None where the format is a file.
        architectures: ``model_type`` of the language models that it can carry; None where it carries any model of
            transformers.
    """

    name: ClassVar[str]
    package: ClassVar[str]
    extra: ClassVar[str]
    ending: ClassVar[str]
    marker: ClassVar[str | None] = None
    architectures: ClassVar[tuple[str, ...] | None]

    @abstractmethod
    def reason_against(self, grid: Grid) -> str | None:
        """Why codes on a grid can't be carried, as words that follow the name of a layer; None when they can."""

    def reason_against_shape(self, name: str, shape: tuple[int, ...], grid: Grid) -> str | None:
        """The same for the codes of a Linear layer, by its name and its sizes ``(out, in)``."""
        return None

    @abstractmethod
    def write(self, model: Model, place: Path, progress: Progress = silent) -> Written:
        """Write a model whose architecture :meth:`check` let pass.

        Args:
            model: With its module.
            place: The file, or a folder that exists and is empty.
            progress: Called now and then.

        Raises:
            GateError: What was written isn't what the model is.
            InputError: Something in the model can't be carried.
        """

    def check_package(self) -> None:
        """Refuse to begin without the format's library.

        Raises:
            MachineError: It isn't installed.
        """
        if importlib.util.find_spec(self.package) is None:
            raise missing_extra(self.package, self.extra)

    def check(self, model: Model, grids: Iterable[tuple[str, Grid]] = ()) -> None:
        """Refuse, before any work, what the format can't carry.

        Args:
            model: What is to be written, or to be quantized first.
            grids: Names of layers, or what decides on some, each with what codes will mean there.

        Raises:
            UsageError: It is no language model of a known architecture, or codes of that kind have no place.
            MachineError: The format's library isn't installed.
        """
        self.check_package()
        known = self.architectures
        if isinstance(model.body, Path) or model.card.arch.kind != "transformers":
            what = "model" if known is None else "language model"
            raise UsageError(
                f"`to` {self.name} takes a {what} in a Hugging Face folder, or a bundle of one; {model.source} is none"
            )
        kind = getattr(model.body.config, "model_type", "")
        if known is not None and (kind not in known or model.card.task != "causal-lm"):
            raise UsageError(
                f"`to` {self.name} can't carry {model.card.arch.reference}",
                f"it carries causal language models of: {', '.join(known)}",
            )
        against: dict[str, dict[str, None]] = {}
        for name, grid in grids:
            reason, shape = self.reason_against(grid), linear_shape(model.body, name)
            if reason is None and shape is not None:
                reason = self.reason_against_shape(name, shape, grid)
            if reason is not None:
                against.setdefault(reason, {})[name] = None
        for reason, layers in against.items():
            raise UsageError(f"`to` {self.name} can't carry {listing([*layers])}: {reason}")


def linear_shape(module: nn.Module, name: str) -> tuple[int, int] | None:
    """``(out, in)`` of a Linear layer, packed or not; None where there is no such layer of this name."""
    from torch import nn

    from compresskit.ops.packed.modules import PackedLinear

    try:
        layer = module.get_submodule(name)
    except AttributeError:
        return None
    return (layer.out_features, layer.in_features) if isinstance(layer, (nn.Linear, PackedLinear)) else None


def copy_extras(model: Model, folder: Path) -> None:
    """Copy the small files beside a model's weights, its tokenizer among them, without those of subfolders."""
    for extra in extras_of(model.source):
        if len(extra.parts) == 1:
            shutil.copyfile(model.source / extra, folder / extra)
