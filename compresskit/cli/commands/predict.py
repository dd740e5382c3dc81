"""``compresskit predict``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compresskit.cli import options as shared

ModelArg = Annotated[Path, typer.Argument(metavar="MODEL", help="Bundle or .onnx file.", show_default=False)]
Inputs = Annotated[
    list[str],
    typer.Argument(
        metavar="INPUT...", show_default=False,
        help="Texts; image files or folders of them; .txt, .csv or .jsonl files; one .npz; - for lines of stdin.",
    ),
]  # fmt: skip
Top = Annotated[int, typer.Option("--top", min=0, help="Number of classes to show, best first; 0 shows all.")]
Labels = Annotated[
    Path | None,
    typer.Option("--labels", metavar="FILE", help="File with the class names, one per line.", show_default=False),
]
Batch = Annotated[int, typer.Option("--batch-size", min=1, help="Samples per call.", rich_help_panel="Run")]
RuntimeName = Annotated[
    str,
    typer.Option("--runtime", metavar="NAME", help="Engine, such as onnxruntime or openvino.", rich_help_panel="Run"),
]


def command(
    model: ModelArg,
    inputs: Inputs,
    top: Top = 5,
    labels: Labels = None,
    normalize: shared.Normalize = None,
    batch_size: Batch = 32,
    runtime: RuntimeName = "onnxruntime",
    threads: shared.Threads = 0,
    allow_nonfinite: shared.AllowNonfinite = False,
    json: shared.Json = None,
    quiet: shared.Quiet = False,
) -> None:
    """Run a model on texts, images, rows of numbers or arrays.

    Texts are tokenized, images resized and normalized as the bundle says: it holds the tokenizer, the labels, and the
    --normalize of the command that wrote it. Prints labels with scores, embeddings, or the outputs. Needs no torch.
    """
    from compresskit.cli.console import check_json, listening, write_json
    from compresskit.data.tables import read_text
    from compresskit.predict.pipeline import pipeline
    from compresskit.predict.samples import typed

    check_json(json, [model, labels, *(word for word in inputs if Path(word).is_file())])
    names = None if labels is None else [line.strip() for line in read_text(labels).split("\n") if line.strip()]
    pipe = pipeline(
        model, labels=names, normalize=normalize, runtime=runtime, threads=threads, allow_nonfinite=allow_nonfinite
    )
    samples = typed(inputs, pipe.kind)
    answers = pipe(samples, top=top, batch=batch_size)

    from compresskit.render.predict_view import as_json, print_answers

    shown = None if isinstance(samples, dict) else [str(sample) for sample in samples]
    with listening():
        write_json(as_json(answers, shown), json)
        if json != "-" and not quiet:
            print_answers(answers, shown)
