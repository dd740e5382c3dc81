"""A terminal's size that is none must not make output vanish."""

from __future__ import annotations

import io

import pytest

from compresskit.render.console import make_console


@pytest.mark.parametrize("columns", ["0", "-1", "-80", "", "wide", "1e3", "²", "9" * 12])
@pytest.mark.parametrize("name", ["COLUMNS", "LINES"])
def test_a_size_that_is_none_is_not_used(monkeypatch: pytest.MonkeyPatch, name: str, columns: str) -> None:
    monkeypatch.setenv(name, columns)
    stream = io.StringIO()
    make_console(stream).print("all of it is shown")
    assert stream.getvalue() == "all of it is shown\n"


def test_a_size_that_is_one_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "43")
    assert make_console(io.StringIO()).width == 43
