"""Timing on real samples, where a model takes more or less time from input to input."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from compresskit.benchmark.feeds import write_feeds
from compresskit.data.checked import checked
from compresskit.data.source import Source
from compresskit.errors import UsageError
from compresskit.model import InputSpec, portable
from compresskit.report import Measurement, TimedOn
from compresskit.runner.candidate import Candidate

if TYPE_CHECKING:
    import numpy as np
    import onnx

_SAMPLES, _CALLS = 256, 16
"""Samples that are timed, and calls at least."""
_WITHOUT = "real samples need models whose inputs all have the batch as first axis"
_MADE_UP = "{} takes more or less time from input to input, and was timed on random inputs: compare it with `data`"


@dataclass
class RealSamples:
    """What models are timed on.

    Attributes:
        files: By batch size, inputs of calls; empty where inputs are made up.
        measurements: Share of the samples that leaves at each exit.
        notes: The same for people.
        timed_on: Which samples; None where inputs are made up.
    """

    files: dict[int, Path] = field(default_factory=dict)
    measurements: list[Measurement] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    timed_on: TimedOn | None = None


def on_samples(
    models: Sequence[Candidate], source: Source | None, batches: Collection[int], folder: Path, *, asked: bool = False
) -> RealSamples:
    """Write the inputs that models are timed on, and count where their samples leave.

    Args:
        models: All that are timed.
        source: The samples; None where there are none.
        batches: Samples of a call.
        folder: Where the files go.
        asked: Samples were asked for; else they are taken where a model takes more or less time from one to the next.

    Raises:
        UsageError: They were asked for, and there are too few, or a model's inputs don't allow them.
    """
    found = RealSamples()
    varying = [model for model in models if model.varies]
    if not (varying or asked):
        return found
    unlike = next((m.name for m in models if any(spec.batch_axis != 0 for spec in m.inputs)), None)
    if asked and source is not None:
        if unlike is not None:
            raise UsageError(f"{unlike} can't be timed on `data`: {_WITHOUT}", "remove `data`")
        if len(source) < max(batches):
            raise UsageError(f"{source.name} has {len(source)} samples, fewer than a `batch` of {max(batches)}")
    if source is None or unlike is not None:
        found.notes = [_MADE_UP.format(model.name) for model in varying]
        return found
    most = 0
    for batch in sorted(batches):
        path = folder / f"samples-{batch}.npz"
        count = write_feeds(_calls(source, models[0].inputs, batch, max(_SAMPLES, _CALLS * batch)), path) * batch
        most = max(most, count)
        if count:
            found.files[batch] = path
    found.timed_on = TimedOn(data=portable(source.name), sha256=source.fingerprint(), samples=most)
    found.notes.append(
        f"timed on {most} samples of {portable(source.name)}, not on random inputs; the speed-up is of mean latencies"
    )
    for model in varying:
        if model.path.suffix == ".onnx":
            _exits(model, source, batches, folder, found)
    return found


def _calls(source: Source, inputs: tuple[InputSpec, ...], batch: int, samples: int) -> Iterator[dict[str, np.ndarray]]:
    for part in source.batches(batch, min(samples, len(source) // batch * batch)):
        yield checked(part, source.name, inputs)


def _exits(model: Candidate, source: Source, batches: Collection[int], folder: Path, found: RealSamples) -> None:
    """Where the samples of a model leave: each is asked alone, since its answer doesn't depend on its batch."""
    left, last = exits_taken(model.path, _calls(source, model.inputs, 1, max(_SAMPLES, _CALLS * max(batches))), folder)
    for batch in sorted(batches) if last else ():
        ends = [max(left[at : at + batch]) for at in range(0, len(left) - batch + 1, batch)]
        shares = [100 * sum(end == at for end in ends) / max(1, len(ends)) for at in range(last + 1)]
        names = [*(f"exit {at + 1}" for at in range(last)), "the last exit"]
        told = ", ".join(f"{share:.1f} % at {name}" for share, name in zip(shares, names, strict=True))
        what = "samples" if batch == 1 else f"batches of {batch}"
        found.notes.append(f"{model.name}: of {len(ends)} {what} leave {told}")
        found.measurements += [
            Measurement(
                model=model.name, name=f"leave_{at + 1}", value=share, unit="%", n=len(ends),
                runtime=model.runtime, batch=batch,
            )
            for at, share in enumerate(shares)
        ]  # fmt: skip


def exits_taken(path: Path, calls: Iterable[dict[str, np.ndarray]], folder: Path) -> tuple[list[int], int]:
    """At which exit each call leaves an ONNX file, and how many exits there are before the last one.

    Args:
        path: Written by this program.
        calls: Inputs of one sample each.
        folder: For a file that tells where it was left.
    """
    import onnx

    from compresskit.runtimes.onnxruntime import OnnxRuntime

    model = onnx.load(path)
    count = sum(1 for _ in _branches(model.graph))
    name = _told(model.graph, 0)
    if name is None:
        return [], 0
    model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, []))
    onnx.save(model, folder / "told.onnx")
    session = OnnxRuntime().open(folder / "told.onnx", 1)
    wanted = {spec.name for spec in session.inputs}
    return [int(session.run({n: v for n, v in one.items() if n in wanted})[name]) for one in calls], count


def _branches(graph: onnx.GraphProto) -> Iterator[tuple[onnx.NodeProto, onnx.GraphProto, onnx.GraphProto]]:
    """Each exit of a graph with its branches, the outermost first."""
    for node in graph.node:
        inner = {a.name: a.g for a in node.attribute if a.HasField("g")}
        then, other = inner.get("then_branch"), inner.get("else_branch")
        if then is not None and other is not None and then.output[0].name.startswith("left."):
            yield node, then, other
            yield from _branches(other)


def _told(graph: onnx.GraphProto, depth: int) -> str | None:
    """Let a graph tell at which exit it was left, as a value of the name that is given back; None without exits."""
    import onnx

    found = next(_branches(graph), None)
    if found is None:
        return None
    node, then, other = found
    inner = _told(other, depth + 1)
    for branch, at in ((then, depth), (other, depth + 1)):
        name = inner if branch is other and inner is not None else f"taken.{at}.{branch.name}"
        if branch is then or inner is None:
            value = onnx.helper.make_tensor("value", onnx.TensorProto.INT64, [], [at])
            branch.node.append(onnx.helper.make_node("Constant", [], [name], value=value))
        branch.output.append(onnx.helper.make_tensor_value_info(name or "", onnx.TensorProto.INT64, []))
    node.output.append(f"taken.{depth}")
    return f"taken.{depth}"
