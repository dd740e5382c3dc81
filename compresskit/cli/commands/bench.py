"""``compresskit bench``."""

from __future__ import annotations

from typing import Annotated

import typer

from compresskit.cli import options as shared

Rounds = Annotated[
    int | None, typer.Option("--rounds", min=1, help="Turns of each model in a process.", show_default=False)
]
Processes = Annotated[
    int | None,
    typer.Option(
        "--processes", min=2, help="How often all starts afresh; more sharpens the interval.", show_default=False
    ),
]
Runtimes = Annotated[
    list[str],
    typer.Option(
        "--runtime",
        metavar="NAME",
        help="Engine: onnxruntime, openvino, openvino-bf16, torch, or auto for all; repeatable.",
        rich_help_panel="Run",
    ),
]


def command(
    models: shared.ModelArgs,
    batch: shared.Batch = 1,
    sequence: shared.Sequence = 128,
    rounds: Rounds = None,
    processes: Processes = None,
    min_speedup: shared.MinSpeedup = None,
    arch: shared.Arch = None,
    arch_args: shared.ArchArgs = None,
    input_shape: shared.InputShape = None,
    allow_nonfinite: shared.AllowNonfinite = False,
    runtime: Runtimes = ["onnxruntime"],  # noqa: B006 - typer copies it
    device: shared.Device = "cpu",
    threads: shared.Threads = 0,
    seed: shared.Seed = 0,
    json: shared.Json = None,
    html: shared.Html = None,
    markdown: shared.Markdown = False,
    quiet: shared.Quiet = False,
) -> None:
    """Measure latency, throughput and memory of models against each other.

    Each model runs in a process of its own; they take turns, and all is started afresh several times. The speed-up
    against the first model comes with a 95 % interval; a machine too noisy to tell says so. With --runtime auto every
    engine that is installed and opens the models takes part, and the fastest is named.
    """
    from compresskit.cli.holding import hold_models

    code = hold_models(
        models, sequence=sequence, arch=arch, arch_args=arch_args, input_shape=input_shape,
        allow_nonfinite=allow_nonfinite, runtimes=runtime, device=device, threads=threads, seed=seed, json=json,
        html=html, markdown=markdown, quiet=quiet, judged=False, evaluated=False, batch=batch, rounds=rounds,
        processes=processes, limits=(None, None, min_speedup),
    )  # fmt: skip
    raise typer.Exit(code)
