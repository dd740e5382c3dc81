"""Two decoders as one file, each weight once; weights past 2 GiB lie beside it and are never read whole."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, TensorProto, external_data_helper, helper

from compresskit.checkpoint.atomic import writing
from compresskit.exporter.slim import DATA_ABOVE
from compresskit.exporter.targets.encoder_decoder import Shape

SWITCH = "use_cache_branch"
_LEAST = 1024
"""Bytes of a weight that lies beside the file; what graphs compute shapes from is smaller, and stays in it."""
_ALIGNED = 4096
_ROOM = 1 << 27
"""Bytes of a file besides its weights, at most: protobuf holds 2 GiB in all."""


@dataclass
class _Weights:
    """The weights of both graphs, by what they hold.

    Attributes:
        tensors: By new name; their numbers are read when they are written.
        numbers: uint8, by the same names; those of a file beside a graph are mapped.
    """

    tensors: dict[str, TensorProto] = field(default_factory=dict)
    numbers: dict[str, np.ndarray] = field(default_factory=dict)

    def add(self, tensor: TensorProto, folder: Path) -> str:
        """The new name of a weight of a file in a folder."""
        data = _numbers(tensor, folder)
        found = hashlib.sha256(f"{tensor.data_type} {list(tensor.dims)} ".encode())
        found.update(data.data)
        name = f"weight_{found.hexdigest()[:32]}"
        if name not in self.tensors:
            self.tensors[name] = TensorProto(name=name, data_type=tensor.data_type, dims=tensor.dims)
            self.numbers[name] = data
        return name

    def stored(self, place: Path, data_above: int) -> list[TensorProto]:
        """All weights, in the graph or, from ``data_above`` bytes on, in ``<name>.data`` beside it."""
        aside: dict[str, np.ndarray] = {}
        if sum(data.nbytes for data in self.numbers.values()) >= data_above - min(_ROOM, data_above // 2):
            aside = {name: data for name, data in self.numbers.items() if data.nbytes >= _LEAST}
        for name in self.numbers.keys() - aside.keys():
            self.tensors[name].raw_data = self.numbers[name].tobytes()
        if aside:
            beside = place.with_name(f"{place.name}.data")
            with writing(beside), beside.open("wb") as file:
                for name, data in aside.items():
                    file.write(bytes(-file.tell() % _ALIGNED))
                    self.tensors[name].raw_data = b"0"  # what the helper wants to see
                    external_data_helper.set_external_data(
                        self.tensors[name], beside.name, offset=file.tell(), length=data.nbytes
                    )
                    self.tensors[name].ClearField("raw_data")
                    file.write(data.data)
        return list(self.tensors.values())


def _numbers(tensor: TensorProto, folder: Path) -> np.ndarray:
    if not external_data_helper.uses_external_data(tensor):
        data = tensor.raw_data or onnx.numpy_helper.to_array(tensor).tobytes()
        return np.frombuffer(data, np.uint8)
    told = external_data_helper.ExternalDataInfo(tensor)
    count = told.length or 0
    if not count:
        return np.zeros(0, np.uint8)
    return np.memmap(folder / told.location, np.uint8, "r", told.offset or 0, (count,))


def write_merged(first: Path, past: Path, shape: Shape, place: Path, *, data_above: int = DATA_ABOVE) -> None:
    """Write both decoders as one model, whose weights are there once.

    It has an ``If``: ``use_cache_branch`` says which of the two runs. Its other inputs are those of ``past``.

    Args:
        first: The decoder without a cache.
        past: That with one.
        shape: Of the model.
        place: The file; what is past ``data_above`` bytes goes to ``<name>.data``.
        data_above: Bytes of weights.

    Raises:
        MachineError: The disk is full.
    """
    models = [onnx.load(str(path), load_external_data=False) for path in (first, past)]
    weights = _Weights()
    branches = [
        _branch(model.graph, path.parent, prefix, weights, shape)
        for model, path, prefix in zip(models, (first, past), ("first", "past"), strict=True)
    ]
    with writing(place):
        place.write_bytes(_joined(models, branches, weights.stored(place, data_above), shape).SerializeToString())


def _joined(
    models: list[ModelProto], branches: list[GraphProto], weights: list[TensorProto], shape: Shape
) -> ModelProto:
    names = ["logits", *shape.cache("present")]
    choose = helper.make_node("If", [SWITCH], names, else_branch=branches[0], then_branch=branches[1])
    switch = helper.make_tensor_value_info(SWITCH, TensorProto.BOOL, [1])
    tokens = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])
    given = [tokens if value.name == "input_ids" else value for value in models[1].graph.input]
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names]
    graph = helper.make_graph([choose], "decoder", [*given, switch], results, weights)
    opsets = {entry.domain: max(entry.version, 0) for model in models for entry in model.opset_import}
    made = helper.make_model(
        graph, opset_imports=[helper.make_opsetid(domain, version) for domain, version in opsets.items()],
        ir_version=models[0].ir_version,
    )  # fmt: skip
    made.metadata_props.extend(models[0].metadata_props)
    return made


def _branch(graph: GraphProto, folder: Path, prefix: str, weights: _Weights, shape: Shape) -> GraphProto:
    """A graph as a branch: its inputs and weights are those around it."""
    outer = {value.name for value in graph.input}
    names: dict[str, str] = {name: name for name in outer} | {"": ""}
    names |= {tensor.name: weights.add(tensor, folder) for tensor in graph.initializer}
    nodes = []
    for number, node in enumerate(graph.node):
        kept = onnx.NodeProto()
        kept.CopyFrom(node)
        kept.name = f"{prefix}/{number}"
        for values in (kept.input, kept.output):
            values[:] = [names.get(name, f"{prefix}/{name}") for name in values]
        nodes.append(kept)
    results = []
    for name in ("logits", *shape.cache("present")):
        own = f"{prefix}/{name}"
        if ".encoder." in name and prefix == "past":  # a step doesn't change it
            nodes.append(helper.make_node("Identity", [name.replace("present", "past_key_values")], [own]))
        results.append(helper.make_tensor_value_info(own, TensorProto.FLOAT, None))
    return helper.make_graph(nodes, prefix, [], results)
