"""What a step's key depends on, and what not."""

from __future__ import annotations

from pathlib import Path

import pytest

from compresskit import method
from compresskit.errors import InputError
from compresskit.runner.keys import content, options_of
from compresskit.runner.provenance import differences


def test_a_named_file_counts_by_its_content(tmp_path: Path) -> None:
    teacher = tmp_path / "here" / "teacher.onnx"
    teacher.parent.mkdir()
    before = options_of(method("distill.kd", epochs=1, teacher=str(teacher)))
    teacher.write_bytes(b"one")
    first = options_of(method("distill.kd", epochs=1, teacher=str(teacher)))
    moved = tmp_path / "else" / "here" / "teacher.onnx"
    moved.parent.mkdir(parents=True)
    moved.write_bytes(b"one")
    assert first == options_of(method("distill.kd", epochs=1, teacher=str(moved))) != before
    teacher.write_bytes(b"two")
    assert options_of(method("distill.kd", epochs=1, teacher=str(teacher))) != first


def test_the_state_of_a_training_does_not_count(tmp_path: Path) -> None:
    plain = options_of(method("prune.structured", target_macs=0.5, epochs=1))
    state = tmp_path / "state"
    assert options_of(method("prune.structured", target_macs=0.5, epochs=1, checkpoint=state)) == plain
    state.mkdir()
    (state / "epoch").write_text("3")
    assert options_of(method("prune.structured", target_macs=0.5, epochs=1, checkpoint=state)) == plain


def test_the_content_of_a_folder_is_that_of_its_model(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"weights")
        (tmp_path / name / "README.md").write_text(name)
    assert content(tmp_path / "one") == content(tmp_path / "two")
    (tmp_path / "two" / "tokenizer.json").write_text("{}")
    assert content(tmp_path / "one") != content(tmp_path / "two")
    with pytest.raises(InputError, match="does not exist"):
        content(tmp_path / "three")


def test_differences_name_the_field() -> None:
    then = {"cpu": "A", "packages": {"torch": "1", "numpy": "2"}, "flags": ["x"]}
    now = {"cpu": "A", "packages": {"torch": "3", "onnx": "4"}, "flags": ["x"]}
    assert differences(then, now) == [
        "packages.numpy: 2 then, none now", "packages.onnx: none then, 4 now", "packages.torch: 1 then, 3 now",
    ]  # fmt: skip
    assert differences(then, then) == []
