"""Running a float graph on calibration data, and noting what values its activations take."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from compresskit.data.prepare import fits, shape_text
from compresskit.errors import InputError, MachineError
from compresskit.exporter.quiet import first_line
from compresskit.exporter.ranges import Histogram
from compresskit.model import InputSpec
from compresskit.runtimes.by_sample import as_known
from compresskit.runtimes.onnxruntime import input_spec
from compresskit.stage import Progress, silent

_AT_ONCE = 256 << 20  # bytes of activations


def collect(
    path: Path,
    names: Iterable[str],
    batches: Iterable[dict[str, np.ndarray]],
    *,
    inputs: tuple[InputSpec, ...] = (),
    counts: bool = True,
    threads: int = 0,
    progress: Progress = silent,
) -> tuple[dict[str, Histogram], int]:
    """The values of some activations over all samples.

    A batch is cut so that about 256 MiB of activations are in memory at a time, where the model's batch axis allows it.

    Args:
        path: The float model; a graph that gives its activations is written beside it.
        names: The activations; what isn't float32 is left out of the result.
        batches: Inputs by name, a row a sample; walked once.
        inputs: What is known of the model's inputs: where one has its batch axis.
        counts: Keep histograms, not the extremes alone.
        threads: Of one operator; 0 is onnxruntime's choice.
        progress: Told of the batches.

    Returns:
        What was seen by name, and the number of samples.

    Raises:
        InputError: The data don't fit the model, hold NaN, or there are none.
        MachineError: Memory ran out.
    """
    session, wanted = _session(path, list(names), threads)
    taken = [as_known(input_spec(value, {}), inputs) for value in session.get_inputs()]
    known = tuple(spec.by_sample for spec in taken)
    seen = {name: Histogram() for name in wanted}
    samples, step = 0, 0
    for done, batch in enumerate(batches, 1):
        feeds = _checked(batch, known)
        size = len(next(iter(feeds.values()))) if feeds else 0
        fixed = _fixed(known, feeds)
        step = fixed or step or 1
        for part, rows in _parts(feeds, size, step, padded=bool(fixed)):
            outputs = _run(session, wanted, {spec.name: spec.of_rows(part[spec.name]) for spec in taken})
            for name, values in outputs.items():
                seen[name].add(values, count=counts)
            if not fixed:
                each = max(1, sum(v.nbytes for v in outputs.values()) // max(1, rows))
                step = max(1, min(size, _AT_ONCE // each))
            samples += rows
        progress("calibrate", done, 0)
    if not samples:
        raise InputError("the calibration data are empty", "give at least a few dozen samples with `data`")
    return {name: values for name, values in seen.items() if values.low <= values.high or not values.finite}, samples


def _session(path: Path, names: list[str], threads: int) -> tuple[Any, list[str]]:
    """A session of the model with more outputs; those that it has anyway stay."""
    import onnxruntime as ort

    model = onnx.load(path, load_external_data=False)
    own = {value.name for value in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in own)
    more = path.with_name("calibrate.onnx")  # beside it, where external data are found
    more.write_bytes(model.SerializeToString())
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(str(more), options, providers=["CPUExecutionProvider"])
    floats = {value.name for value in session.get_outputs() if value.type == "tensor(float)"}
    return session, [name for name in names if name in floats]


def _checked(batch: dict[str, np.ndarray], inputs: tuple[InputSpec, ...]) -> dict[str, np.ndarray]:
    """The model's inputs out of a batch."""
    feeds: dict[str, np.ndarray] = {}
    for spec in inputs:
        if spec.name not in batch:
            raise InputError(
                f"the calibration data lack the model's input '{spec.name}'", "name the arrays as the inputs"
            )
        array = np.asarray(batch[spec.name])
        if not fits(array.shape, spec.shape):
            expected = [d if isinstance(d, int) else "any" for d in spec.shape[1:]]
            raise InputError(
                f"the calibration data don't fit: input '{spec.name}' is {shape_text(array.shape)}, the model takes "
                f"{shape_text(('batch', *expected)[: len(spec.shape)])}",
                "prepare them as for inference; `batch_axis` names the batch axis of an input",
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InputError(
                f"the calibration data hold NaN or Inf in input '{spec.name}'", "clean the data given as `data`"
            )
        feeds[spec.name] = array
    return feeds


def _fixed(inputs: tuple[InputSpec, ...], feeds: dict[str, np.ndarray]) -> int:
    """The batch size that the model is built for; all that there is where inputs differ in their first axis; else 0."""
    for spec in inputs:
        if spec.shape and isinstance(spec.shape[0], int):
            return spec.shape[0]
    lengths = {len(a) for a in feeds.values() if a.ndim}
    return max(lengths) if len(lengths) != 1 else 0


def _parts(
    feeds: dict[str, np.ndarray], size: int, step: int, *, padded: bool
) -> Iterator[tuple[dict[str, np.ndarray], int]]:
    """Slices of ``step`` samples, and how many each holds; the last may be filled up with its own last sample."""
    for start in range(0, size, step):
        part = {name: value[start : start + step] for name, value in feeds.items()}
        rows = min(step, size - start)
        if padded and rows < step:
            part = {n: np.concatenate([v, np.repeat(v[-1:], step - rows, axis=0)]) for n, v in part.items()}
        yield part, rows


def _run(session: Any, names: list[str], feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    try:
        return dict(zip(names, session.run(names, feeds), strict=True))
    except Exception as error:  # onnxruntime's errors have no base of their own
        text = first_line(error)
        if isinstance(error, MemoryError) or "Failed to allocate" in text or "bad_alloc" in text:
            raise MachineError(f"int8 quantization stopped: {text}", "close other programs") from error
        raise InputError(
            f"the model can't run on the calibration data: {text}", "prepare them as for inference"
        ) from error
