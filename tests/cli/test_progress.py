"""The progress bar of long work."""

from __future__ import annotations

import io
import re
import sys

import pytest

from compresskit.cli.console import Bar, progressing
from compresskit.stage import silent


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_training_shows_its_loss_and_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr("compresskit.cli.console._DELAY", -1.0)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    bar = Bar()
    for step in range(1, 6):
        bar(f"training: epoch 1 of 2, loss {1 / step:.3f}", step, 10)
    bar.close()
    last = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue())
    assert "training: epoch 1 of 2, loss 0.200" in last and "50%" in last
    assert re.search(r"50% 0:00:\d\d", last)


def test_no_bar_without_a_terminal() -> None:
    with progressing(quiet=True) as progress:
        assert progress is silent
