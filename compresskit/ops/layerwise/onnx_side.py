"""An ONNX file whose values between the layers are outputs too."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from compresskit.checkpoint.onnx_file import read_onnx_file
from compresskit.errors import InputError
from compresskit.ops.calibration.activation_stream import Batch
from compresskit.ops.layerwise.side import OUTPUT, Layer
from compresskit.ops.onnx_names import coded
from compresskit.runtimes.onnx_graph import OnnxGraph
from compresskit.runtimes.onnxruntime import OnnxRuntime

_SCOPES = "pkg.torch.onnx.name_scopes"
"""Where torch's exporter writes the names of the modules around an operator."""
_LARGEST = 1 << 31
_BEHIND = 4
"""Operators behind a product that may still be part of its layer: bias, scales, casts."""
_WEIGHED = (
    "Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "MatMul", "Gemm", "MatMulNBits", "MatMulInteger",
    "QLinearMatMul", "QGemm", "Gather", "GatherBlockQuantized", "LayerNormalization", "SkipLayerNormalization",
    "BatchNormalization", "InstanceNormalization", "GroupNormalization", "RMSNormalization",
    "SimplifiedLayerNormalization", "LSTM", "GRU",
)  # fmt: skip
_PREFIX = re.compile(r"^(module|_orig_mod)\.")


class OnnxSide:
    """An ONNX file under onnxruntime.

    The layer of an operator follows from the name of the weight it takes (``encoder.0.weight``), also where that is
    stored as codes; else by what torch's exporters note of scopes, in the metadata or the name of the operator.

    Args:
        path: The file.
        folder: For a copy of it with more outputs.
        threads: Of an operator.

    Raises:
        InputError: It is damaged, or has 2 GB or more of weights.
    """

    def __init__(self, path: Path, folder: Path, threads: int = 0) -> None:
        model = read_onnx_file(path)
        self.layers = layers_of(model)
        self._first = model.graph.output[0].name
        self._session = OnnxRuntime().open(_with_outputs(model, path, folder, self.layers), threads)
        self.inputs = self._session.inputs
        """Specs of the file's inputs."""

    def run(self, batch: Batch) -> dict[str, np.ndarray]:
        """See :class:`~compresskit.ops.layerwise.side.Side`."""
        feeds = {name: tensor.numpy() for name, tensor in batch.items()}
        names = [spec.name for spec in self.inputs]
        if set(names) != feeds.keys() and len(names) == len(feeds):
            feeds = dict(zip(names, feeds.values(), strict=True))
        out = self._session.run({name: feeds[name] for name in names if name in feeds})
        return {**out, OUTPUT: out[self._first]}


def layers_of(model: Any) -> dict[str, Layer]:
    """The layers of a graph by name, in the order of their operators; those of several operators are left out."""
    graph = OnnxGraph(model)
    found: dict[str, list[Any]] = {}
    for node in model.graph.node:
        if node.op_type in _WEIGHED and not any(map(graph.constant, node.output)):
            name = _of_weight(graph, node) or _of_metadata(node) or _of_name(node.name)
            if name:
                found.setdefault(name, []).append(node)
    return {
        name: Layer(nodes[0].op_type, (nodes[0].output[0], *_behind(graph, nodes[0])))
        for name, nodes in found.items()
        if len(nodes) == 1
    }


def _of_weight(graph: OnnxGraph, node: Any) -> str:
    """The layer whose weight an operator takes, by that weight's name."""
    for value in node.input:
        if value and graph.constant(value):
            for leaf in graph.leaves(value):
                plain = _PREFIX.sub("", coded(leaf) or leaf)
                layer, dot, _ = plain.rpartition(".")
                if dot and "/" not in layer and ":" not in layer:
                    return layer
    return ""


def _of_metadata(node: Any) -> str:
    for entry in node.metadata_props:
        if entry.key == _SCOPES:
            try:
                scopes = json.loads(entry.value.replace("'", '"'))
            except json.JSONDecodeError:
                return ""
            return str(scopes[-2]) if isinstance(scopes, list) and len(scopes) > 1 else ""
    return ""


def _of_name(name: str) -> str:
    """``/layer1/layer1.0/conv1/Conv`` is an operator of ``layer1.0.conv1``: how TorchScript's exporter writes it."""
    full = ""
    for part in name.strip("/").split("/")[:-1]:
        full = part if not full or part.startswith(f"{full}.") else f"{full}.{part}"
    return full


def _behind(graph: OnnxGraph, node: Any) -> list[str]:
    """What stands right behind a product and may be part of its layer."""
    found: list[str] = []
    last = node
    while len(found) < _BEHIND:
        users = graph.users.get(last.output[0], [])
        if len(users) != 1:
            break
        after = users[0]
        others = [n for n in after.input if n and n != last.output[0]]
        bound = all(map(graph.constant, others)) or last.op_type == "Cast"  # a product of codes is scaled behind a cast
        if after.op_type not in ("Add", "Mul", "Cast", "BatchNormalization", "DequantizeLinear") or not bound:
            break
        found.append(after.output[0])
        last = after
    return found


def _with_outputs(model: Any, path: Path, folder: Path, layers: dict[str, Layer]) -> Path:
    """A copy of the file with the layers' values among its outputs."""
    import onnx

    onnx.load_external_data_for_model(model, str(path.parent))
    known = {value.name for value in model.graph.output}
    for layer in layers.values():
        for name in layer.values:
            if name not in known:
                known.add(name)
                model.graph.output.append(onnx.ValueInfoProto(name=name))
    if model.ByteSize() >= _LARGEST:
        raise InputError(f"{path} has 2 GB of weights or more: its layers can't be shown", "compare a smaller model")
    target = folder / "layers.onnx"
    target.write_bytes(model.SerializeToString())
    return target
