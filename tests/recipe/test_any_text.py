"""Whatever the file holds, reading it gives recipes or a RecipeError, and never imports torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compresskit.recipe.plan import Recipe
from compresskit.recipe.problems import RecipeError
from compresskit.recipe.reading import read_recipe

WORDS = [
    "steps", "matrix", "include", "checks", "max-drop", "rollback", "arch-args", "data", "seed", "steps.0.bits",
    "quantize.rtn", "quantize.gptq", "lora.lora", "prune.structured", "distill.kd", "$model", "edge-int8", "bits",
    "layer-bits", "teacher", "input-shape", "1%", "0.5pt", "a=8", "\\0", "<<",
]  # fmt: skip
SIGNS = [
    ":", ": ", "- ", "\n", "\n  ", "[", "]", "{", "}", ", ", "&a ", "*a", "!!str ", "!!python/x ", "|\n", ">", "---\n",
    "...\n", "%YAML 1.1\n", "'", '"', "# ", "? ", "\t", "\u2028", "\\x", "\\Uffffffff",
]  # fmt: skip
leaf = st.one_of(
    st.sampled_from(WORDS), st.integers(), st.floats(), st.booleans(), st.none(), st.text(max_size=8),
    st.integers(min_value=10**300),
)  # fmt: skip
value = st.recursive(
    leaf, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=3)
)
document = st.dictionaries(st.sampled_from(WORDS), value, max_size=6)
pieces = st.lists(
    st.sampled_from(WORDS + SIGNS),
    max_size=30,
)  # fmt: skip
small = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def reads(folder: Path, data: bytes) -> None:
    (folder / "r.yaml").write_bytes(data)
    try:
        found = read_recipe(folder / "r.yaml", complete=len(data) % 2 == 0)
    except RecipeError as error:
        assert error.problems
        assert all(c.isprintable() for line in error.messages() for c in line)
    else:
        assert found and all(isinstance(recipe, Recipe) and recipe.steps for recipe in found)


@small
@given(pieces)
def test_any_text(tmp_path: Path, parts: list[str]) -> None:
    reads(tmp_path, "".join(parts).encode())


@small
@given(document)
def test_any_document(tmp_path: Path, content: dict[str, object]) -> None:
    import yaml

    reads(tmp_path, yaml.safe_dump(content, allow_unicode=True).encode("utf-8", "surrogatepass"))


@small
@given(st.binary(max_size=60))
def test_any_bytes(tmp_path: Path, data: bytes) -> None:
    reads(tmp_path, data)


@small
@given(st.text(max_size=30) | st.builds("{}={}".format, st.sampled_from(WORDS), st.text(max_size=12)))
def test_any_set(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.yaml").write_text("steps: [quantize.gptq]", encoding="utf-8")
    try:
        read_recipe(tmp_path / "r.yaml", sets=[text])
    except RecipeError as error:
        assert all(problem.file.startswith("`set`") for problem in error.problems)


def test_a_good_document_is_read() -> None:
    """The properties above are no better than what they let through."""
    with pytest.raises(RecipeError):
        read_recipe("no-such-recipe")
    assert read_recipe("edge-int8")


def test_reading_a_recipe_imports_no_torch() -> None:
    code = (
        "import sys\n"
        "from compresskit.recipe import shipped\n"
        "from compresskit.recipe.reading import read_recipe\n"
        "from compresskit.recipe.schema import schema\n"
        "assert schema()\n"
        "for name in shipped.names(): assert read_recipe(name)\n"
        "heavy = [n for n in ('torch', 'onnx', 'onnxruntime', 'transformers', 'peft') if n in sys.modules]\n"
        "sys.exit(f'imports {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
