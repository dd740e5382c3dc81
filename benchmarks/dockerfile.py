"""What the Dockerfile says, for replaying it without an engine."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

from harness import ROOT


def commands(stage: str) -> list[str]:
    """The shell lines of a stage's RUN instructions."""
    return re.findall(r"^RUN (.+)$", _part(stage), re.M)


def copy_in(stage: str, place: Path) -> None:
    """Do a stage's COPY instructions from the project into a folder that stands for its working directory."""
    for line in re.findall(r"^COPY (?!--from)(.+)$", _part(stage), re.M):
        *names, target = line.split()
        for name in names:
            source = ROOT / name
            there = place / target / source.name if len(names) > 1 or target.endswith("/") else place / target
            there.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, there, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copyfile(source, there)


def variables(stage: str) -> dict[str, str]:
    """What a stage's ENV and ARG instructions set."""
    lines = re.findall(r"^(?:ENV|ARG) (.+)$", _part(stage), re.M)
    return dict(pair.split("=", 1) for line in lines for pair in line.split() if "=" in pair)


def _part(stage: str) -> str:
    """A stage's instructions, each on one line."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    found = re.search(rf"^FROM \S+ AS {stage}\n(.*?)(?=^FROM |\Z)", text, re.M | re.S)
    if found is None:
        sys.exit(f"the Dockerfile has no stage {stage}")
    return found[1]
