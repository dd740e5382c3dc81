"""The examples of the documents run as they stand there."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"


def replayer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_replay", DOCS / "replay.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["docs_replay"] = module
    spec.loader.exec_module(module)
    return module


def replayed(page: Path) -> list[str]:
    """What a page runs: commands, and Python programs."""
    module = replayer()
    blocks = [
        found for found in module.BLOCK.finditer(page.read_text(encoding="utf-8")) if "run" in found["words"].split()
    ]
    programs = [found["body"] for found in blocks if found["kind"] == "python"]
    return programs + [command for found in blocks for command in module.commands_of(found["body"])]


PAGES = [page for page in sorted(DOCS.glob("*.md")) if replayed(page)]
SHOWN = [page for page in PAGES if page.name != "tutorial.md"]


def words_of(text: str) -> list[str]:
    """The words that don't depend on the machine: the verdicts."""
    return re.findall(r"^(PASS|FAIL|UNVERIFIED)\b", text, re.M)


def test_pages_have_examples() -> None:
    names = {page.stem for page in PAGES}
    assert names >= {"tutorial", "measure", "quantize", "prune", "factorize", "distill", "lora"}
    commands = " ".join(command for page in PAGES for command in replayed(page))
    for word in ("quantize", "export", "evaluate", "compare", "bench"):
        assert f"compresskit {word} " in commands, word


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_show_what_they_print(page: Path) -> None:
    """Each command that is run and isn't quiet has output below it, but for those that only lead somewhere."""
    module = replayer()
    for found in module.BLOCK.finditer(page.read_text(encoding="utf-8")):
        if "run" not in found["words"].split():
            continue
        commands = module.commands_of(found["body"])
        shown = [line for line in found["body"].splitlines() if line and not line.startswith("$ ")]
        loud = [command for command in commands if "--quiet" not in command and not command.startswith("cd ")]
        assert len(shown) >= len(loud), f"{page.name}: {commands}"


def test_a_replay_runs_checks_and_fills_in(tmp_path: Path) -> None:
    module = replayer()
    recipe = "steps:\n  - quantize.rtn: {bits: 8}\n"
    command = "$ compresskit recipe check r.yaml"
    page = (
        f"```yaml file=r.yaml\n{recipe}```\n```text run lines=1\n{command}\nold\n```\n```text\n$ compresskit no\n```\n"
    )
    made = module.Replay(tmp_path).page(page)
    assert f"{command}\nvalid: r.yaml, 1 step\n…\n```" in made
    assert "old" not in made and "$ compresskit no" in made
    with pytest.raises(module.Failed, match="expected 0"):
        module.Replay(tmp_path).page(page.replace("bits: 8", "bits: 9"))
    wrong = page.replace("bits: 8", "bits: 9").replace("check r.yaml", "check r.yaml # exit code 2")
    assert "bits" in module.Replay(tmp_path).page(wrong)
    module.Replay(tmp_path).page("```python run\nopen('made', 'w').close()\n```\n")
    assert (tmp_path / "made").exists()
    with pytest.raises(module.Failed, match="a python block"):
        module.Replay(tmp_path).page("```python run\n1 / 0\n```\n")
    with pytest.raises(module.Failed, match="only compresskit"):
        module.Replay(tmp_path).page("```text run\n$ rm x\n```\n")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_tutorial_runs(tmp_path: Path) -> None:
    text = (DOCS / "tutorial.md").read_text(encoding="utf-8")
    assert words_of(replayer().Replay(tmp_path).page(text)) == words_of(text)


@pytest.fixture(scope="module")
def tour(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that ``compresskit demo`` writes."""
    folder = tmp_path_factory.mktemp("tour") / "demo"
    subprocess.run([sys.executable, "-m", "compresskit", "demo", "--quiet", "-o", str(folder)], check=True, timeout=900)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("page", SHOWN, ids=lambda page: page.name)
def test_the_examples_of_a_page_run(page: Path, tour: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert words_of(replayer().Replay(tour).page(text)) == words_of(text)


@pytest.mark.parametrize(("name", "shown"), [("compress", "README.md"), ("inspect", "docs/tutorial.md")])
def test_pictures_are_of_this_program(name: str, shown: str) -> None:
    svg = (DOCS / "pictures" / f"{name}.svg").read_text(encoding="utf-8")
    assert f"compresskit&#160;{name}" in svg
    assert not re.findall(r"(?:href|src|url)\s*[=(]\s*['\"]?https?:", svg)
    assert f"pictures/{name}.svg" in (ROOT / shown).read_text(encoding="utf-8")
    assert "animation:appear" in svg
