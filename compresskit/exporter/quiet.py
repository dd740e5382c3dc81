"""Silence for libraries that log and warn while they work."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO


@contextmanager
def quiet() -> Iterator[None]:
    """No log records, warnings or prints inside the block; onnxruntime's telemetry is switched off for good.

    torch prints the whole graph when a model can't be traced.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def first_line(error: BaseException, limit: int = 200) -> str:
    """The first line of an exception's text that says something, or its type's name."""
    lines = [line.strip() for line in str(error).splitlines()]
    text = next((line for line in lines if line), type(error).__name__)
    return text if len(text) <= limit else text[: limit - 1] + "…"
