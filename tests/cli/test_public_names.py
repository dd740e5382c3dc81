"""The names of ``import compresskit``."""

from __future__ import annotations

import importlib.util

import pytest

import compresskit


@pytest.mark.parametrize("name", [n for n in compresskit.__all__ if n != "__version__"])
def test_no_submodule_hides_a_public_name(name: str) -> None:
    """Importing ``compresskit.NAME`` sets the attribute of that name on the package: it must not be a public one."""
    assert importlib.util.find_spec(f"compresskit.{name}") is None
    assert callable(getattr(compresskit, name))
