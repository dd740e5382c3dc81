"""The checker of English finds what it should, and the site has every page."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
RIDDLES = [
    "an error of a weight counts as the model's outputs feel it",
    "a large one answers sooner",
    "which layers mind 4 bit",
    "What could become of a model",
    "what could become of a model is told before anything is tried",
    "the model is held against the first one",
    "what is left behind a step that may stay",
    "leave `--no-bench` or leave bench away",
    "faster is only what is well below",
    "at the narrowest 0.3 % stay",
    "on 32 made-up inputs",
    "a model that keeps your bars",
]


@pytest.fixture(scope="module")
def prose() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_prose", ROOT / "docs" / "prose.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("riddle", RIDDLES)
def test_words_in_a_private_sense_are_found(prose: ModuleType, riddle: str) -> None:
    assert list(prose.private(riddle))
    assert not list(prose.private(f"```sh\n{riddle}\n```\n"))


def test_sentences_are_measured(prose: ModuleType, tmp_path: Path) -> None:
    short, long = tmp_path / "short.md", tmp_path / "long.md"
    short.write_text("# Title\n\n" + "The model is small. It runs fast on this CPU.\n\n" * 9, encoding="utf-8")
    long.write_text("# Title\n\n" + " and ".join(["the quantization of activations"] * 30) + ".\n", encoding="utf-8")
    assert not list(prose.faults(short))
    (fault,) = prose.faults(long)
    assert "reading ease" in fault
    assert [prose.syllables(word) for word in ("model", "quantization", "size", "sizes", "trained")] == [2, 4, 1, 2, 1]


def test_the_site_has_every_page() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    nav = yaml.safe_load(text[text.index("nav:") :])["nav"]
    listed = re.findall(r"[\w-]+\.md", str(nav))
    assert sorted(listed) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))
