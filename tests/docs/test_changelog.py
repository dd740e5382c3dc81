"""The changelog has the sections of Keep a Changelog, in their order, and a version for what the package is."""

from __future__ import annotations

import re
from pathlib import Path

from compresskit import __version__

TEXT = (Path(__file__).resolve().parents[2] / "CHANGELOG.md").read_text(encoding="utf-8")
ORDER = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]


def versions() -> dict[str, str]:
    parts = re.split(r"^## \[(.+?)\].*$", TEXT, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_the_newest_version_is_the_package_s() -> None:
    assert next(iter(versions())) == __version__


def test_sections_stand_in_order_and_hold_lines() -> None:
    for version, body in versions().items():
        _, *parts = re.split(r"^### (.+)$", body, flags=re.M)
        names = parts[::2]
        assert names == [name for name in ORDER if name in names], version
        for name, lines in zip(names, parts[1::2], strict=True):
            assert re.fullmatch(r"\n+(?:- \S.*\n(?:  \S.*\n)*)+\n*", lines), f"{version}, {name}"
