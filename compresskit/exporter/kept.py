"""A module's graph as torch wrote it, kept without its weights: with those of a later state of the module it is a file.

What is kept is not optimized yet, so each parameter is an initializer of its own name, whatever becomes of it in the
file. A layer that was packed meanwhile takes the place of the operators that read its weight. So a result whose
structure is that of the original needs no trace of its own.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

import onnx
import onnx_ir as ir
from onnx_ir.passes import common
from torch import Tensor, nn

from compresskit.errors import InputError
from compresskit.exporter.lower import DOMAIN, lowered
from compresskit.exporter.placeholders import Placeholders
from compresskit.exporter.samples import Limits
from compresskit.model import InputSpec
from compresskit.ops.packed.modules import PackedConv, PackedEmbedding, PackedLayer, PackedLinear

PREFIX = "module."
"""Of the names of parameters in a graph that was traced."""
_ABOUT = "compresskit.kept"
_TOOK: dict[type[PackedLayer], tuple[type[nn.Module], ...]] = {
    PackedLinear: (nn.Linear,),
    PackedEmbedding: (nn.Embedding,),
    PackedConv: (nn.Conv1d, nn.Conv2d, nn.Conv3d),
}
"""What a packed layer may have taken the place of: then the graph around it is the same."""


@dataclass(frozen=True)
class Traced:
    """What tracing a module found out, besides the graph.

    Attributes:
        inputs: What the module takes.
        outputs: Names of the outputs, in order.
        limits: Smallest and largest size of an axis where the export found one; equal for a fixed axis.
        suspects: Operators in the model that are known to become something else.
        generates: It is a model that writes text.
    """

    inputs: tuple[InputSpec, ...]
    outputs: tuple[str, ...]
    limits: Limits
    suspects: tuple[str, ...]
    generates: bool

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know: axes that had to be fixed or are bounded."""
        notes = []
        for name, (low, high) in sorted(self.limits.items()):
            if low == high:
                notes.append(f"axis '{name}' is fixed at {low}: the model's code depends on its size")
            elif high is not None:
                notes.append(f"axis '{name}' goes up to {high}")
        return tuple(notes)


