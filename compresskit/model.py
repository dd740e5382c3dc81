"""A model and its card: what it is, what goes in, and what was done to it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from compresskit.errors import InputError
from compresskit.facts import Name, Size, Text, read_facts, to_json
from compresskit.usage import Usage

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from compresskit.checkpoint.tensors import Tensors

SCORES_ONLY = "scores only, can't generate"
"""Of the ONNX file of a language model: it has no cache of keys and values."""
ONNX_SAYS = "onnx"
"""Where a bundle's card says so; told, not read."""
CARD_VERSION = 3
_DEEPEST = 64
_LARGEST_INPUT = 1 << 30
"""Numbers of one sample."""
_DTYPE = r"^(bool|object|str|complex(64|128)|u?int(2|4|8|16|32|64)|b?float(16|32|64)|float[48]_\w+)$"


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
        batch_axis: The axis that samples lie along; None for what all samples share: a scalar, a first state.

    Raises:
        InputError: A size is below 0, there is no such axis, or there are more numbers than any input has.
    """

    name: Text
    dtype: Annotated[str, Field(pattern=_DTYPE)]
    shape: Annotated[tuple[Size | Text, ...], Field(max_length=32)]
    high: Size | None = None
    batch_axis: Size | None = 0

    def __post_init__(self) -> None:
        if self.batch_axis and self.batch_axis >= len(self.shape):
            raise InputError(f"the input '{self.name}' of {len(self.shape)} axes has none of number {self.batch_axis}")
        sizes = [size for size in self.shape if isinstance(size, int)]
        if any(size < 0 for size in sizes) or math.prod(sizes) > _LARGEST_INPUT:
            shown = ", ".join(map(str, self.shape))
            raise InputError(f"the input '{self.name}' of the shape ({shown}) can't be: sizes from 0 were expected")

    @property
    def by_sample(self) -> InputSpec:
        """The input as a source gives it: a row a sample, wherever the model has its batch axis."""
        if self.batch_axis == 0:
            return self
        if self.batch_axis is None:
            return replace(self, shape=("batch", *self.shape), batch_axis=0)
        at = self.batch_axis
        return replace(self, shape=(self.shape[at], *self.shape[:at], *self.shape[at + 1 :]), batch_axis=0)

    def rows_of(self, array: np.ndarray, count: int) -> np.ndarray:
        """An array as the model takes it as rows ``(n, …)``; one without a batch axis is seen ``count`` times."""
        import numpy as np

        if self.batch_axis is None:
            return np.broadcast_to(array, (count, *array.shape))
        return np.moveaxis(array, self.batch_axis, 0)

    def of_rows(self, rows: np.ndarray) -> np.ndarray:
        """Rows as the model takes them; the inverse of :meth:`rows_of`."""
        import numpy as np

        return np.asarray(rows[0]) if self.batch_axis is None else np.moveaxis(rows, 0, self.batch_axis)

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
        kind: ``python`` (typed by the user with `arch`), ``transformers`` (a Hugging Face config),
            ``onnx`` (the graph is the architecture) or ``none`` (tensors only).
        reference: ``FILE.py:NAME`` or ``package.module:NAME``; for transformers the class name. Never an absolute path.
        args: Keyword arguments of the factory.
    """

    kind: Text
    reference: Text = ""
    args: dict[Text, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Applied:
    """One stage that was applied.

    Attributes:
        name: ``quantize.rtn``.
        options: The stage's options, as JSON.
        facts: What the stage decided, as JSON; with the tensors it is enough to rebuild the module. Its type is the
            ``facts`` of the stage.
        skipped: Layer name to the reason why it was left alone.
    """

    name: Text
    options: dict[Text, Any]
    facts: dict[Text, Any] = field(default_factory=dict)
    skipped: dict[Name, Text] = field(default_factory=dict)


@dataclass(frozen=True)
class Card:
    """What is known of a model apart from its tensors; ``compresskit.json`` in a bundle.

    Attributes:
        format: What it was read from: ``torch``, ``safetensors``, ``huggingface``, ``onnx`` or ``bundle``.
        arch: Where its class comes from.
        inputs: In the order of ``forward``; empty when unknown (a bare state dict).
        task: ``classification``, ``embedding``, ``causal-lm`` or ``unknown``.
        history: The stages applied, in order.
        usage: How inputs are prepared, and what outputs mean, as far as files and data told.
    """

    format: Text
    arch: Arch = Arch("none")
    inputs: Annotated[tuple[InputSpec, ...], Field(max_length=1024)] = ()
    task: Text = "unknown"
    history: Annotated[tuple[Applied, ...], Field(max_length=1024)] = ()
    usage: Usage = field(default_factory=Usage)

    def after(self, applied: Applied) -> Card:
        """This card with one more stage in its history."""
        return replace(self, history=(*self.history, applied))

    @property
    def config_changes(self) -> dict[str, Any]:
        """Entries of ``config.json`` that stages changed."""
        return {key: value for step in self.history for key, value in (step.facts.get("config") or {}).items()}

    def to_json(self) -> dict[str, Any]:
        """The card as plain JSON data; the inverse of :meth:`from_json`."""
        data = asdict(self)
        for spec in data["inputs"]:
            if spec["batch_axis"] == 0:
                del spec["batch_axis"]
        del data["usage"]
        if usage := to_json(self.usage):
            data["usage"] = usage
        return {"version": CARD_VERSION, **data}

    @classmethod
    def from_json(cls, data: object) -> Card:
        """Read a card; what its stages recorded is read by their own types.

        Raises:
            InputError: The data isn't a card, or one of a newer version.
        """
        if not isinstance(data, dict) or "version" not in data:
            raise InputError("not a card that this program wrote: it has no version")
        version = data["version"]
        if type(version) is not int or not 1 <= version <= CARD_VERSION:
            raise InputError(
                f"the card is of version {version}, this program reads versions 1 to {CARD_VERSION}",
                "upgrade compresskit",
            )
        if not _shallow(data):
            raise InputError(f"not a card that this program wrote: it is nested more than {_DEEPEST} deep")
        rest = {key: value for key, value in data.items() if key not in ("version", "files", ONNX_SAYS)}
        card = read_facts(cls, rest, "not a card that this program wrote")
        return card if version > 1 else replace(card, history=tuple(map(_of_version_1, card.history)))


def _of_version_1(applied: Applied) -> Applied:
    """A step as later versions record it: adapters are named where, and only where, they lie beside the weights."""
    facts = dict(applied.facts)
    beside = facts.pop("beside", False)
    if beside is True and "adapters" not in facts:
        raise InputError(f"the card's {applied.name}: adapters: Field required")
    if not beside:
        facts.pop("adapters", None)
    return replace(applied, facts=facts)


def _shallow(data: object) -> bool:
    """False where data are nested too deep for what walks them by recursion."""
    level = [data]
    for _ in range(_DEEPEST):
        level = [
            part
            for outer in level
            if isinstance(outer, (dict, list))
            for part in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(part, (dict, list))
        ]
        if not level:
            return True
    return False


@dataclass(frozen=True)
class Model:
    """A model in memory or on disk.

    Attributes:
        body: A module (architecture known), or the path of an ONNX file or of a file of bare tensors.
        card: What is known of it.
        source: Where it was read from; the original that a verdict compares with.
        key: Which of the state dicts in the file these are; None where the file's form tells.
        notes: What a reader must know of what was read.
        half: ``bfloat16`` or ``float16`` where the weights were stored so: what stays as it was read is written so
            again, though a module computes in float32.
        weights: The values of a module on the meta device, by its names; None where it holds them itself.
        written: The values of a module on the meta device as they will ship: a file, or the index of shards.
    """

    body: nn.Module | Path
    card: Card
    source: Path
    key: str | None = None
    notes: tuple[str, ...] = ()
    half: str | None = None
    weights: Tensors | None = None
    written: Path | None = None

    @property
    def module(self) -> nn.Module:
        """The body of a model whose architecture is known.

        Raises:
            TypeError: It is a path.
        """
        if isinstance(self.body, Path):
            raise TypeError("a module is needed")
        return self.body


def writes_text(module: Any) -> bool:
    """True for a transformers model that has ``generate``."""
    can = getattr(module, "can_generate", None)
    return callable(can) and bool(can())


def reads_and_writes(module: Any) -> bool:
    """True for an encoder-decoder that has ``generate``: one pass of it answers nothing."""
    return bool(getattr(getattr(module, "config", None), "is_encoder_decoder", False)) and writes_text(module)
