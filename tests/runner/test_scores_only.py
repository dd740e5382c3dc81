"""The ONNX file of a language model says that it can't generate: in the notes, the card and its own metadata."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from lm_folders import make_folder

import compresskit
from compresskit.model import SCORES_ONLY


@pytest.mark.slow
def test_the_onnx_file_of_a_language_model_says_that_it_scores_only(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, "llama")
    report = compresskit.run(folder, [compresskit.method("quantize.rtn", bits=4)], tmp_path / "out", bench=False)
    assert any(SCORES_ONLY in note for note in report.notes)
    assert json.loads((tmp_path / "out" / "compresskit.json").read_text())["onnx"] == SCORES_ONLY
    stored = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False).metadata_props
    assert SCORES_ONLY in [entry.value for entry in stored]
    assert compresskit.load(tmp_path / "out").card.task == "causal-lm"
