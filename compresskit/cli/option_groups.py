"""Options that several commands take together: declared once as a dataclass, typed one by one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from compresskit.cli import options as shared

if TYPE_CHECKING:
    from compresskit.recipe.limits import Limits
    from compresskit.report import Report
    from compresskit.runner.judging import Measuring


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose parameters that are dataclasses are taken apart: each field is an option, where the group stood.

    Args:
        command: The types of the groups' fields are annotated as typer wants its options to be.
    """
    parameters = inspect.signature(command, eval_str=True).parameters.values()
    groups: dict[str, Any] = {p.name: p.annotation for p in parameters if is_dataclass(p.annotation)}

    @wraps(command)
    def callback(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        command(**values)

    flat = [single for p in parameters for single in (_options(p.annotation) if p.name in groups else [p])]
    flat = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in flat]
    callback.__signature__ = inspect.Signature(flat)  # type: ignore[attr-defined]
    callback.__annotations__ = {p.name: p.annotation for p in flat}
    return callback


def _options(group: Any) -> Iterator[inspect.Parameter]:
    types = get_type_hints(group, include_extras=True)
    for field in fields(group):
        yield inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=types[field.name]
        )


@dataclass(frozen=True)
class Reading:
    """How a model is read."""

    arch: shared.Arch = None
    arch_args: shared.ArchArgs = None
    input_shape: shared.InputShape = None
    batch_axis: shared.BatchAxis = None
    key: shared.Key = None
    allow_nonfinite: shared.AllowNonfinite = False

    def load_options(self) -> dict[str, Any]:
        """As :func:`compresskit.cli.inputs.load_options`."""
        from compresskit.cli.inputs import load_options, parse_axes

        options = load_options(self.arch, self.arch_args, self.input_shape, self.allow_nonfinite, self.key)
        return {**options, "batch_axis": parse_axes(self.batch_axis)}


@dataclass(frozen=True)
class Evaluating:
    """What quality is measured on."""

    data: shared.MeasureData = None
    normalize: shared.Normalize = None
    sequence: shared.Sequence = 128
    window: shared.WindowSize = None
    stride: shared.Stride = None
    metric: shared.MetricName = None


@dataclass(frozen=True)
class Engine:
    """What runs a model."""

    runtime: shared.RuntimeName = "onnxruntime"
    target: shared.Target = None
    device: shared.Device = "cpu"
    threads: shared.Threads = 0
    seed: shared.Seed = 0

    def measuring(self, evaluating: Evaluating, limits: Limits | None = None, *, bench: bool) -> Measuring:
        """What models are measured with.

        Args:
            evaluating: Metric and length of a sample; the data are opened when a model is known.
            limits: The gates; None is those by default.
            bench: Measure the speed.
        """
        from compresskit.recipe.limits import Limits
        from compresskit.runner.judging import Measuring

        return Measuring(
            metric=evaluating.metric, limits=limits or Limits(), bench=bench, sequence=evaluating.sequence,
            threads=self.threads, device=self.device, seed=self.seed, target=self.target,
        )  # fmt: skip


@dataclass(frozen=True)
class Bounds:
    """The limits of a verdict."""

    max_drop: shared.MaxDrop = None
    max_size: shared.MaxSize = None
    min_speedup: shared.MinSpeedup = None

    def limits(self) -> Limits:
        """As the gates want them."""
        from compresskit.recipe.limits import Limits

        return Limits(self.max_drop, self.max_size, self.min_speedup)


@dataclass(frozen=True)
class Earlier:
    """The report of an earlier run, and what may be worse than there."""

    baseline: shared.Baseline = None
    max_growth: shared.MaxGrowth = None
    allow_other_machine: shared.AllowOtherMachine = False

    def check(self) -> None:
        """Refuse an option about a baseline without one.

        Raises:
            UsageError: There is one.
        """
        from compresskit.errors import UsageError

        if self.baseline is None and (self.max_growth is not None or self.allow_other_machine):
            option = "--max-growth" if self.max_growth is not None else "--allow-other-machine"
            raise UsageError(f"{option} is about a baseline", "give --baseline REPORT")

    def open(self) -> Report | None:
        """The report of the earlier run, if there is one; see :func:`compresskit.runner.check.open_report`."""
        from compresskit.runner.check import open_report

        return None if self.baseline is None else open_report(self.baseline)


@dataclass(frozen=True)
class Showing:
    """Where a report goes."""

    json: shared.Json = None
    html: shared.Html = None
    interactive: shared.Interactive = False
    markdown: shared.Markdown = False
    quiet: shared.Quiet = False

    def check(self, inputs: Iterable[Path | str | None], output: Path | None = None, *, beside: bool = False) -> None:
        """Refuse files that can't be written, or would hurt an input or the output, before the work is done.

        Args:
            inputs: What the command reads.
            output: What it writes.
            beside: It writes a page beside its report.
        """
        from compresskit.cli.console import check_html, check_json

        inputs = list(inputs)
        check_json(self.json, inputs, output)
        check_html(self.html, inputs, output, interactive=self.interactive, beside=beside)

    def finish(self, report: Report, output: str = "") -> int:
        """Show a report; returns the exit code that follows from it."""
        from compresskit.cli.console import finish

        return finish(
            report, json=self.json, quiet=self.quiet, markdown=self.markdown, html=self.html,
            interactive=self.interactive, output=output,
        )  # fmt: skip
