"""Samples from text: lines, labelled lines, scored sentence pairs, or running text cut into equal pieces."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from compresskit.data.source import Batch
from compresskit.data.tokens import Encoder
from compresskit.data.walking import Fingerprint, spans
from compresskit.errors import InputError

_PIECE = 1 << 20
"""Characters of running text given to the tokenizer at once."""


class TextSource:
    """One text a sample, with a label where there is one."""

    kind = "tokens"

    def __init__(self, name: str, texts: list[str], targets: np.ndarray | None, encoder: Encoder) -> None:
        self.name, self.labelled = name, targets is not None
        self.vocabulary = encoder.vocabulary
        self._texts, self._targets, self._encoder = texts, targets, encoder

    def __len__(self) -> int:
        return len(self._texts)

    def batches(self, size: int, limit: int | None = None) -> Iterator[Batch]:
        """See :class:`~compresskit.data.source.Source`."""
        for span in spans(len(self), size, limit):
            yield Batch(self._encoder(self._texts[span]), None if self._targets is None else self._targets[span])

    def take(self, rows: np.ndarray) -> Batch:
        """The texts of some rows, int64 ``(n,)``, in that order."""
        targets = None if self._targets is None else self._targets[rows]
        return Batch(self._encoder([self._texts[row] for row in rows]), targets)

    def fingerprint(self) -> str:
        """See :class:`~compresskit.data.source.Source`; of the texts, the tokenizer and the cut."""
        return _fingerprint("texts", self._texts, self._targets, self._encoder)


class PairSource:
    """Two sentences and their score a sample; rows ``2i`` and ``2i + 1`` of the inputs are pair ``i``."""

    kind, labelled = "pairs", True

    def __init__(self, name: str, first: list[str], second: list[str], scores: np.ndarray, encoder: Encoder) -> None:
        self.name, self.vocabulary = name, encoder.vocabulary
        self._texts = [text for pair in zip(first, second, strict=True) for text in pair]
        self._scores, self._encoder = scores, encoder

    def __len__(self) -> int:
        return len(self._scores)

    def batches(self, size: int, limit: int | None = None) -> Iterator[Batch]:
        """See :class:`~compresskit.data.source.Source`; ``size`` counts pairs."""
        for span in spans(len(self), size, limit):
            yield Batch(self._encoder(self._texts[2 * span.start : 2 * span.stop]), self._scores[span])

    def take(self, rows: np.ndarray) -> Batch:
        """Single texts by row, int64 ``(n,)``: ``2i`` and ``2i + 1`` are pair ``i``; without scores."""
        return Batch(self._encoder([self._texts[row] for row in rows]))

    def fingerprint(self) -> str:
        """See :class:`~compresskit.data.source.Source`; of the texts, the scores, the tokenizer and the cut."""
        return _fingerprint("pairs", self._texts, self._scores, self._encoder)


class RunningText:
    """Running text in pieces of ``encoder.sequence`` tokens, for language models; a shorter rest is left out.

    The text is tokenized as far as a walk needs it, once; ids are kept as ``int32``.
    """

    kind, labelled = "tokens", False

    def __init__(self, name: str, text: str, encoder: Encoder) -> None:
        self.name, self.vocabulary = name, encoder.vocabulary
        self._text, self._encoder = text, encoder
        self._ids, self._at = np.empty(0, np.int32), 0
        if self._available(1) < 1:
            raise InputError(
                f"{name} has {len(self._ids)} tokens, fewer than one sample of {encoder.sequence}",
                "give a longer text or a shorter sequence",
            )

    def _available(self, samples: int | None) -> int:
        """How many samples there are, after tokenizing enough for ``samples`` (None: everything)."""
        length, parts, have = self._encoder.sequence, [self._ids], len(self._ids)
        while self._at < len(self._text) and (samples is None or have < samples * length):
            # Cut at a line's end: a word cut in two would become other tokens.
            end = self._text.find("\n", self._at + _PIECE) + 1 or len(self._text)
            parts.append(self._encoder.running(self._text[self._at : end]))
            have, self._at = have + len(parts[-1]), end
        if len(parts) > 1:
            self._ids = np.concatenate(parts)
        return len(self._ids) // length

    def __len__(self) -> int:
        return self._available(None)

    def batches(self, size: int, limit: int | None = None) -> Iterator[Batch]:
        """See :class:`~compresskit.data.source.Source`."""
        length = self._encoder.sequence
        for span in spans(self._available(limit), size, limit):
            ids = self._ids[span.start * length : span.stop * length].reshape(-1, length)
            yield Batch(self._encoder.rows(ids.astype(np.int64)))

    def take(self, rows: np.ndarray) -> Batch:
        """The pieces of some rows, int64 ``(n,)``, in that order."""
        length = self._encoder.sequence
        pieces = self._ids[: self._available(int(rows.max()) + 1) * length].reshape(-1, length)
        return Batch(self._encoder.rows(pieces[rows].astype(np.int64)))

    def fingerprint(self) -> str:
        """See :class:`~compresskit.data.source.Source`; of the text, the tokenizer and the length of a piece."""
        return _fingerprint("running", [self._text], None, self._encoder)


def _fingerprint(kind: str, texts: list[str], targets: np.ndarray | None, encoder: Encoder) -> str:
    prepared = Fingerprint({"kind": kind, "tokenizer": encoder.identity, "sequence": encoder.sequence})
    for text in texts:
        prepared.data(text.encode("utf-8", "surrogatepass"))
    if targets is not None:
        prepared.array("y", targets)
    return prepared.hex()
