"""Programs that let a language model write, by name. Each is imported when it is opened, never before."""

from __future__ import annotations

import importlib
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from compresskit.errors import UsageError
from compresskit.runtimes.text.writer import Chat, Made, Request, TooLong, Writer

__all__ = ["Chat", "Made", "Request", "TooLong", "Writer", "find", "get", "names"]

_WRITERS = {
    "llama.cpp": "compresskit.runtimes.text.llama_cpp:LlamaCpp",
    "genai": "compresskit.runtimes.text.genai:Genai",
    "onnxruntime": "compresskit.runtimes.text.encoder_decoder:EncoderDecoder",
    "transformers": "compresskit.runtimes.text.transformers:Transformers",
}
_TARGETS = {"llama.cpp": ("gguf", ".gguf"), "genai": ("genai", "-genai"), "onnxruntime": ("optimum", "-optimum")}
"""What ``export --to`` calls the form that a program opens, and what is put behind a bundle's name for it."""
DECODER = "decoder_model_merged.onnx"
"""What a folder of an encoder-decoder has."""
GENAI = "genai_config.json"
"""What a folder for onnxruntime-genai has."""


def names() -> list[str]:
    """The names that :func:`get` knows."""
    return list(_WRITERS)


def kind_of(path: Path) -> str:
    """Which program runs a file or folder: by its form."""
    if path.suffix == ".gguf":
        return "llama.cpp"
    if (path / DECODER).is_file():
        return "onnxruntime"
    return "genai" if (path / GENAI).is_file() else "transformers"


def find(path: Path, engine: str | None) -> tuple[str, Path]:
    """The program that is meant, and what it opens.

    Args:
        path: A .gguf file, a folder for onnxruntime-genai, a bundle or a Hugging Face folder.
        engine: The program's name; None is the one of the form. Of a bundle the file or folder beside it is taken.

    Raises:
        UsageError: There is no such program, or nothing that it opens.
    """
    if engine is not None and engine not in _WRITERS:
        near = get_close_matches(engine, _WRITERS, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UsageError(f"`engine` {engine}: there is none of that name", f"{hint}there are: {', '.join(_WRITERS)}")
    found = kind_of(path)
    if engine is None or engine == found:
        return found, path
    hint = "give the bundle or folder that it was written from"
    if engine in _TARGETS:
        target, ending = _TARGETS[engine]
        beside = path.with_name(f"{path.name}{ending}")
        if found == "transformers" and beside.exists():
            return engine, beside
        hint = f"write one with: compresskit export BUNDLE --to {target}"
    raise UsageError(f"`engine` {engine} can't open {path}, which is for {found}", hint)


def get(name: str, path: Path, *, threads: int = 0, context: int = 2048, **options: Any) -> Writer:
    """A program with a model opened.

    Args:
        name: One of :func:`names`.
        path: As :func:`find` gave it.
        threads: Of one operator; 0 is the program's choice.
        context: Most tokens of prompt and answer together.
        **options: ``loader`` for transformers: gives the module of a path.

    Raises:
        InputError: The program refuses the file.
        MachineError: It isn't installed.
    """
    module, _, attribute = _WRITERS[name].partition(":")
    made: Writer = getattr(importlib.import_module(module), attribute)(path, threads, context, **options)
    return made
