"""The bundle: a folder with a model, its card, and the hash of every file in it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from compresskit.checkpoint.atomic import CARD_NAME, writing
from compresskit.checkpoint.files import contained, read_json, unreadable
from compresskit.checkpoint.safetensors_writer import Entry, write_safetensors
from compresskit.checkpoint.tensors import INDEX
from compresskit.errors import InputError
from compresskit.model import ONNX_SAYS, SCORES_ONLY, Card
from compresskit.report import NAME, PAGE

WEIGHTS_NAME = "model.safetensors"
ONNX_NAME = "model.onnx"
REPORT_NAME = NAME
PAGE_NAME = PAGE
PROVENANCE_NAME = "provenance.json"
README_NAME = "README.md"
ASIDE = (CARD_NAME, REPORT_NAME, PAGE_NAME, PROVENANCE_NAME, README_NAME)
"""Files whose hashes no card and no provenance holds: they say what was measured, and where."""
EXTRAS = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "vocab.txt", "vocab.json", "merges.txt", "added_tokens.json", "chat_template.jinja", "tokenizer.model",
    "spiece.model", "preprocessor_config.json", "modules.json", "sentence_bert_config.json",
    "config_sentence_transformers.json", "1_Pooling/config.json",
)  # fmt: skip
"""Small files of a Hugging Face folder that belong beside the weights."""
_MAX_CARD = 1 << 28
_MODEL_SUFFIXES = (".onnx", ".safetensors", ".bin", ".pt", ".data")


def is_bundle(path: Path | str) -> bool:
    """True for a folder with a compresskit.json."""
    return (Path(path) / CARD_NAME).is_file()


def weights_of(path: Path | str) -> Path:
    """The weights of a bundle: a file, or the index of shards; may be missing."""
    whole, index = (Path(path) / name for name in (WEIGHTS_NAME, WEIGHTS_NAME + INDEX))
    return index if index.is_file() and not whole.exists() else whole


def extras_of(folder: Path | str) -> list[Path]:
    """The small files of a Hugging Face folder or a bundle that go along, relative to it."""
    return [Path(name) for name in EXTRAS if (Path(folder) / name).is_file()]


def write_bundle(
    folder: Path | str,
    card: Card,
    *,
    weights: Iterable[Entry] | None = None,
    onnx: Path | None = None,
    extras_from: Path | None = None,
    extras: Sequence[Path] = (),
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write the pieces of a bundle into a folder that ``new_folder`` gave, and seal it.

    Args:
        folder: Written into; may hold files already (an ONNX file that was exported there), which are sealed too.
        card: What the model is.
        weights: Tensors for model.safetensors, streamed.
        onnx: An ONNX file to copy; its external data must lie in the folder already.
        extras_from: Where the extras are.
        extras: Files to copy, relative to ``extras_from``; see :func:`extras_of`.
        metadata: Text for the header of model.safetensors, beside the provenance.

    Raises:
        MachineError: The disk is full or read-only.
    """
    folder = Path(folder)
    if weights is not None:
        write_safetensors(folder / WEIGHTS_NAME, weights, {**weights_metadata(card), **(metadata or {})})
    if onnx is not None and onnx != folder / ONNX_NAME:
        _copy(onnx, folder / ONNX_NAME)
    for name in extras:
        if extras_from is not None:
            _copy(contained(extras_from, name.as_posix(), str(extras_from)), folder / name)
    seal(folder, card)


def weights_metadata(card: Card) -> dict[str, str]:
    """What the header of a bundle's model.safetensors says besides the tensors."""
    return {"format": "pt", "compresskit": provenance(card)}


def provenance(card: Card) -> str:
    """One line for a file's metadata: the architecture and the stages, without what varies from run to run."""
    stages = [{"name": step.name, "options": step.options} for step in card.history]
    return json.dumps({"arch": card.arch.reference, "history": stages}, sort_keys=True, separators=(",", ":"))


def seal(folder: Path | str, card: Card) -> None:
    """Write compresskit.json: the card, and size and SHA-256 of every other file but those of :data:`ASIDE`.

    Raises:
        MachineError: The disk is full or read-only.
    """
    folder = Path(folder)
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).as_posix() not in ASIDE
    }
    told = {ONNX_SAYS: SCORES_ONLY} if card.task == "causal-lm" and ONNX_NAME in files else {}
    text = json.dumps({**card.to_json(), **told, "files": files}, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    with writing(folder / CARD_NAME):
        (folder / CARD_NAME).write_bytes(text.encode("utf-8", "backslashreplace"))


def read_card(folder: Path | str, *, verify: bool = True) -> Card:
    """The card of a bundle.

    Args:
        folder: The bundle.
        verify: Check the size and hash of every file on record, and that no model file lies there off the record.

    Raises:
        InputError: Not a bundle, a damaged card, or a file that isn't the one on record.
    """
    folder = Path(folder)
    data = _card_json(folder)
    try:
        card = Card.from_json(data)
    except InputError as error:
        raise InputError(f"{folder / CARD_NAME}: {error.message}", error.hint) from error
    if verify:
        _verify(folder, data)
    return card


def _card_json(folder: Path) -> dict[str, Any]:
    return read_json(folder / CARD_NAME, _MAX_CARD)


def _verify(folder: Path, data: dict[str, Any]) -> None:
    files = data.get("files")
    if not isinstance(files, dict):
        raise InputError(f"{folder / CARD_NAME} lists no files")
    for name, record in files.items():
        path = contained(folder, name, str(folder / CARD_NAME))
        if (
            not isinstance(record, dict)
            or path.stat().st_size != record.get("bytes")
            or sha256(path) != record.get("sha256")
        ):
            raise InputError(
                f"{path} is not the file that {CARD_NAME} has on record: its size or SHA-256 differs", "make it again"
            )
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.suffix in _MODEL_SUFFIXES and name not in files:
            raise InputError(f"{path} is not on record in {CARD_NAME}; it was put there by something else", "remove it")


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file, read in blocks.

    Raises:
        InputError: It can't be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    except OSError as error:
        raise unreadable(path, error) from error
    return digest.hexdigest()


def _copy(source: Path, target: Path) -> None:
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
