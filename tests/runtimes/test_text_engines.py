"""Language models that write: every program says the same, streamed, and what doesn't fit is named."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from lm_folders import PROMPT, make_folder

import compresskit
from compresskit.errors import InputError, UsageError
from compresskit.runner.generating import generate, open_writer
from compresskit.runner.targets import export_to
from compresskit.runtimes.text import Chat, Request, TooLong, find


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
    with pytest.raises(UsageError, match=r"`engine` transformers can't open .*, which is for llama.cpp"):
        find(llama.with_name("llama.gguf"), "transformers")
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


@pytest.mark.parametrize("name", ["llama", "llama.gguf"])
def test_writing_ends_when_it_is_enough(llama: Path, name: str) -> None:
    """By the number of tokens, by the model, or by who listens; a prompt without room for an answer is refused."""
    writer = open_writer(llama.with_name(name), threads=1, context=64)
    ids = list(range(3, 23))
    assert writer.write(Request(ids, 4), lambda text: None).cut
    seen: list[str] = []
    made = writer.write(Request(PROMPT, 30), lambda text: len(seen) == 3 or seen.append(text))
    assert len(seen) == 3 and not made.cut
    assert made.new_tokens < 30 or name == "llama.gguf"  # llama.cpp doesn't count what it is told to leave
    most = 44 if name == "llama" else 236  # llama.cpp rounds the context up to 256
    assert writer.write(Request(ids, 400), lambda text: None).new_tokens <= most
    with pytest.raises(TooLong):
        writer.write(Request(ids * 13, 4), lambda text: None)
    assert writer.write(Request(ids, 4), lambda text: None).new_tokens == 4


def test_draws_are_from_the_likeliest(llama: Path) -> None:
    for name in ("llama", "llama.gguf"):
        writer, greedy = open_writer(llama.with_name(name), threads=1, context=64), []
        asked = [Request(PROMPT, 8), Request(PROMPT, 8, temperature=3.0, top_p=1e-6, seed=3)]
        for request in asked:
            pieces: list[str] = []
            writer.write(request, pieces.append)
            greedy.append("".join(pieces))
        assert greedy[0] == greedy[1]


def test_a_conversation_goes_through_the_template(llama: Path, tmp_path: Path) -> None:
    from compresskit.exporter.targets import get

    folder = tmp_path / "chatty"
    shutil.copytree(llama, folder)
    template = "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    export_to(compresskit.load(folder), get("gguf"), tmp_path / "chatty.gguf")
    for path in (folder, tmp_path / "chatty.gguf"):
        writer, said = open_writer(path, threads=1), []
        for prompt in (Chat((("system", "be brief"), ("user", "rain"))), "system: be brief\nuser: rain\n"):
            pieces: list[str] = []
            writer.write(Request(prompt, 8), pieces.append)
            said.append(plain("".join(pieces)))
        assert said[0] == said[1] != "", path.name
