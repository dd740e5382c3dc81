"""The options that mean the same everywhere, each declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_MODEL = "Model"
_DATA = "Data and verdict"
_BASELINE = "Baseline"
_RUN = "Run"
_OUT = "Output"

ModelArg = Annotated[
    Path,
    typer.Argument(metavar="MODEL", help="State dict, Hugging Face folder, bundle or .onnx file.", show_default=False),
]
ModelArgs = Annotated[
    list[Path], typer.Argument(metavar="MODEL...", help="Models; the first is the baseline.", show_default=False)
]
ReportArg = Annotated[
    Path,
    typer.Argument(metavar="REPORT", help="A report.json, a bundle that holds one, or - (stdin).", show_default=False),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "-o",
        "--output",
        help="Folder to write. (MODEL's name and the method)",
        rich_help_panel=_OUT,
        show_default=False,
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace an output that is there.", rich_help_panel=_OUT)]
Json = Annotated[
    str | None,
    typer.Option(
        "--json", metavar="FILE|-", help="Write the report there; - is stdout, without the table.", rich_help_panel=_OUT
    ),
]
Html = Annotated[
    Path | None,
    typer.Option(
        "--html",
        metavar="FILE",
        help="Write the report there as a page with pictures.",
        rich_help_panel=_OUT,
        show_default=False,
    ),
]
Interactive = Annotated[
    bool,
    typer.Option("--interactive", help="Page with interactive charts by plotly; 5 MB.", rich_help_panel=_OUT),
]
NoHtml = Annotated[
    bool, typer.Option("--no-html", help="Write no report.html beside the report.json.", rich_help_panel=_OUT)
]
Markdown = Annotated[bool, typer.Option("--markdown", help="Print Markdown, for a pull request.", rich_help_panel=_OUT)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no table.", rich_help_panel=_OUT)]
Arch = Annotated[
    str | None,
    typer.Option(
        "--arch",
        metavar="FILE.py:NAME",
        help="Class or function that builds the module; its code runs.",
        rich_help_panel=_MODEL,
    ),
]
ArchArgs = Annotated[
    str | None, typer.Option("--arch-args", metavar="JSON", help="Its keyword arguments.", rich_help_panel=_MODEL)
]
InputShape = Annotated[
    str | None,
    typer.Option(
        "--input-shape",
        metavar="1,3,32,32",
        help="Shape of the input, batch first. (from data)",
        rich_help_panel=_MODEL,
    ),
]
BatchAxis = Annotated[
    list[str] | None,
    typer.Option(
        "--batch-axis",
        metavar="NAME=AXIS|none",
        help="Where samples lie in an input of an ONNX file: state=1, or rate=none where all share it; repeatable. "
        "(the first axis, or as the graph names it)",
        rich_help_panel=_MODEL,
        show_default=False,
    ),
]
Key = Annotated[
    str | None,
    typer.Option(
        "--key",
        metavar="NAME",
        help="Which of the state dicts in the file: params_ema, or ema.model.",
        rich_help_panel=_MODEL,
    ),
]
AllowNonfinite = Annotated[
    bool, typer.Option("--allow-nonfinite", help="Accept NaN and Inf among the weights.", rich_help_panel=_MODEL)
]
Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="PATH",
        help="Calibration data: .npz, folder of class folders, .txt/.csv/.jsonl, FILE.py:NAME.",
        rich_help_panel=_DATA,
    ),
]
MeasureData = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="PATH",
        help="What to measure on: .npz, folder of class folders, .txt/.csv/.jsonl, FILE.py:NAME.",
        rich_help_panel=_DATA,
    ),
]
EvalData = Annotated[
    str | None,
    typer.Option(
        "--eval-data", metavar="PATH", help="What the verdict is measured on; forms as --data.", rich_help_panel=_DATA
    ),
]
Normalize = Annotated[
    str | None,
    typer.Option(
        "--normalize", metavar="MEAN/STD", help="For images: .5,.5,.5/.2,.2,.2 or imagenet.", rich_help_panel=_DATA
    ),
]
MetricName = Annotated[
    str | None,
    typer.Option(
        "--metric",
        metavar="NAME",
        help="What is measured: accuracy, top5, perplexity, spearman or FILE.py:NAME. (by data)",
        rich_help_panel=_DATA,
    ),
]
Sequence = Annotated[
    int, typer.Option("--sequence", min=1, help="Most tokens of a text sample; tokens timed.", rich_help_panel=_DATA)
]
MaxDrop = Annotated[
    str | None,
    typer.Option(
        "--max-drop", metavar="0.5pt|1%", help="Largest loss of quality that passes. (1%)", rich_help_panel=_DATA
    ),
]
MaxSize = Annotated[
    str | None,
    typer.Option(
        "--max-size", metavar="20MB", help="Largest file that passes. (the original's)", rich_help_panel=_DATA
    ),
]
MinSpeedup = Annotated[
    float | None,
    typer.Option(
        "--min-speedup",
        metavar="1.2",
        help="Least speed-up that passes. (not slower; within 10 % where nothing promises speed)",
        rich_help_panel=_DATA,
    ),
]
Baseline = Annotated[
    Path | None,
    typer.Option(
        "--baseline",
        metavar="REPORT",
        help="Report of an earlier run: nothing may be worse than there.",
        rich_help_panel=_BASELINE,
        show_default=False,
    ),
]
MaxGrowth = Annotated[
    str | None,
    typer.Option(
        "--max-growth",
        metavar="5%|100KB",
        help="How much larger than the baseline's a file may be. (not larger)",
        rich_help_panel=_BASELINE,
    ),
]
AllowOtherMachine = Annotated[
    bool,
    typer.Option(
        "--allow-other-machine",
        help="Compare with a baseline of another machine or other versions.",
        rich_help_panel=_BASELINE,
    ),
]
NoExport = Annotated[
    bool,
    typer.Option("--no-export", help="Write no ONNX; nothing is measured then but the size.", rich_help_panel=_RUN),
]
NoBench = Annotated[bool, typer.Option("--no-bench", help="Do not measure the speed.", rich_help_panel=_RUN)]
Device = Annotated[str, typer.Option("--device", help="Device to measure on.", rich_help_panel=_RUN)]
Threads = Annotated[
    int, typer.Option("--threads", min=0, help="Threads of one operator; 0: all cores.", rich_help_panel=_RUN)
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of every random choice.", rich_help_panel=_RUN)]
RuntimeName = Annotated[
    str,
    typer.Option(
        "--runtime",
        metavar="NAME",
        help="Engine: onnxruntime, openvino, openvino-bf16 or torch; several with commas.",
        rich_help_panel=_RUN,
    ),
]
Target = Annotated[
    str | None,
    typer.Option(
        "--target",
        metavar="CPU",
        help="Multiply 8-bit integers as x86-vnni, x86-avx2, arm64 or gpu does. (this machine)",
        rich_help_panel=_RUN,
    ),
]
RecipeArg = Annotated[
    Path,
    typer.Argument(metavar="RECIPE", help="YAML file, or the name of a recipe that ships.", show_default=False),
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Another value for a key of the recipe: steps.0.bits=4, data=train.npz; repeatable.",
        rich_help_panel=_RUN,
    ),
]
AllowCode = Annotated[
    bool,
    typer.Option("--allow-code", help="Trust the code that the recipe names: it may run.", rich_help_panel=_RUN),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Check everything, show what would be run, and run nothing.", rich_help_panel=_RUN),
]
CacheFolder = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        metavar="FOLDER",
        help="Where finished steps are kept. (COMPRESSKIT_CACHE, or the user's cache folder)",
        show_default=False,
        rich_help_panel=_RUN,
    ),
]
Batch = Annotated[int, typer.Option("--batch", min=1, help="Samples in one timed call.", rich_help_panel=_RUN)]