@dataclass(frozen=True)
class KeptGraph:
    """A traced graph without the values of its parameters.

    Attributes:
        graph: ONNX; parameters are inputs, behind those of the model.
        traced: What else is known of it.
        layers: Class names of all submodules.
        parameters: All names of each parameter and buffer in the graph: more than one where it is tied.
    """

    graph: bytes
    traced: Traced
    layers: dict[str, str]
    parameters: dict[str, list[str]]

    @classmethod
    def of(cls, model: ir.Model, traced: Traced, module: nn.Module) -> KeptGraph | None:
        """Keep a graph.

        Args:
            model: As torch wrote it; not changed.
            traced: What else is known.
            module: What it was traced from, as :func:`compresskit.exporter.lower.lowered` gave it.

        Returns:
            None where layers are packed already: what they become depends on their codes.
        """
        if any(isinstance(layer, PackedLayer) for layer in module.modules()):
            return None
        aliases = _aliases(module)
        copy = model.clone()
        common.ClearMetadataAndDocStringPass()(copy)
        found = {}
        for name, value in list(copy.graph.initializers.items()):
            if name.startswith(PREFIX) and name.removeprefix(PREFIX) in aliases:
                found[name] = aliases[name.removeprefix(PREFIX)]
                del copy.graph.initializers[name]
                value.const_value = None
                copy.graph.inputs.append(value)
        return cls(ir.to_proto(copy).SerializeToString(deterministic=True), traced, _layers(module), found)

    def filled(self, module: nn.Module) -> ir.Model | None:
        """The graph with the values of a module of the same structure, some of whose layers may be packed.

        Args:
            module: Not changed; the graph holds its tensors.

        Returns:
            As a trace of it would be written; None where that isn't certain: layers differ, or parameters.
        """
        module = lowered(module)
        if not self._same_structure(module):
            return None
        model: ir.Model = ir.from_proto(_parsed(self.graph))
        given = {str(value.name): value for value in model.graph.inputs if value.name in self.parameters}
        place = Placeholders(model.graph, PREFIX)
        state, packed = dict(_state(module, twice=True)), _packed(module)
        weights = []
        for full, value in given.items():
            model.graph.inputs.remove(value)
            names = self.parameters[full]
            owners = [name.removesuffix(".weight") for name in names]
            layers = {name: packed[name] for name in owners if name in packed}
            if len({id(_own(name, state, packed)) for name in names}) > 1:  # untied since the graph was traced
                return None
            tensor = state.get(full.removeprefix(PREFIX))
            if layers and len(layers) == len(owners):
                weights.append((value, layers))
            elif layers or tensor is None or not place.bind(value, tensor, names):
                return None
        for value, layers in weights:
            place.lower(value, layers)
        if place.missed:
            return None
        place.register(name for name, _ in _state(module, twice=False))
        if place.count:
            model.opset_imports[DOMAIN] = 1
        return model

    def _same_structure(self, module: nn.Module) -> bool:
        layers = _modules(module)
        return layers.keys() == self.layers.keys() and all(_same(layers[name], self.layers[name]) for name in layers)

    def to_bytes(self) -> bytes:
        """For a file; the inverse of :meth:`from_bytes`."""
        proto = _parsed(self.graph)
        about = {"traced": asdict(self.traced), "layers": self.layers, "parameters": self.parameters}
        proto.metadata_props.add(key=_ABOUT, value=json.dumps(about))
        return bytes(proto.SerializeToString(deterministic=True))

    @classmethod
    def from_bytes(cls, data: bytes) -> KeptGraph:
        """Read what :meth:`to_bytes` gave.

        Raises:
            InputError: It is something else.
        """
        try:
            proto = _parsed(data)
            about = json.loads(next(p.value for p in proto.metadata_props if p.key == _ABOUT))
            del proto.metadata_props[:]
            found = about["traced"]
            inputs = tuple(InputSpec(**{**spec, "shape": tuple(spec["shape"])}) for spec in found["inputs"])
            limits = {name: (low, high) for name, (low, high) in found["limits"].items()}
            traced = Traced(inputs, tuple(found["outputs"]), limits, tuple(found["suspects"]), found["generates"])
            graph = proto.SerializeToString(deterministic=True)
            return cls(graph, traced, about["layers"], about["parameters"])
        except Exception as error:  # protobuf, JSON, or what the JSON lacks
            raise InputError(f"a kept graph can't be read: {type(error).__name__}") from error


def _parsed(data: bytes) -> onnx.ModelProto:
    return onnx.ModelProto.FromString(data)


def _state(module: nn.Module, *, twice: bool) -> Iterator[tuple[str, Tensor]]:
    """Parameters, then buffers, by name; ``twice`` gives a tied one under each of its names."""
    yield from module.named_parameters(remove_duplicate=not twice)
    yield from module.named_buffers(remove_duplicate=not twice)


def _own(name: str, state: Mapping[str, Tensor], packed: Mapping[str, PackedLayer]) -> Tensor | None:
    """What stands for a parameter of that name: its values, or the codes of a packed layer."""
    layer = packed.get(name.removesuffix(".weight"))
    return state.get(name) if layer is None else layer.codes


def _aliases(module: nn.Module) -> dict[str, list[str]]:
    """All names of each parameter and buffer, by each of them."""
    by_tensor = defaultdict(list)
    for name, tensor in _state(module, twice=True):
        by_tensor[id(tensor)].append(name)
    return {name: names for names in by_tensor.values() for name in names}


def _packed(module: nn.Module) -> dict[str, PackedLayer]:
    return {name: layer for name, layer in _modules(module).items() if isinstance(layer, PackedLayer)}


def _layers(module: nn.Module) -> dict[str, str]:
    return {name: _kind(type(layer)) for name, layer in _modules(module).items()}


def _modules(module: nn.Module) -> dict[str, nn.Module]:
    """By name; one that is used twice under each of its names."""
    return dict(module.named_modules(remove_duplicate=False))


def _kind(layer: type[nn.Module]) -> str:
    """The name of a class as a file may hold it: that of the user's own file differs from run to run."""
    return layer.__qualname__


def _same(layer: nn.Module, kind: str) -> bool:
    """Whether a layer is what it was, or packed."""
    took = next((plain for packed, plain in _TOOK.items() if isinstance(layer, packed)), None)
    return kind in map(_kind, took) if took else kind == _kind(type(layer))
