"""From a model that was read to one that a runtime opens."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compresskit.checkpoint.onnx_metadata import describe
from compresskit.errors import InputError, UsageError
from compresskit.model import SCORES_ONLY, Model
from compresskit.report import Gate
from compresskit.runner.timing import SEQUENCE
from compresskit.stage import Progress, silent
from compresskit.usage import Pixels

if TYPE_CHECKING:
    from compresskit.data.source import Source
    from compresskit.exporter.kept import KeptGraph
    from compresskit.exporter.parity import Parity


@dataclass(frozen=True)
class Prepared:
    """A model as a file.

    Attributes:
        path: The ONNX file.
        proof: What the parity gate found; None for a file that was ONNX already.
        notes: What a user must know of the export.
        graph: From which what becomes of the model is exported without a trace; None where only a trace will do.
    """

    path: Path
    proof: Gate | None = None
    notes: list[str] = field(default_factory=list)
    graph: KeptGraph | None = None

    @property
    def doubts(self) -> list[str]:
        """The notes of a file that could not be proven: they belong into every report of what ran from it."""
        return self.notes if self.proof is not None and self.proof.passed is None else []


def with_inputs(model: Model, source: Source | None) -> Model:
    """The model with its inputs known: from the card, else from data.

    Raises:
        UsageError: Neither says.
    """
    if model.card.inputs or isinstance(model.body, Path):
        return model
    if source is None:
        raise UsageError("the shape of the model's input is not known", "give `input_shape` 1,3,32,32, or `data`")
    from compresskit.data.opening import input_specs

    names = forward_names(model)
    specs = input_specs(source)
    if len(specs) > len(names):
        raise InputError(f"{source.name} has {len(specs)} inputs, the model's forward takes {len(names)}")
    if any(spec.name not in names for spec in specs):
        specs = tuple(replace(spec, name=name) for spec, name in zip(specs, names, strict=False))
    return replace(model, card=replace(model.card, inputs=specs))


def with_usage(model: Model, *sources: Source | None) -> Model:
    """The model with what data tell of its use: how pixels were normalized, and which classes there are.

    Args:
        model: What its own files say of names and scores of classes stays.
        sources: Those that come first count more.
    """
    usage = model.card.usage
    for source in reversed([source for source in sources if source is not None]):
        if (normalize := getattr(source, "normalize", None)) is not None:
            usage = replace(usage, pixels=Pixels(mean=normalize.mean, std=normalize.std))
        elif usage.pixels is None and getattr(source, "scaled", False):
            usage = replace(usage, pixels=Pixels())
        if usage.scores is None and model.card.task == "unknown" and _has_classes(source):
            usage = replace(usage, scores="softmax")
        if usage.scores is not None and not model.card.usage.labels and (classes := getattr(source, "classes", ())):
            usage = replace(usage, labels=tuple(classes))
    return replace(model, card=replace(model.card, usage=usage))


def _has_classes(source: Source) -> bool:
    """Whether samples have a class each; what only the user's code could tell isn't asked for."""
    import numpy as np

    from compresskit.data.source import Indexed

    if not source.labelled or source.kind == "pairs" or not isinstance(source, Indexed):
        return False
    targets = source.take(np.zeros(1, np.int64)).targets
    return targets is not None and targets.ndim == 1 and targets.dtype.kind in "iu"


def forward_names(model: Model) -> list[str]:
    """The parameters of the module's ``forward``."""
    import inspect

    if isinstance(model.body, Path):
        return [spec.name for spec in model.card.inputs]
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p.name for p in inspect.signature(model.body.forward).parameters.values() if p.kind in kinds]


def to_onnx(
    model: Model,
    path: Path,
    *,
    data: Source | None = None,
    seed: int = 0,
    graph: KeptGraph | None = None,
    progress: Progress = silent,
) -> Prepared:
    """Write the model as ONNX at ``path`` behind the parity gate; a model that is ONNX already stays where it is.

    Args:
        model: With its inputs known.
        path: The file to write.
        data: Samples that the gate tries first.
        seed: Of those that it makes up.
        graph: Of an earlier state of the model; it is traced where that doesn't tell what the model computes now.
        progress: Called from time to time as ``progress(what, done, total)``.

    Raises:
        GateError: The ONNX file computes something else than the module.
        InputError: The module can't be exported.
        UsageError: There is no architecture to export.
    """
    if isinstance(model.body, Path):
        if model.body.suffix == ".onnx":
            return Prepared(model.body)
        raise UsageError(f"{model.source} is tensors without an architecture", "give `arch` FILE.py:NAME")
    from compresskit.exporter.checked import export_checked, export_kept_checked
    from compresskit.exporter.parity import ParityCheck
    from compresskit.exporter.pooled import pooling

    check = ParityCheck(seed=seed, data=data)
    with pooling(model.body, model.card.usage):
        result = None if graph is None else export_kept_checked(graph, model.body, path, check, progress=progress)
        if result is None:
            result = export_checked(model.body, model.card.inputs, path, check, progress=progress)
    describe(path, model.card, model.source)
    notes = list(result.notes)
    if model.card.task == "causal-lm":
        notes.append(f"this ONNX file {SCORES_ONLY}: it has no KV cache; `to` gguf gives a file that generates")
    if result.distance_level4 is not None:
        distance = result.distance_level4.rel_l2
        notes.append(
            f"packed matrix products round activations to 8 bits: relative error {distance:.2g} on random inputs"
        )
    return Prepared(path, _proof(result.parity), notes, result.graph)


def still_holds(model: Model, path: Path) -> bool:
    """Whether a file that was proven once computes what the module does now."""
    from compresskit.exporter.parity import parity
    from compresskit.exporter.pooled import pooling

    with pooling(model.module, model.card.usage):
        return parity(model.module, path, model.card.inputs).passed is not False


def _proof(parity: Parity) -> Gate:
    """What the parity gate found, as a line of the report; a miss never gets this far."""
    from compresskit.exporter.parity import FACTOR, RELATIVE

    inputs = f"{parity.n} inputs, {parity.given} from the data" if parity.given else f"{parity.n} seeded inputs"
    limit, reason = f"≤ {RELATIVE:g} relative", f"largest difference {parity.max_abs:.2g} on {inputs}"
    if parity.ratio is not None:
        limit += f", or {FACTOR:g} × the model's own float32 error"
        reason += f"; at most {parity.ratio:.2g} × that error"
    if parity.passed is None:
        reason = "float32 is too inexact on every input that was tried: give `data`"
    return Gate(name="ONNX parity", limit=limit, value=parity.rel_l2, passed=parity.passed, reason=reason)


def counted(model: Model) -> dict[str, Any]:
    """Parameters, and multiply-accumulates of one sample; None where they can't be told."""
    if isinstance(model.body, Path):
        return {"parameters": None, "macs": None}
    from compresskit.benchmark.feeds import make_feeds
    from compresskit.ops.macs import count_macs
    from compresskit.ops.route.exits import closed

    parameters = sum(p.numel() for p in model.body.parameters())
    try:
        feeds = make_feeds(model.card.inputs, {"batch": 1, "sequence": SEQUENCE})
        with closed(model.body):
            macs: int | None = sum(count_macs(model.body, feeds).values())
    except Exception:  # the user's forward may refuse random inputs in any way; the count is a courtesy
        macs = None
    return {"parameters": parameters, "macs": macs}
