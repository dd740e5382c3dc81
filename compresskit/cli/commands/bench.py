"""``compresskit bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compresskit.cli import options as shared
from compresskit.cli.option_groups import Earlier, Evaluating, Reading, Showing, grouped

Rounds = Annotated[
    int | None, typer.Option("--rounds", min=1, help="Timing rounds per model and process.", show_default=False)
]
Processes = Annotated[
    int | None,
    typer.Option(
        "--processes",
        min=2,
        help="Number of times that all models are restarted and timed; more give a narrower interval.",
        show_default=False,
    ),
]
Runtimes = Annotated[
    list[str],
    typer.Option(
        "--runtime",
        metavar="NAME",
        help="Engine (see compresskit doctor), or auto for all that are installed. Repeatable.",
        rich_help_panel="Run",
    ),
]


Batches = Annotated[
    str,
    typer.Option(
        "--batch", metavar="N[,N]", help="Samples per timed call; comma-separated for a sweep.", rich_help_panel="Run"
    ),
]
Sequences = Annotated[
    str,
    typer.Option(
        "--sequence", "--seq", metavar="N[,N]", help="Tokens per timed sample; comma-separated for a sweep.",
        rich_help_panel="Run",
    ),
]  # fmt: skip
ManyThreads = Annotated[
    str,
    typer.Option(
        "--threads", metavar="N[,N]", help="Threads per operator; 0 uses all cores; comma-separated for a sweep.",
        rich_help_panel="Run",
    ),
]  # fmt: skip

OnSamples = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="PATH",
        help="Time the models on these samples in turn instead of on random inputs. Texts are cut at "
        "--sequence tokens.",
        rich_help_panel="Run",
        show_default=False,
    ),
]
Profile = Annotated[
    bool,
    typer.Option("--profile", help="Also time each graph node with the engine's profiler.", rich_help_panel="Run"),
]
NoLimits = Annotated[
    bool,
    typer.Option(
        "--no-limits", help="Do not measure the machine's memory and arithmetic limits.", rich_help_panel="Run"
    ),
]

Engines = Annotated[
    list[str],
    typer.Option(
        "--engine",
        metavar="llama.cpp|genai|transformers",
        help="Program for --generate, repeatable: each MODEL runs in each one. (by the form of MODEL)",
        rich_help_panel="Run",
        show_default=False,
    ),
]


@grouped
def command(
    models: shared.ModelArgs,
    batch: Batches = "1",
    sequence: Sequences = "128",
    rounds: Rounds = None,
    processes: Processes = None,
    generate: shared.Generation = None,
    engine: Engines = [],  # noqa: B006 - typer copies it
    profile: Profile = False,
    no_limits: NoLimits = False,
    data: OnSamples = None,
    normalize: shared.Normalize = None,
    min_speedup: shared.MinSpeedup = None,
    *,
    earlier: Earlier,
    reading: Reading,
    runtime: Runtimes = ["onnxruntime"],  # noqa: B006 - typer copies it
    device: shared.Device = "cpu",
    threads: ManyThreads = "0",
    seed: shared.Seed = 0,
    showing: Showing,
) -> None:
    """Compare latency, throughput and memory of models.

    Each model runs in its own process. The models are timed in turns, and all processes are restarted several times.
    The speed-up over the first model is given with a 95 % interval. A machine that is too noisy for an answer is
    reported as such. --runtime auto times every installed engine that opens the models and names the fastest.

    Several values of --batch, --threads or --sequence are a sweep: each combination is timed separately and compared
    with the first model at the same combination. --min-speedup must hold for all of them. Ctrl-C or SIGTERM ends the
    command with the figures so far and exit code 130 or 143.

    Use --data for models whose time depends on the input, such as those with early exits or experts: all models get the
    same samples in the same order, and the speed-up is of mean latencies.

    --generate 512,128 times text generation: time to first token, tokens per second of prompt and answer, and memory.
    Each MODEL runs in the engine of its form: .gguf in llama.cpp, a genai folder in onnxruntime-genai, bundles and
    Hugging Face folders in transformers. With --engine, a bundle's own .gguf file or -genai folder is taken from
    beside it.
    """
    if generate is not None and data is None:
        raise typer.Exit(_written(models, generate, engine, rounds or 3, processes or 3, threads, showing))
    from compresskit.errors import UsageError

    if generate is not None:
        raise UsageError("--generate makes its prompts up", "remove --data")
    if engine:
        raise UsageError("--engine is for --generate", "name another engine with --runtime")
    from compresskit.benchmark.sweep import points
    from compresskit.cli.comparing import compare_models
    from compresskit.cli.inputs import parse_counts
    from compresskit.recipe.limits import Limits
    from compresskit.runner.compare import Comparison
    from compresskit.runner.judging import Measuring
    from compresskit.runner.timing import Timing

    batches, tokens = parse_counts("--batch", batch), parse_counts("--sequence", sequence)
    counts = parse_counts("--threads", threads, least=0)
    measuring = Measuring(
        limits=Limits(min_speedup=min_speedup), sequence=tokens[0], threads=counts[0], device=device, seed=seed
    )
    timing = Timing(
        points(batches, counts, tokens),
        rounds,
        processes,
        roofline=not no_limits,
        profiled=profile,
        sampled=data is not None,
    )
    how = Comparison(judged=min_speedup is not None, evaluated=False, runtimes=runtime, timing=timing)
    evaluating = Evaluating(data=data, normalize=normalize)
    code = compare_models(
        models, measuring, how, reading=reading, showing=showing, evaluating=evaluating, earlier=earlier
    )  # fmt: skip
    raise typer.Exit(code)


def _written(
    models: list[Path], sizes: str, engines: list[str], rounds: int, processes: int, threads: str, showing: Showing
) -> int:
    """Time language models that write."""
    from compresskit.cli.console import progressing
    from compresskit.cli.inputs import command_line, parse_generation
    from compresskit.errors import UsageError
    from compresskit.runner.writing_bench import bench_writing

    prompt, new = parse_generation(sizes)
    if not (threads.isascii() and threads.isdigit()):
        raise UsageError("--generate takes one number of --threads")
    showing.check(models)
    with progressing(showing.quiet) as progress:
        report = bench_writing(
            models, prompt, new, engines=engines, threads=int(threads), rounds=rounds, processes=processes,
            command=command_line(), progress=progress,
        )  # fmt: skip
    return showing.finish(report)
