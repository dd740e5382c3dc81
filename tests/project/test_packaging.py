"""What pyproject.toml says of the package: one version, each dependency in one place, types shipped."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from compresskit import __version__

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[^\w.-]", line)[0] for line in requirements}


def test_the_version_stands_in_the_package_alone() -> None:
    found = pyproject()
    assert found["project"]["dynamic"] == ["version"] and "version" not in found["project"]
    source = (ROOT / found["tool"]["hatch"]["version"]["path"]).read_text(encoding="utf-8")
    # As hatchling reads it.
    (written,) = re.findall(r"(?i)^(?:__version__|VERSION)(?:: str)? *= *(['\"])v?(.+?)\1", source, re.M)
    assert written[1] == __version__ and re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", __version__)


@pytest.mark.parametrize("name", ["docs/check.md", "examples/ci/compress.yml"])
def test_what_names_a_release_names_this_one(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    found = re.findall(
        r"OWNER/compresskit(?:\.git)?@v([\w.]+)|\brev: v([\w.]+)|compresskit(?:\[\w+\])?==([\w.]+)", text
    )
    assert found and {one or two or three for one, two, three in found} == {__version__}


def test_what_every_install_brings_is_in_no_extra() -> None:
    project = pyproject()["project"]
    core = names(project["dependencies"])
    assert {"torch", "plotly"} <= core
    assert not {
        extra: both for extra, lines in project["optional-dependencies"].items() if (both := core & names(lines))
    }


def test_development_takes_every_extra() -> None:
    extras = pyproject()["project"]["optional-dependencies"]
    (own,) = [line for line in extras["dev"] if line.startswith("compresskit[")]
    assert set(own[len("compresskit[") : -1].split(",")) == set(extras) - {"dev"}


def test_every_extra_that_is_named_exists() -> None:
    """In hints, documents and files for CI."""
    extras = set(pyproject()["project"]["optional-dependencies"])
    texts = [
        *(ROOT / "compresskit").rglob("*.py"),
        *ROOT.glob("*.md"),
        *(ROOT / "docs").glob("*.md"),
        ROOT / "Dockerfile",
    ]
    for path in [*texts, *(ROOT / "examples").rglob("*.yml"), *(ROOT / ".github").rglob("*.yml")]:
        for listed in re.findall(r"(?:compresskit|['\" ]\.)\[([a-z,]+)\]", path.read_text(encoding="utf-8")):
            assert set(listed.split(",")) <= extras, f"{path.relative_to(ROOT)}: {listed}"


def test_types_are_shipped() -> None:
    """The wheel takes the whole folder, and leaves nothing out."""
    wheel = pyproject()["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["packages"] == ["compresskit"] and "exclude" not in wheel and "include" not in wheel
    assert (ROOT / "compresskit" / "py.typed").is_file()
