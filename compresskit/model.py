"""A model and its card: what it is, what goes in, and what was done to it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compresskit.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

CARD_VERSION = 1


def portable(path: str | Path) -> str:
    """A path as an artefact may hold it: as typed, an absolute one cut to its last two parts."""
    parts = Path(path).parts
    return "/".join(parts[-2:] if len(parts) > 2 else parts[-1:]) if Path(path).is_absolute() else str(path)


@dataclass(frozen=True)
class InputSpec:
    """One input of a model.

    Attributes:
        name: The keyword of ``forward``, and the input's name in ONNX.
        dtype: numpy's name of it: ``float32``, ``int64`` …
        shape: Sizes; a string names an axis that may vary (``"batch"``, ``"sequence"``).
        high: For integers, one past the largest allowed value (a vocabulary size).
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    high: int | None = None

    def implied(self, shape: tuple[int, ...]) -> np.ndarray | None:
        """The values of an input that needs no data: those of plain, unpadded samples of one segment.

        A mask of integers or booleans, and ``attention_mask`` of any type, is ones: all is attended to.
        ``token_type_ids`` are zeros: all is the first segment. ``position_ids`` count up from 0 along the last axis.
        Wherever inputs are made up or filled in they are these. The parity gate alone takes others too, because a file
        must compute the same for all of them.

        Args:
            shape: Of the array; its dtype is the input's.

        Returns:
            None for every other input.
        """
        import numpy as np

        name, integer = self.name.lower(), self.dtype.startswith(("int", "uint"))
        if self.dtype == "bool" or (integer and "mask" in name) or name == "attention_mask":
            return np.ones(shape, self.dtype)
        if integer and "token_type" in name:
            return np.zeros(shape, self.dtype)
        if integer and name == "position_ids":
            return np.full(shape, np.arange(shape[-1]), self.dtype)
        return None


@dataclass(frozen=True)
class Arch:
    """Where a model's class comes from. It is a record; nothing is imported because of it.

    Attributes:
        kind: ``python`` (typed by the user with ``--arch``), ``transformers`` (a Hugging Face config),
            ``onnx`` (the graph is the architecture) or ``none`` (tensors only).
        reference: ``FILE.py:NAME`` or ``package.module:NAME``; for transformers the class name. Never an absolute path.
        args: Keyword arguments of the factory.
    """

    kind: str
    reference: str = ""
    args: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Applied:
    """One stage that was applied.

    Attributes:
        name: ``quantize.rtn``.
        options: The stage's options, as JSON.
        facts: What the stage decided, as JSON; with the tensors it is enough to rebuild the module.
        skipped: Layer name to the reason why it was left alone.
    """

    name: str
    options: dict[str, Any]
    facts: dict[str, Any] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Card:
    """What is known of a model apart from its tensors; ``compresskit.json`` in a bundle.

    Attributes:
        format: What it was read from: ``torch``, ``safetensors``, ``huggingface``, ``onnx`` or ``bundle``.
        arch: Where its class comes from.
        inputs: In the order of ``forward``; empty when unknown (a bare state dict).
        task: ``classification``, ``embedding``, ``causal-lm`` or ``unknown``.
        history: The stages applied, in order.
    """

    format: str
    arch: Arch = Arch("none")
    inputs: tuple[InputSpec, ...] = ()
    task: str = "unknown"
    history: tuple[Applied, ...] = ()

    def after(self, applied: Applied) -> Card:
        """This card with one more stage in its history."""
        return replace(self, history=(*self.history, applied))

    def to_json(self) -> dict[str, Any]:
        """The card as plain JSON data; the inverse of :meth:`from_json`."""
        return {"version": CARD_VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, data: object) -> Card:
        """Read a card.

        Raises:
            InputError: The data isn't a card, or one of a newer version.
        """
        try:
            if not isinstance(data, dict):
                raise TypeError("not an object")
            if data["version"] != CARD_VERSION:
                raise InputError(
                    f"the card is of version {data['version']}, this program reads version {CARD_VERSION}",
                    "upgrade compresskit",
                )
            return cls(
                format=str(data["format"]),
                arch=Arch(**data["arch"]),
                inputs=tuple(InputSpec(**{**spec, "shape": tuple(spec["shape"])}) for spec in data["inputs"]),
                task=str(data["task"]),
                history=tuple(Applied(**step) for step in data["history"]),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"not a card that this program wrote ({error})") from error


@dataclass(frozen=True)
class Model:
    """A model in memory or on disk.

    Attributes:
        body: A module (architecture known), or the path of an ONNX file or of a file of bare tensors.
        card: What is known of it.
        source: Where it was read from; the original that a verdict compares with.
        key: Which of the state dicts in the file these are; None where the file's form tells.
        notes: What a reader must know of what was read.
    """

    body: nn.Module | Path
    card: Card
    source: Path
    key: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def module(self) -> nn.Module:
        """The body of a model whose architecture is known.

        Raises:
            TypeError: It is a path.
        """
        if isinstance(self.body, Path):
            raise TypeError("a module is needed")
        return self.body
