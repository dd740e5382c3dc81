"""Processes in which some packages are not found, as if never installed."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Read by Python at its start, in the processes of the bench too.
_BLOCK = """
from importlib.machinery import PathFinder
real = PathFinder.find_spec
def find_spec(name, path=None, target=None):
    return None if name.partition(".")[0] in BLOCKED else real(name, path, target)
PathFinder.find_spec = staticmethod(find_spec)
"""


def block(folder: Path, monkeypatch: pytest.MonkeyPatch, modules: Iterable[str]) -> None:
    """Make processes that start from here on find none of the modules; a file for that goes into ``folder``."""
    (folder / "sitecustomize.py").write_text(f"BLOCKED = {tuple(modules)!r}\n{_BLOCK}", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), str(ROOT)]))
