"""``compresskit generate``."""

from __future__ import annotations

from typing import Annotated

import typer

from compresskit.cli import options as shared

Prompt = Annotated[str, typer.Argument(metavar="PROMPT", help="Text to continue.", show_default=False)]
Tokens = Annotated[int, typer.Option("--tokens", min=1, help="Maximum number of new tokens.")]
Warmth = Annotated[float, typer.Option("--temperature", min=0, help="Sampling temperature; 0 is greedy.")]
Engine = Annotated[
    str | None,
    typer.Option(
        "--engine",
        metavar="llama.cpp|genai|transformers",
        help="Program that runs the model. (by the form of MODEL)",
        show_default=False,
    ),
]
Chat = Annotated[bool, typer.Option("--chat", help="Apply the model's chat template to PROMPT.")]


def command(
    model: shared.ModelArg,
    prompt: Prompt,
    tokens: Tokens = 128,
    temperature: Warmth = 0.0,
    engine: Engine = None,
    chat: Chat = False,
    threads: shared.Threads = 0,
    seed: shared.Seed = 0,
) -> None:
    """Generate text with a language model and print it while it is generated.

    MODEL is a .gguf file (llama.cpp), a folder for onnxruntime-genai, a bundle or a Hugging Face folder (transformers).
    With --engine, a bundle's own .gguf file or -genai folder is taken from beside it.
    """
    import sys

    from compresskit.cli.console import listening, write_out
    from compresskit.runner.generating import generate

    def show(text: str) -> None:
        write_out("".join(c for c in text if c.isprintable() or c in "\n\t"))  # a terminal acts on the others
        sys.stdout.flush()

    with listening():
        generate(
            model, prompt, tokens=tokens, temperature=temperature, engine=engine, chat=chat, threads=threads,
            seed=seed, show=show,
        )  # fmt: skip
        show("\n")
