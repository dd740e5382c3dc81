"""``compresskit bench``."""

from __future__ import annotations

from typing import Annotated

import typer

from compresskit.cli import options as shared
from compresskit.cli.option_groups import Earlier, Reading, Showing, grouped

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
        help="Engine, see compresskit doctor; auto for all that are installed; repeatable.",
        rich_help_panel="Run",
    ),
]


Batches = Annotated[
    str,
    typer.Option(
        "--batch", metavar="N[,N]", help="Samples in one timed call; several with commas.", rich_help_panel="Run"
    ),
]
Sequences = Annotated[
    str,
    typer.Option(
        "--sequence", "--seq", metavar="N[,N]", help="Tokens of a timed sample; several with commas.",
        rich_help_panel="Run",
    ),
]  # fmt: skip
ManyThreads = Annotated[
    str,
    typer.Option(
        "--threads", metavar="N[,N]", help="Threads of one operator, 0: all cores; several with commas.",
        rich_help_panel="Run",
    ),
]  # fmt: skip

Profile = Annotated[
    bool,
    typer.Option("--profile", help="Time each node too, by the engine's own profiler.", rich_help_panel="Run"),
]
NoLimits = Annotated[
    bool,
    typer.Option(
        "--no-limits", help="Do not measure how fast this machine could run each model.", rich_help_panel="Run"
    ),
]


@grouped
def command(
    models: shared.ModelArgs,
    batch: Batches = "1",
    sequence: Sequences = "128",
    rounds: Rounds = None,
    processes: Processes = None,
    profile: Profile = False,
    no_limits: NoLimits = False,
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
    """Measure latency, throughput and memory of models against each other.

    Each model runs in a process of its own; they take turns, and all is started afresh several times. The speed-up
    against the first model comes with a 95 % interval; a machine too noisy to tell says so. With --runtime auto every
    engine that is installed and opens the models takes part, and the fastest is named.

    Several values of --batch, --threads or --sequence are a sweep: each combination is timed by itself, the speed-up is
    over the first model at the same one, and --min-speedup must hold at all of them. Ctrl-C or SIGTERM ends it with the
    figures so far, and exit code 130 or 143.
    """
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
    timing = Timing(points(batches, counts, tokens), rounds, processes, roofline=not no_limits, profiled=profile)
    how = Comparison(judged=min_speedup is not None, evaluated=False, runtimes=runtime, timing=timing)
    raise typer.Exit(compare_models(models, measuring, how, reading=reading, showing=showing, earlier=earlier))
