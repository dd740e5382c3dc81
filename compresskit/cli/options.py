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
    typer.Argument(
        metavar="REPORT", help="A report.json, a bundle that contains one, or - for stdin.", show_default=False
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "-o",
        "--output",
        help="Output folder. (name of MODEL and method)",
        rich_help_panel=_OUT,
        show_default=False,
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite an existing output.", rich_help_panel=_OUT)]
Json = Annotated[
    str | None,
    typer.Option(
        "--json",
        metavar="FILE|-",
        help="Write the result as JSON to FILE; - writes to stdout instead of the table.",
        rich_help_panel=_OUT,
    ),
]
Html = Annotated[
    Path | None,
    typer.Option(
        "--html",
        metavar="FILE",
        help="Write the report as an HTML page to FILE.",
        rich_help_panel=_OUT,
        show_default=False,
    ),
]
Interactive = Annotated[
    bool,
    typer.Option("--interactive", help="Page with interactive charts by plotly; 5 MB.", rich_help_panel=_OUT),
]
NoHtml = Annotated[bool, typer.Option("--no-html", help="Do not write report.html.", rich_help_panel=_OUT)]
Markdown = Annotated[
    bool,
    typer.Option(
        "--markdown", help="Print the report as Markdown, for example for a pull request.", rich_help_panel=_OUT
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print no progress and no table.", rich_help_panel=_OUT)]
Arch = Annotated[
    str | None,
    typer.Option(
        "--arch",
        metavar="FILE.py:NAME",
        help="Class or function that builds the module. Its code is executed.",
        rich_help_panel=_MODEL,
    ),
]
ArchArgs = Annotated[
    str | None,
    typer.Option("--arch-args", metavar="JSON", help="Keyword arguments of --arch as JSON.", rich_help_panel=_MODEL),
]
InputShape = Annotated[
    str | None,
    typer.Option(
        "--input-shape",
        metavar="1,3,32,32",
        help="Input shape, batch axis first. (from the data)",
        rich_help_panel=_MODEL,
    ),
]
BatchAxis = Annotated[
    list[str] | None,
    typer.Option(
        "--batch-axis",
        metavar="NAME=AXIS|none",
        help="Batch axis of an input of an ONNX file, for example state=1; rate=none marks an input without one. "
        "Repeatable. (axis 0, or the axis that the graph names)",
        rich_help_panel=_MODEL,
        show_default=False,
    ),
]
Key = Annotated[
    str | None,
    typer.Option(
        "--key",
        metavar="NAME",
        help="Which state dict of the file to read, for example params_ema or ema.model.",
        rich_help_panel=_MODEL,
    ),
]
AllowNonfinite = Annotated[
    bool, typer.Option("--allow-nonfinite", help="Accept NaN and Inf in the weights.", rich_help_panel=_MODEL)
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
        help="Evaluation data: .npz, folder of class folders, .txt/.csv/.jsonl, FILE.py:NAME.",
        rich_help_panel=_DATA,
    ),
]
EvalData = Annotated[
    str | None,
    typer.Option(
        "--eval-data",
        metavar="PATH",
        help="Evaluation data for the verdict, in the same formats as --data.",
        rich_help_panel=_DATA,
    ),
]
Normalize = Annotated[
    str | None,
    typer.Option(
        "--normalize",
        metavar="MEAN/STD",
        help="Mean and standard deviation for images, as .5,.5,.5/.2,.2,.2, or imagenet.",
        rich_help_panel=_DATA,
    ),
]
MetricName = Annotated[
    str | None,
    typer.Option(
        "--metric",
        metavar="NAME",
        help="Quality metric: accuracy, top5, perplexity, spearman, choice_accuracy or FILE.py:NAME. "
        "(chosen by the data)",
        rich_help_panel=_DATA,
    ),
]
Sequence = Annotated[
    int,
    typer.Option(
        "--sequence",
        min=1,
        help="Maximum tokens of a text sample, and tokens of a timed sample.",
        rich_help_panel=_DATA,
    ),
]
WindowSize = Annotated[
    int | None,
    typer.Option(
        "--window",
        min=2,
        help="Tokens of a window: perplexity over running text predicts each token once, in overlapping windows.",
        rich_help_panel=_DATA,
        show_default=False,
    ),
]
Stride = Annotated[
    int | None,
    typer.Option(
        "--stride",
        min=1,
        help="Tokens from one window to the next. (half of --window)",
        rich_help_panel=_DATA,
        show_default=False,
    ),
]
Generation = Annotated[
    str | None,
    typer.Option(
        "--generate",
        metavar="PROMPT,NEW",
        help="Let language models generate NEW tokens after PROMPT tokens: 512,128. bench times that, compare counts "
        "the tokens that are the first model's.",
        rich_help_panel="Run",
        show_default=False,
    ),
]
MaxDrop = Annotated[
    str | None,
    typer.Option(
        "--max-drop",
        metavar="0.5pt|1%",
        help="Maximum loss of quality, in points (pt) or relative (%). (1%)",
        rich_help_panel=_DATA,
    ),
]
MaxSize = Annotated[
    str | None,
    typer.Option("--max-size", metavar="20MB", help="Maximum file size. (size of the original)", rich_help_panel=_DATA),
]
MinSpeedup = Annotated[
    float | None,
    typer.Option(
        "--min-speedup",
        metavar="1.2",
        help="Minimum speed-up. (not slower; up to 10 % slower for methods that only reduce size)",
        rich_help_panel=_DATA,
    ),
]
Baseline = Annotated[
    Path | None,
    typer.Option(
        "--baseline",
        metavar="REPORT",
        help="Report of an earlier run. Quality, size and speed must not get worse.",
        rich_help_panel=_BASELINE,
        show_default=False,
    ),
]
MaxGrowth = Annotated[
    str | None,
    typer.Option(
        "--max-growth",
        metavar="5%|100KB",
        help="Maximum growth of the file over the baseline. (none)",
        rich_help_panel=_BASELINE,
    ),
]
AllowOtherMachine = Annotated[
    bool,
    typer.Option(
        "--allow-other-machine",
        help="Accept a baseline from another machine or other versions.",
        rich_help_panel=_BASELINE,
    ),
]
NoExport = Annotated[
    bool,
    typer.Option("--no-export", help="Do not export to ONNX. Only the size is measured then.", rich_help_panel=_RUN),
]
To = Annotated[
    list[str],
    typer.Option(
        "--to",
        metavar="gguf|genai|gptq|compressed-tensors|optimum|onnx",
        help="Format for another program, or onnx; repeatable.",
        rich_help_panel=_OUT,
        show_default=False,
    ),
]
NoBench = Annotated[bool, typer.Option("--no-bench", help="Do not measure the speed.", rich_help_panel=_RUN)]
Device = Annotated[str, typer.Option("--device", help="Device for measurements.", rich_help_panel=_RUN)]
Threads = Annotated[
    int, typer.Option("--threads", min=0, help="Threads per operator; 0 uses all cores.", rich_help_panel=_RUN)
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Random seed.", rich_help_panel=_RUN)]
RuntimeName = Annotated[
    str,
    typer.Option(
        "--runtime",
        metavar="NAME",
        help="Engine: onnxruntime, openvino, openvino-bf16 or torch; comma-separated for several.",
        rich_help_panel=_RUN,
    ),
]
Target = Annotated[
    str | None,
    typer.Option(
        "--target",
        metavar="CPU",
        help="CPU whose 8-bit arithmetic is emulated: x86-vnni, x86-avx2, arm64 or gpu. (this machine)",
        rich_help_panel=_RUN,
    ),
]
RecipeArg = Annotated[
    Path,
    typer.Argument(metavar="RECIPE", help="YAML file, or name of a built-in recipe.", show_default=False),
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a key of the recipe, for example steps.0.bits=4 or data=train.npz. Repeatable.",
        rich_help_panel=_RUN,
    ),
]
AllowCode = Annotated[
    bool,
    typer.Option("--allow-code", help="Allow the recipe to run the Python code that it names.", rich_help_panel=_RUN),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Check the recipe and show its steps without running them.", rich_help_panel=_RUN),
]
CacheFolder = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        metavar="FOLDER",
        help="Folder of the step cache. (COMPRESSKIT_CACHE, or the user's cache folder)",
        show_default=False,
        rich_help_panel=_RUN,
    ),
]
Batch = Annotated[int, typer.Option("--batch", min=1, help="Samples per timed call.", rich_help_panel=_RUN)]
