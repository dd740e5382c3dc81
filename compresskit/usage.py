"""What a model needs around it to answer a user: how its inputs are prepared, and what its outputs mean."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from compresskit.errors import InputError
from compresskit.facts import Flag, Number, Size, Text, read_facts, to_json

METADATA = "compresskit"
"""The key of an ONNX file's metadata that holds its task and its usage, as JSON."""
EMBEDDING = "sentence_embedding"
"""The output of a graph that holds one pooled vector a text."""

Pooling = Literal["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
Scores = Literal["softmax", "sigmoid", "none"]
Channels = Annotated[tuple[Number, ...], Field(max_length=16)]
Sides = Annotated[tuple[Size, ...], Field(max_length=2)]


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """How an image becomes numbers: ``(pixel · scale - mean) / std`` a channel.

    Attributes:
        mean: By channel; empty subtracts nothing.
        std: By channel, as many as ``mean``.
        scale: Factor of pixels in 0…255.
        resize: Height and width that an image is scaled to, or the length of its shorter side. Empty: it is scaled
            until it covers the model's input, and the middle is cut out.
        crop: Height and width of the middle that is cut out afterwards.
        filter: Pillow's number of the filter that scales.

    Raises:
        InputError: Deviations that aren't above 0, or not as many as means.
    """

    mean: Channels = ()
    std: Channels = ()
    scale: Number = 1 / 255
    resize: Sides = ()
    crop: Sides = ()
    filter: Annotated[int, Field(strict=True, ge=0, le=5)] = 2

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or any(value <= 0 for value in self.std):
            raise InputError(f"{len(self.mean)} means and {len(self.std)} deviations (each above 0) don't go together")


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What a model needs around it.

    Attributes:
        labels: Names of the classes, in the order of the outputs.
        scores: How the outputs of a classifier become scores; None where it isn't one.
        pixels: How images are prepared; None where nobody said.
        pooling: How the vectors of tokens become one of a text, joined where there are several; empty: not at all.
        unit: Embeddings are scaled to length 1.
        tokens: Most tokens of a text, where its own files say; else None.
        lower: Texts are put into lower case.
        prompt: Stands in front of each text.
    """

    labels: Annotated[tuple[Text, ...], Field(max_length=1_000_000)] = ()
    scores: Scores | None = None
    pixels: Pixels | None = None
    pooling: Annotated[tuple[Pooling, ...], Field(max_length=6)] = ()
    unit: Flag = False
    tokens: Size | None = None
    lower: Flag = False
    prompt: Text = ""


def to_metadata(task: str, usage: Usage, tokenizer: str = "") -> str:
    """The text under :data:`METADATA` in an ONNX file.

    Args:
        task: Of the model's card.
        usage: Of the model.
        tokenizer: SHA-256 of its tokenizer.json; empty where it has none.
    """
    told = {"task": task, **to_json(usage), **({"tokenizer": tokenizer} if tokenizer else {})}
    return json.dumps(told, sort_keys=True, separators=(",", ":"))


def from_metadata(text: str) -> tuple[str, Usage]:
    """Task and usage; the inverse of :func:`to_metadata`.

    Raises:
        InputError: It is something else.
    """
    try:
        data: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"the metadata '{METADATA}' of the ONNX file are not JSON: {error}") from error
    if not isinstance(data, dict) or not isinstance(task := data.pop("task", ""), str):
        raise InputError(f"the metadata '{METADATA}' of the ONNX file are not those that this program writes")
    data.pop("tokenizer", None)
    return task, read_facts(Usage, data, f"the metadata '{METADATA}' of the ONNX file")
