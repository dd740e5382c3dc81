"""The Python examples of docs/use.md run as they stand there, on bundles of small models."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import compresskit

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "predict"))
from predict_material import bundles, sentences

PAGE = Path(__file__).resolve().parents[2] / "docs" / "use.md"
BLOCK = re.compile(r"^```python(?: needs=(\w+))?\n(.*?)^```$", re.M | re.S)
SHORTER = [compresskit.method("prune.depth", blocks=("encoder.layer.0",))]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the bundles that the page names; of small models, so that they take no time."""
    folder = tmp_path_factory.mktemp("use")
    bundles(folder, {"st": "out", "cls": "reviews", "m.pt": "animals"}, "imagenet")
    (folder / "cat.png").write_bytes((folder / "pictures" / "cat" / "0.png").read_bytes())
    compresskit.run(folder / "st", SHORTER, folder / "shorter", export=False)
    return folder


@pytest.fixture(scope="module")
def said(place: Path) -> dict[str, Any]:
    """The names that the examples leave which need nothing else than this package's own extras."""
    found: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        for number, (needs, block) in enumerate(BLOCK.findall(PAGE.read_text(encoding="utf-8"))):
            if not needs:
                exec(compile(block, f"{PAGE.name}, block {number}", "exec"), found)
    return found


def test_the_examples_give_what_the_page_says(said: dict[str, Any], place: Path) -> None:
    assert said["vectors"].shape == (3, 16) and said["nearest"] in (0, 1, 2)
    again = said["embed"](["A cat sits on the mat.", "Dogs bark."])
    # The page cuts at MiniLM's length, which the first text of the two doesn't reach; this model's is shorter.
    assert np.allclose(said["embeddings"][1], again[1], atol=1e-6)
    assert said["about"]["labels"] == ["cat", "dog", "fox"]
    assert said["about"]["pixels"]["mean"] == [0.485, 0.456, 0.406]


@pytest.mark.slow
@pytest.mark.parametrize("number", range(2))
def test_the_examples_with_optimum(place: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    if importlib.util.find_spec("optimum") is None:
        pytest.skip("optimum-onnx is not installed")
    monkeypatch.chdir(place)
    blocks = [block for needs, block in BLOCK.findall(PAGE.read_text(encoding="utf-8")) if needs == "optimum"]
    assert len(blocks) == 2
    exec(compile(blocks[number], PAGE.name, "exec"), {})


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_encode_of_sentence_transformers_gives_the_same(tmp_path: Path) -> None:
    """Its own tokenizer, model, pooling and normalization in torch, on the folder that prune wrote."""
    from sentence_transformers import SentenceTransformer

    texts = ["the cat sat on the mat far away", "a dog ran", "dog"]
    compresskit.run(sentences(tmp_path / "st"), SHORTER, tmp_path / "shorter", bench=False)
    theirs = SentenceTransformer(str(tmp_path / "shorter"), device="cpu").encode(texts)
    ours = compresskit.pipeline(tmp_path / "shorter")(texts)
    assert theirs.shape == ours.shape == (3, 16) and np.abs(theirs - ours).max() < 1e-5
