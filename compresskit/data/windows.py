"""Running text in overlapping windows, so that each token is predicted once, with a long context before it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from compresskit.data.source import Batch
from compresskit.data.tokens import Encoder
from compresskit.data.walking import Fingerprint, spans
from compresskit.errors import InputError, UsageError


@dataclass(frozen=True)
class Window:
    """How text is cut.

    Attributes:
        tokens: Of a window, from 2; of a question with an answer the most tokens.
        stride: Tokens from the start of a window to that of the next, from 1 to ``tokens``; None is half a window.

    Raises:
        UsageError: A number is out of its range.
    """

    tokens: int
    stride: int | None = None

    def __post_init__(self) -> None:
        if self.tokens < 2:
            raise UsageError(f"`window` is at least 2 tokens, found {self.tokens}")
        if self.stride is not None and not 1 <= self.stride <= self.tokens:
            raise UsageError(f"`stride` is 1 to {self.tokens}, the tokens of a window; found {self.stride}")

    @property
    def step(self) -> int:
        """Tokens from one window to the next."""
        return max(1, self.tokens // 2) if self.stride is None else self.stride


def window_of(tokens: int | None, stride: int | None) -> Window | None:
    """What two options say together; None without a window.

    Raises:
        UsageError: A stride without a window, or a number out of its range.
    """
    if tokens is None:
        if stride is not None:
            raise UsageError("`stride` is of windows, and none are asked for", "give `window`")
        return None
    return Window(tokens, stride)


class WindowedText:
    """Running text in windows of equal length; the last one ends with the text.

    Each token but the first is scored in one window only: the first that holds it. It sees all that is before it in
    that window, which are ``tokens - stride`` tokens or more behind the first window.
    """

    kind, labelled = "tokens", False

    def __init__(self, name: str, text: str, encoder: Encoder, window: Window) -> None:
        """Tokenize the text, whole.

        Args:
            name: As the user gave it.
            text: All of it.
            encoder: Of ``window.tokens`` tokens a sample.
            window: How it is cut.

        Raises:
            UsageError: The model takes no windows of this length.
            InputError: Fewer than 2 tokens.
        """
        if encoder.sequence != window.tokens:
            raise UsageError(
                f"`window` {window.tokens}: the model takes {encoder.sequence} tokens", "give `window` less"
            )
        self.name, self.vocabulary = name, encoder.vocabulary
        self._encoder, self._window, self._ids = encoder, window, encoder.running(text)
        if len(self._ids) < 2:
            raise InputError(f"{name} has {len(self._ids)} tokens: none can be predicted", "give a longer text")
        self._length = min(window.tokens, len(self._ids))
        self.notes = [
            f"{len(self._ids) - 1} tokens of {name} are predicted, each once, in windows of {self._length} tokens "
            f"{window.step} apart"
        ]

    def __len__(self) -> int:
        return 1 + max(0, -(-(len(self._ids) - self._length) // self._window.step))

    def batches(self, size: int, limit: int | None = None) -> Iterator[Batch]:
        """See :class:`~compresskit.data.source.Source`."""
        for span in spans(len(self), size, limit):
            yield self.take(np.arange(span.start, span.stop))

    def take(self, rows: np.ndarray) -> Batch:
        """Some windows, int64 ``(n,)``, in that order."""
        last = len(self._ids) - self._length
        starts = np.minimum(rows * self._window.step, last)
        # What the window before it ends with: of the tokens up to there each was scored.
        seen = np.where(rows > 0, np.minimum((rows - 1) * self._window.step, last) + self._length, 0)
        at = starts[:, None] + np.arange(self._length)
        return Batch(self._encoder.rows(self._ids[at].astype(np.int64)), scored=at >= seen[:, None])

    def fingerprint(self) -> str:
        """See :class:`~compresskit.data.source.Source`; of the ids and the windows."""
        prepared = Fingerprint({"kind": "windows", "tokens": self._length, "stride": self._window.step})
        prepared.array("ids", self._ids)
        return prepared.hex()
