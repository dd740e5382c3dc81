"""A finished step of a recipe, as it lies in the cache: a bundle, and what was found out on the way to it."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compresskit.checkpoint.atomic import CARD_NAME
from compresskit.checkpoint.bundle import ONNX_NAME, WEIGHTS_NAME, read_card
from compresskit.model import Card, Model
from compresskit.report import Gate
from compresskit.runner.cache import ABOUT, about
from compresskit.runner.candidate import files_of
from compresskit.runner.judging import Ready
from compresskit.runner.prepare import Prepared
from compresskit.runner.steps import Taken

GRAPH = "graph.onnx"
"""In the entry of a model as it was read: the graph that what becomes of it is exported from."""


@dataclass(frozen=True, kw_only=True)
class At(Taken):
    """A step that was taken, and the model after it, in its folder.

    Attributes:
        key: What it depends on.
        place: Its entry in the cache; None for an original that has no ONNX file of its own to be kept.
        ready: What runs, with its counts.
        known: It was there before this run.
    """

    key: str
    place: Path | None
    ready: Ready
    known: bool = False


def at_entry(key: str, place: Path, light: Model) -> At:
    """A finished step, from its entry."""
    found = about(place)
    card = _card(place, light)
    shipped = None
    if (place / ONNX_NAME).is_file():
        proof = Gate(**found["proof"]) if found["proof"] else None
        shipped = Prepared(place / ONNX_NAME, proof, list(found["about"]))
    ready = Ready(replace(light, card=card), shipped, found["counts"], place / WEIGHTS_NAME)
    stages, notes = tuple(found["stages"]), tuple(found["notes"])
    return At(key=key, place=place, ready=ready, stages=stages, notes=notes, target=found["target"])


def _card(place: Path, light: Model) -> Card:
    return replace(read_card(place, verify=False), format=light.card.format)


def write_note(
    folder: Path,
    made: Prepared | None,
    counts: dict[str, Any],
    *stages: str,
    notes: list[str] | None = None,
    target: str | None = None,
) -> None:
    """Write what is known of a step into its entry."""
    proof = made.proof.model_dump() if made and made.proof else None
    found: dict[str, Any] = {"counts": counts, "proof": proof, "about": made.notes if made else [], "stages": stages}
    found |= {"notes": notes or [], "target": target}
    (folder / ABOUT).write_text(json.dumps(found, indent=1), encoding="utf-8")


def bytes_of(ready: Ready) -> int:
    """What ships of it, in bytes."""
    path = ready.shipped.path if ready.shipped else ready.place
    return sum(part.stat().st_size for part in files_of(path))


def copy_bundle(at: At, folder: Path) -> None:
    """Copy a step's bundle, but for what belongs to the cache."""
    if at.place is None:
        raise TypeError("a step has an entry")
    for path in sorted(at.place.rglob("*")):
        name = path.relative_to(at.place)
        if path.is_file() and name.as_posix() not in (ABOUT, CARD_NAME, GRAPH):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / name)
