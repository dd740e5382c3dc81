"""The commands of docs/language-models.md, from a folder to a chat, as they stand there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from cli_material import Cli
from lm_folders import make_folder


@pytest.mark.slow
def test_five_commands_lead_from_a_folder_to_a_chat(
    cli: Cli, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gguf")
    pytest.importorskip("xllamacpp")
    make_folder(tmp_path, "llama").rename(tmp_path / "my-model")
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %} it was"
    (tmp_path / "my-model" / "chat_template.jinja").write_text(template)
    monkeypatch.chdir(tmp_path)
    page = (root / "docs" / "language-models.md").read_text(encoding="utf-8")
    journey = page.partition("## From a folder to a chat")[2].partition("\n## ")[0]
    commands = re.findall(r"^compresskit (.+)$", journey, re.M)
    assert len(commands) == 5
    said = []
    for command in commands:
        done = cli(*shlex.split(command))
        assert done.code == 0, (command, done.err)
        said.append(done.out)
    assert (tmp_path / "out.gguf").is_file()
    assert all(len(text) > 5 for text in said[2:])
    assert said[2][:5] == said[3][:5]
    assert said[4] != said[3]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("export", "bundle", "--to", "ggf"), "did you mean gguf?"),
        (("export", "bundle", "--to", "gguf"), "takes a language model"),
        (("quantize", "m.pt", "--bits", "4", "--to", "genai"), "takes a language model"),
        (
            ("generate", "bundle", "hello", "--engine", "lama.cpp"),
            "there are: llama.cpp, genai, onnxruntime, transformers",
        ),
    ],
)
def test_what_is_no_language_model_is_refused(cli: Cli, here: Path, arguments: tuple[str, ...], said: str) -> None:
    for package in ("gguf", "onnxruntime_genai"):
        pytest.importorskip(package)
    done = cli(*arguments)
    assert done.code == 2 and said in done.err
    assert len(done.err.strip().splitlines()) <= 2
