"""What an ONNX file says of its own use, for programs that have nothing but the file."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from compresskit.checkpoint.atomic import writing
from compresskit.checkpoint.onnx_inputs import graph_inputs
from compresskit.model import Arch, Card
from compresskit.usage import METADATA, Usage, from_metadata, to_metadata

TOKENIZER = "tokenizer.json"


def describe(path: Path, card: Card, folder: Path) -> None:
    """Write task and usage into a file's metadata; a file of which neither is known stays as it is.

    Args:
        path: The ONNX file; its external data aren't touched.
        card: Of the model.
        folder: Where the model's tokenizer lies, whose SHA-256 is recorded too.

    Raises:
        MachineError: The disk is full or read-only.
    """
    if card.task == "unknown" and card.usage == Usage():
        return
    import onnx

    tokenizer = folder / TOKENIZER
    known = hashlib.sha256(tokenizer.read_bytes()).hexdigest() if tokenizer.is_file() else ""
    model = onnx.load(str(path), format="protobuf", load_external_data=False)
    kept = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(model, {**kept, METADATA: to_metadata(card.task, card.usage, known)})
    with writing(path):
        path.write_bytes(model.SerializeToString(deterministic=True))


def card_of_graph(graph: Any) -> Card:
    """The card of an ONNX file: its inputs, and the task and usage that :func:`describe` wrote.

    Args:
        graph: The ``onnx.ModelProto``.

    Raises:
        InputError: There is something else under that key.
    """
    card = Card("onnx", Arch("onnx"), graph_inputs(graph))
    told = next((entry.value for entry in graph.metadata_props if entry.key == METADATA), None)
    if told is None:
        return card
    task, usage = from_metadata(told)
    return replace(card, task=task or card.task, usage=usage)
