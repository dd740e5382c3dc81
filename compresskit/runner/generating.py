"""Letting a language model write, by whatever program opens it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from compresskit.checkpoint.load import kind_of
from compresskit.runner.loading import load_module
from compresskit.runtimes.text import Chat, Made, Request, Writer, find, get


def open_writer(path: Path, engine: str | None = None, *, threads: int = 0, context: int = 2048) -> Writer:
    """A program with a model opened.

    Args:
        path: A .gguf file, a folder for onnxruntime-genai or of an encoder-decoder, a bundle or a Hugging Face folder.
        engine: ``llama.cpp``, ``genai``, ``onnxruntime`` or ``transformers``; None is the one of the form.
        threads: Of one operator; 0 is the program's choice.
        context: Most tokens of prompt and answer together.

    Raises:
        UsageError: No such program, or nothing that it opens.
        InputError: The file is missing or damaged.
        MachineError: The program isn't installed.
    """
    name, place = find(path, engine)
    options = {}
    if name == "transformers":
        kind_of(place)
        options["loader"] = load_module
    return get(name, place, threads=threads, context=context, **options)


def generate(
    path: str | Path,
    prompt: str,
    *,
    tokens: int = 128,
    temperature: float = 0.0,
    engine: str | None = None,
    chat: bool = False,
    threads: int = 0,
    seed: int = 0,
    show: Callable[[str], object] | None = None,
) -> str:
    """Let a language model go on from a prompt: ``compresskit generate``.

    Args:
        path: A .gguf file, a folder for onnxruntime-genai or of an encoder-decoder, a bundle or a Hugging Face folder.
        prompt: Text.
        tokens: Maximum number of new tokens.
        temperature: 0 takes the likeliest token each time.
        engine: ``llama.cpp``, ``genai``, ``onnxruntime`` or ``transformers``; None is the one of the form.
        chat: The prompt is what a user says; the model's chat template is put around it.
        threads: Of one operator; 0 is the program's choice.
        seed: Of the draws.
        show: Given each piece of text as it comes.

    Returns:
        The whole text that was written, without the prompt.

    Raises:
        UsageError: No such program, or nothing that it opens.
        InputError: The file is missing or damaged, or the request is refused.
        MachineError: The program isn't installed.
    """
    pieces: list[str] = []

    def take(text: str) -> None:
        pieces.append(text)
        if show is not None:
            show(text)

    # A token is at least a byte of text, but for the few that are put around it.
    writer = open_writer(Path(path), engine, threads=threads, context=len(prompt.encode()) + tokens + 1024)
    asked = Chat((("user", prompt),)) if chat else prompt
    writer.write(Request(asked, tokens, temperature, seed=seed), take)
    return "".join(pieces)


__all__ = ["Made", "Request", "generate", "open_writer"]
