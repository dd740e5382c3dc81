"""What language models write after the same prompts, compared token by token."""

from __future__ import annotations

from pathlib import Path

import pytest
from lm_folders import PROMPT, make_folder

import compresskit
from compresskit.errors import InputError, UsageError
from compresskit.runner.continuations import compare_continuations, equal_tokens
from compresskit.runner.targets import export_to


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ((1, 2, 3), (1, 2, 3), [1, 1, 1]),
        ((1, 2, 3), (1, 9, 3), [1, 0, 1]),
        ((1, 2), (1, 2), [1, 1, 1]),  # both end there
        ((1, 2), (1,), [1, 1, 1]),  # 2 ends the text, and one program tells it
        ((1, 2, 3), (1,), [1, 0, 0]),
        ((1, 2, 3), (), [0, 0, 0]),
        ((1, 2), (9,), [0, 0, 1]),
    ],
)
def test_tokens_are_compared_by_place(a: tuple[int, ...], b: tuple[int, ...], same: list[int]) -> None:
    for one, other in ((a, b), (b, a)):
        assert equal_tokens(one, other, 3).tolist() == [bool(each) for each in same]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder, the same as .gguf, and one of other weights; and text."""
    pytest.importorskip("gguf")
    pytest.importorskip("xllamacpp")
    from safetensors.torch import load_file, save_file

    from compresskit.exporter.targets import get

    folder = tmp_path_factory.mktemp("lm")
    export_to(compresskit.load(make_folder(folder, "llama")), get("gguf"), folder / "llama.gguf")
    (folder / "text.txt").write_text((PROMPT + ". ") * 40)
    make_folder(folder / "b", "llama").rename(folder / "other")
    weights = load_file(folder / "other" / "model.safetensors")
    weights["lm_head.weight"] *= -1
    save_file(weights, folder / "other" / "model.safetensors", {"format": "pt"})
    return folder


def test_the_same_weights_write_the_same_and_others_do_not(models: Path) -> None:
    paths = [models / "llama", models / "llama.gguf", models / "other"]
    report = compare_continuations(paths, str(models / "text.txt"), 16, 12, prompts=6, threads=1)
    agreement, first = report.values("greedy_agreement"), report.values("first_difference")
    assert (agreement["llama.gguf"].value, first["llama.gguf"].value) == (100, 12)
    assert agreement["llama.gguf"].n == 6 and agreement["llama.gguf"].runtime == "llama.cpp"
    assert agreement["other"].value < 50 and first["other"].value < 6
    assert any("llama.gguf under llama.cpp: 6 of 6" in note for note in report.notes)


def test_what_can_not_be_compared_is_named(models: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="two models or more"):
        compare_continuations([models / "llama"], str(models / "text.txt"), 8, 4)
    (tmp_path / "q.jsonl").write_text('{"context": "a", "choices": ["b", "c"], "answer": 0}')
    with pytest.raises(UsageError, match="no text to go on from"):
        compare_continuations([models / "llama", models / "other"], str(tmp_path / "q.jsonl"), 8, 4)
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        compare_continuations([models / "llama.gguf", models / "other"], str(models / "text.txt"), 8, 4)
