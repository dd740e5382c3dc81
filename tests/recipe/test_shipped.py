"""The recipes that ship: each is good, says what it is for, and fits the schema; so do their stages' options."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from compresskit import registry
from compresskit.recipe import shipped
from compresskit.recipe.problems import Problems
from compresskit.recipe.reading import read_recipe
from compresskit.recipe.schema import DRAFT, schema
from compresskit.recipe.tree import Place, parse

ROOT = Path(__file__).resolve().parents[2]
EXPECTED = {
    "edge-int8", "edge-4bit", "cpu-fast", "prune-distill-int8", "bert-small", "llm-4bit", "tiny", "qlora",
    "collapse-int8", "exits-int8", "moe-half", "palette-small",
}  # fmt: skip


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    """The schema, made once."""
    return schema()


def plain(text: str) -> object:
    problems = Problems()
    tree = parse(text.encode(), Place("r.yaml"), problems)
    problems.raise_any()
    assert tree is not None
    return tree.plain()


def test_all_of_them_ship() -> None:
    assert set(shipped.names()) == EXPECTED
    assert shipped.folder() == ROOT / "recipes"
    wheel = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert '[tool.hatch.build.targets.wheel.force-include]\n"recipes" = "compresskit/recipe/files"' in wheel


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_each_is_good_and_described(name: str) -> None:
    (recipe,) = read_recipe(name)
    assert recipe.name == name and recipe.steps
    assert 30 < len(recipe.description) < 120 and recipe.description.endswith(".")
    assert recipe.model is None and recipe.data is None and recipe.eval_data is None


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_each_teaches(name: str) -> None:
    text = shipped.named(name).read_text(encoding="utf-8")
    comments = re.findall(r"^\s*# .+", text, re.M)
    assert len(comments) >= 5 and f"compresskit run {name}" in text


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_each_fits_the_schema(name: str, told: dict[str, Any]) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator(told).validate(plain(shipped.named(name).read_text(encoding="utf-8")))


def test_the_schema_is_one(told: dict[str, Any]) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(told)


@pytest.mark.parametrize(
    "text",
    [
        "steps: [{quantize.rtn: {bit: 4}}]",
        "steps: [{quantize.rtn: {bits: 7}}]",
        "steps: [quantise.rtn]",
        "steps: [{quantize.rtn: {}, quantize.hqq: {}}]",
        "steps: [{max-drop: 1pt}]",
        "steps: [{quantize.rtn: {}, max-drop: 1}]",
        "steps: [quantize.rtn]\nmodell: x",
        "steps: [quantize.rtn]\nseed: -1",
        "steps: [quantize.rtn]\nmatrix: {seed: 1}",
        "seed: 1",
        "steps: []",
    ],
)
def test_the_schema_refuses(text: str, told: dict[str, Any]) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    assert not jsonschema.Draft202012Validator(told).is_valid(plain(text))


def test_the_schema_describes_every_key_and_every_option(told: dict[str, Any]) -> None:
    assert told["$schema"] == DRAFT
    for key, about in told["properties"].items():
        assert len(about.get("description", "")) > 5 or key == "steps", key
    for name in registry.rows():
        options = told["$defs"][name]["properties"]
        assert set(options) == {field.replace("_", "-") for field in registry.get(name).model_fields}, name
        for option, about in options.items():
            assert about.get("description"), (name, option)
            assert "_" not in option and "title" not in about
