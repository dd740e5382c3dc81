"""The export of a model as it was read, kept in the step cache: whatever is done to the same model starts there."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compresskit.checkpoint.bundle import ONNX_NAME, seal
from compresskit.errors import InputError, MachineError
from compresskit.model import Model
from compresskit.runner.cache import Cache
from compresskit.runner.entries import GRAPH, at_entry, write_note
from compresskit.runner.keys import content, digest
from compresskit.runner.prepare import Prepared, counted, still_holds
from compresskit.runner.steps import Job, light

if TYPE_CHECKING:
    from torch import nn

    from compresskit.exporter.kept import KeptGraph

_INSTALLED = ("torch", "transformers", "compresskit")
"""Packages whose versions are among what a key is made of."""


def original_key(model: Model, job: Job, surroundings: dict[str, Any]) -> str:
    """What the export of a model depends on.

    Args:
        model: As it was read, its inputs known.
        job: What it is exported for: samples and seed of the parity gate.
        surroundings: From :func:`compresskit.runner.keys.surroundings`.
    """
    samples = None if job.samples is None else job.samples.fingerprint()
    code = [] if isinstance(model.body, Path) else sorted(map(content, _sources(model.body)))
    return digest(
        "original", content(model.source), model.card.to_json(), model.key, code, job.measuring.export,
        job.measuring.seed, samples, surroundings,
    )  # fmt: skip


def _sources(module: nn.Module) -> Iterator[Path]:
    """The files that the user's own classes in a module are from."""
    names = {type(layer).__module__ for layer in module.modules()}
    for name in names:
        file = getattr(sys.modules.get(name), "__file__", None)
        if file and name.partition(".")[0] not in _INSTALLED:
            yield Path(file)


def exported_original(cache: Cache, key: str, model: Model, job: Job) -> Path:
    """The entry of a model's export, made if it isn't there.

    What the user's own code builds is proven once more: it may call what no key knows of.

    Args:
        cache: Where it is kept.
        key: From :func:`original_key`.
        model: As it was read.
        job: Exports it.

    Raises:
        CompressKitError: As of the export, and of :meth:`Cache.fill`.
    """
    place = cache.find(key)
    if place is not None and (model.card.arch.kind != "python" or still_holds(model, place / ONNX_NAME)):
        return place
    with cache.fill(key) as folder:
        made = job.to_onnx(model, folder / ONNX_NAME)
        if made.graph is not None:
            (folder / GRAPH).write_bytes(made.graph.to_bytes())
        write_note(folder, made, counted(model), "export")
        seal(folder, model.card)
    return cache.root / key


def kept_original(cache: Cache, model: Model, job: Job, surroundings: dict[str, Any]) -> Prepared | None:
    """The export of a model from the cache, with its graph; None where the cache can't be written to.

    Args:
        cache: Where it is kept.
        model: As it was read, its inputs known.
        job: Exports it.
        surroundings: From :func:`compresskit.runner.keys.surroundings`.

    Raises:
        CompressKitError: As of the export.
    """
    key = original_key(model, job, surroundings)
    try:
        place = exported_original(cache, key, model, job)
        shipped = at_entry(key, place, light(model)).ready.shipped
    except MachineError as error:
        if str(cache.root) not in f"{error.message} {error.hint}":
            raise
        return None
    return None if shipped is None else replace(shipped, graph=graph_of(place))


def graph_of(place: Path) -> KeptGraph | None:
    """The graph in an entry; None where it has none that can be read."""
    from compresskit.exporter.kept import KeptGraph

    try:
        return KeptGraph.from_bytes((place / GRAPH).read_bytes())
    except (OSError, InputError):
        return None
