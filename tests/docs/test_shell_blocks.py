"""The commands in the shell blocks of README and docs run as they stand there, on small stand-ins of their files."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest
from shell_material import MAKERS, answers
from test_docs import BLOCK, ROOT, WRITTEN, name_of

PLACEHOLDERS = re.compile(r"RECIPE|\[MODEL\]|…")
OTHERS = ("make ", "pip ", "uv ", "docker ", "torchrun ", "cd ", ". ", "export ")
"""Programs that install, build, or start processes elsewhere; what they do is tested in places of their own."""
ENDLESS = ("serve",)
WRITING = ("compress", "distill", "factorize", "lora", "prune", "quantize", "route", "run", "substitute")
"""Commands whose result may be there already: of a stand-in, or of the block above."""
SHORTER = ((r"--time \d+[smh]", "--time 20s"), (r"--epochs \d+", "--epochs 1"), (r"--samples \d+", "--samples 32"))
"""Options whose value only says how long it takes."""


def commands(page: Path) -> list[list[str]]:
    """The commands of a page's shell blocks, as words; continued lines are joined."""
    import shlex

    found = []
    for kind, body in BLOCK.findall(page.read_text(encoding="utf-8")):
        if kind != "sh":
            continue
        for line in body.replace("\\\n", " ").splitlines():
            for long, short in SHORTER:
                line = re.sub(long, short, line)
            words = shlex.split(line, comments=True)
            if (
                not words
                or line.startswith(OTHERS)
                or PLACEHOLDERS.search(line)
                or words[-1].endswith("compresskit-edge")
            ):
                continue
            assert words[0] in ("compresskit", "compresskit-edge"), f"{name_of(page)}: {line}"
            if ">" in words:  # what the shell does with the output
                words = words[: words.index(">")]
            if words[0] == "compresskit" and words[1] not in ENDLESS:
                found.append(words[1:])
    return found


PAGES = [page for page in WRITTEN if page.parent in (ROOT, ROOT / "docs") and commands(page)]


def test_pages_have_commands() -> None:
    assert len(PAGES) > 15 and sum(len(commands(page)) for page in PAGES) > 60


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all stand-ins; copied for each page."""
    folder = tmp_path_factory.mktemp("world")
    for make in MAKERS:
        make(folder)
    return folder


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.usefixtures("forked_workers")
@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_commands_of_a_page_run(
    page: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each ends with a verdict: 0, or 1 where the stand-ins lose more than the page's models."""
    from compresskit.cli.main import main

    here = tmp_path / "here"
    if page.name == "use.md":
        here.mkdir()
        answers(here)
    else:
        shutil.copytree(world, here)
    monkeypatch.chdir(here)
    monkeypatch.setenv("COMPRESSKIT_CACHE", str(tmp_path / "steps"))
    for words in commands(page):
        if words[0] in WRITING and words[1] != "list":
            words.append("--force")
        monkeypatch.setattr(sys, "argv", ["compresskit", *words])
        with pytest.raises(SystemExit) as left:
            main()
        out, err = capfd.readouterr()
        assert left.value.code in (0, 1), f"compresskit {' '.join(words)}\n{out}{err}"
