"""What torch translates to ONNX is kept for the session: the tests export the same few nets hundreds of times.

Kept is what ``torch.onnx.export`` makes of a traced program, under the hash of all that it is made from. Each test
traces its module itself, and does itself all that this package does to the graph, up to the parity gate. A test of
whether a translation is the same each time asks for ``translated_anew``.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import onnx_ir as ir
import torch
from torch.export import ExportedProgram
from torch.utils._pytree import tree_map

PLACE = "KEPT_TRANSLATIONS"
"""The variable that names the folder; where it is not set, nothing is kept."""


def keep() -> None:
    """From here on this process and its forks look into the folder first."""
    torch.onnx.export = partial(_export, torch.onnx.export)


def _export(real: Any, program: Any, *args: Any, **options: Any) -> Any:
    place = os.environ.get(PLACE)
    if place is None or args or not isinstance(program, ExportedProgram):
        return real(program, *args, **options)
    digest = hashlib.sha256()
    for part in _parts(program, options):
        digest.update(part if isinstance(part, bytes) else repr(part).encode())
        digest.update(b"\0")
    file = Path(place, digest.hexdigest())
    if file.exists():
        return SimpleNamespace(model=ir.from_proto(onnx.load_model_from_string(file.read_bytes())))
    made = real(program, **options)
    with tempfile.NamedTemporaryFile(dir=place, delete=False) as draft:
        draft.write(ir.to_proto(made.model).SerializeToString())
    Path(draft.name).replace(file)
    return made


def _parts(program: ExportedProgram, options: dict[str, Any]) -> Iterator[object]:
    """All that a translation is made from.

    Of the modules that a node comes from only the names: the classes are in the package of a file that has another name
    in each folder, and what is written of them doesn't ship.
    """
    yield sorted(options.items())
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            yield node.op, node.name, str(node.target), node.args, node.kwargs
            yield tree_map(_seen, node.meta.get("val"))
            yield [(key, place) for key, (place, _) in (node.meta.get("nn_module_stack") or {}).items()]
    yield program.graph_signature
    yield program.range_constraints
    yield program.module_call_graph
    for name, value in (*program.state_dict.items(), *program.constants.items()):
        yield name
        yield value.requires_grad if isinstance(value, torch.Tensor) else value
        if isinstance(value, torch.Tensor):
            yield _seen(value)
            yield value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _seen(value: Any) -> Any:
    """What a trace knows of a value: of a tensor its type and axes."""
    return (value.dtype, tuple(value.shape), value.stride()) if isinstance(value, torch.Tensor) else value
