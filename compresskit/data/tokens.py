"""Text to token ids with the model's own ``tokenizer.json``; only the ``tokenizers`` library is used."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from compresskit.data.prepare import HELPERS, check_values, complete, primary, shape_text
from compresskit.errors import InputError, UsageError, missing_extra
from compresskit.model import InputSpec

UNCUT = 1 << 30
"""A length of samples that cuts none."""
_LIMITS = {
    "tokenizer_config.json": ("model_max_length",),
    "config.json": ("max_position_embeddings", "n_positions"),
}
_PADS = ("[PAD]", "<pad>", "<|endoftext|>", "</s>")
_MASKS = ("[MASK]", "<mask>")
_PLAIN = (InputSpec("input_ids", "int64", ("batch", "sequence")), InputSpec("attention_mask", "int64", ("batch",) * 2))


class Encoder:
    """Texts to a model's inputs, cut at ``sequence`` tokens and padded to the longest of a batch.

    The padding and truncation that ``tokenizer.json`` itself asks for (all-MiniLM: always 128) is switched off: it
    is the setting of one training run, not of the model.

    Attributes:
        sequence: Maximum tokens of a sample.
        vocabulary: One past the largest id.
        masked: True for a masked-language encoder (BERT and kin), whose samples are lines; others take running text.
        identity: Hex SHA-256 of the tokenizer file.
    """

    def __init__(self, path: Path | None, sequence: int, specs: tuple[InputSpec, ...]) -> None:
        file = _tokenizer_file(path)
        text = file.read_bytes()
        self._tokenizer = _load(file, text)
        self.identity = hashlib.sha256(text).hexdigest()
        self.vocabulary: int = self._tokenizer.get_vocab_size(with_added_tokens=True)
        self._specs = specs or _PLAIN
        self._fixed = _fixed_length(self._specs)
        if sequence < 2:
            raise UsageError(f"a sequence is at least 2 tokens, found {sequence}")
        self.sequence = self._fixed or min(sequence, longest(file.parent))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(self.sequence)
        ids = [i for i in map(self._tokenizer.token_to_id, _PADS) if i is not None]
        self._pad = ids[0] if ids else 0
        self.masked = any(self._tokenizer.token_to_id(t) is not None for t in _MASKS)

    def __call__(self, texts: list[str]) -> dict[str, np.ndarray]:
        """Token ids and what else the model takes, each ``(n, L)``, for ``n`` texts."""
        return self.padded([np.asarray(e.ids) for e in self._tokenizer.encode_batch(texts)])

    def padded(self, found: list[np.ndarray]) -> dict[str, np.ndarray]:
        """The model's inputs, each ``(n, L)``, for the ids of ``n`` texts."""
        width = self._fixed or max(1, *(len(ids) for ids in found), 1)
        rows = np.full((len(found), width), self._pad, np.int64)
        mask = np.zeros((len(found), width), np.int64)
        for i, ids in enumerate(found):
            rows[i, : len(ids)] = ids
            mask[i, : len(ids)] = 1
        return self._inputs(rows, {"attention_mask": mask})

    def running(self, text: str, *, special: bool = False) -> np.ndarray:
        """Ids of running text, ``(tokens,)`` ``int32``, uncut; with the tokens that are put around a text or not."""
        self._tokenizer.no_truncation()
        try:
            return np.asarray(self._tokenizer.encode(text, add_special_tokens=special).ids, np.int32)
        finally:
            self._tokenizer.enable_truncation(self.sequence)

    def continued(self, context: str, text: str) -> tuple[np.ndarray, int]:
        """A text with what comes before it.

        Returns:
            Ids of both, ``(tokens,)`` ``int64``, uncut, with the special tokens that are put in front; and where among
            them the text begins.
        """
        whole, before = self.running(context + text), len(self.running(context))
        around = self.running(context + text, special=True)
        front = next((at for at in range(len(around)) if np.array_equal(around[at : at + len(whole)], whole)), 0)
        return np.concatenate([around[:front], whole]).astype(np.int64), front + before

    def rows(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """The model's inputs for ids ``(n, L)`` without padding."""
        return self._inputs(ids, {})

    def _inputs(self, ids: np.ndarray, others: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        spec = primary(self._specs)[0]
        check_values("the text, as ids of this tokenizer,", ids, "int64", spec)
        return complete({spec.name: ids, **others}, self._specs)


def _tokenizer_file(path: Path | None) -> Path:
    hint = "give the samples as token ids instead: an .npz with an array 'input_ids' of shape (n, L)"
    if path is None:
        raise UsageError("text data needs the model's tokenizer.json, and this model has none", hint)
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"text data needs the model's tokenizer.json; {file} does not exist", hint)
    return file


def _load(file: Path, text: bytes) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise missing_extra("tokenizers", "hf") from error
    try:
        return Tokenizer.from_str(text.decode("utf-8"))
    except Exception as error:  # the library raises bare Exception
        raise InputError(f"{file} is not a tokenizer that the tokenizers library reads: {error}") from error


def longest(folder: Path) -> int:
    """Most tokens of a sample that the model's own files allow; a huge number where they don't say."""
    return min((value for value in _limits(folder) if value >= 2), default=UNCUT)


def _limits(folder: Path) -> Iterator[int]:
    for name, keys in _LIMITS.items():
        try:
            found = json.loads((folder / name).read_bytes())
            text = found.get("text_config")
        except (OSError, ValueError, AttributeError, RecursionError):
            continue
        for part in (found, text):
            if isinstance(part, dict):
                yield from (part[key] for key in keys if type(part.get(key)) is int)


def _fixed_length(specs: tuple[InputSpec, ...]) -> int | None:
    """The sequence length that the model is built for, or None when it is free.

    Raises:
        InputError: The model takes something else than token ids.
    """
    ids = primary(specs)
    if len(ids) != 1 or np.dtype(ids[0].dtype).kind not in "ui" or len(ids[0].shape) != 2:
        found = ", ".join(f"{s.name} {s.dtype} {shape_text(s.shape)}" for s in specs if s.name not in HELPERS)
        raise InputError(f"text gives token ids (batch, sequence); the model takes {found}")
    length = ids[0].shape[1]
    return length if isinstance(length, int) else None
