"""Language models that write: every program says the same, streamed, and what doesn't fit is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from lm_folders import PROMPT, make_folder

import compresskit
from compresskit.errors import InputError, UsageError
from compresskit.runner.generating import generate, open_writer
from compresskit.runner.targets import export_to
from compresskit.runtimes.text import Request, find


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder, with its .gguf beside it."""
    pytest.importorskip("gguf")
    from compresskit.exporter.targets import get

    folder = make_folder(tmp_path_factory.mktemp("lm"), "llama")
    export_to(compresskit.load(folder), get("gguf"), folder.with_name("llama.gguf"))
    return folder


def plain(text: str) -> str:
    """Without what random bytes become: of these the programs show half characters in different ways."""
    return "".join(letter for letter in text if letter.isascii() and letter.isprintable())


def test_programs_write_the_same(llama: Path) -> None:
    pytest.importorskip("xllamacpp")
    pieces: list[str] = []
    text = generate(llama, PROMPT, tokens=16, show=pieces.append)
    assert len(pieces) > 1 and "".join(pieces) == text and len(text) > 5
    assert plain(generate(llama, PROMPT, tokens=16, engine="llama.cpp")) == plain(text)
    assert plain(generate(llama.with_name("llama.gguf"), PROMPT, tokens=16)) == plain(text)
    assert generate(llama, PROMPT, tokens=16, temperature=2.0, seed=1) != text


@pytest.mark.parametrize("name", ["llama", "llama.gguf"])
def test_a_request_is_timed_and_counted(llama: Path, name: str) -> None:
    pytest.importorskip("xllamacpp")
    writer = open_writer(llama.with_name(name), threads=1, context=64)
    made = writer.write(Request(list(range(3, 23)), 8, to_the_end=True), lambda text: None)
    assert (made.prompt_tokens, made.new_tokens) == (20, 8)
    assert made.first_s > 0 and made.rest_s > 0


def test_what_does_not_fit_is_named(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="`engine` genai can't open"):
        find(llama.with_name("llama.gguf"), "genai")
    with pytest.raises(UsageError, match="none of that name"):
        find(llama, "lama.cpp")
    with pytest.raises(InputError, match="no chat template"):
        generate(llama, "hello", chat=True)
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(40))
    pytest.importorskip("xllamacpp")
    with pytest.raises(InputError, match=r"can't open .*bad\.gguf"):
        generate(tmp_path / "bad.gguf", "hello")
