"""GGUF, the format of llama.cpp, written by the ``gguf`` package; codes are those of the module."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from compresskit.errors import GateError, InputError
from compresskit.exporter.targets import gguf_blocks
from compresskit.exporter.targets.gguf_arch import ARCHITECTURES, Named, add_metadata, converted, experts_of
from compresskit.exporter.targets.gguf_tokens import add_tokenizer, open_vocabulary
from compresskit.exporter.targets.target import Target, Written
from compresskit.exporter.targets.weights import Weight, check_shapes, weights_of
from compresskit.model import Model
from compresskit.ops.packed.grid import Packed, dequantize
from compresskit.ops.packed.layout import Grid
from compresskit.report import Gate
from compresskit.stage import Progress, silent

_MINIMUM = 2.0**-10
"""What a minimum in fp16 may be off by: half a unit of its last place, over the largest value of a tensor."""
_NUMBERS_ONLY = ("ffn_gate_inp", "position_embd")
"""Matrices that llama.cpp wants in float32."""


class Gguf(Target):
    """One file. Symmetric codes are carried as they are, Q4_0 or Q8_0, and K-quants; zero points as Q4_1, in fp16."""

    name: ClassVar[str] = "gguf"
    package: ClassVar[str] = "gguf"
    extra: ClassVar[str] = "gguf"
    ending: ClassVar[str] = ".gguf"
    architectures: ClassVar[tuple[str, ...]] = tuple(ARCHITECTURES)

    def reason_against(self, grid: Grid) -> str | None:
        """See :class:`Target`."""
        return gguf_blocks.reason_against(grid)

    def check(self, model: Model, grids: Iterable[tuple[str, Grid]] = ()) -> None:
        """See :class:`Target`; the tokenizer and the sizes must have a place too.

        Raises:
            InputError: They don't.
        """
        super().check(model, grids)
        import gguf

        config: Any = model.module.config
        arch = ARCHITECTURES[config.model_type]
        open_vocabulary(model.source, config.vocab_size)
        add_metadata(gguf.GGUFWriter(None, arch.name), config, arch)

    def write(self, model: Model, place: Path, progress: Progress = silent) -> Written:
        """See :class:`Target`. One tensor is in memory at a time, beside those of the module."""
        import gguf

        config: Any = model.module.config
        arch = ARCHITECTURES[config.model_type]
        found = weights_of(model.module, self.name)
        check_shapes(model.module, found, self.name)
        writer = gguf.GGUFWriter(place, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH[arch.name]])
        with contextlib.closing(writer):
            writer.add_name(model.source.name)
            add_metadata(writer, config, arch)
            add_tokenizer(writer, model.source, config.vocab_size)
            names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[arch.name], config.num_hidden_layers)
            kinds = self._declare(writer, names, converted(found, config, arch), experts_of(config))
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
            writer.add_file_type(_file_type(kinds))
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for at, (_, weight) in enumerate(converted(found, config, arch)):
                progress("writing gguf", at, len(kinds))
                writer.write_tensor_data(_bytes(weight, kinds[at]))
        worst = _distance(place, converted(found, config, arch))
        return Written([_proof(worst, kinds)], _notes(found, kinds))

    def _declare(self, writer: Any, names: Any, weights: Any, experts: int) -> list[str]:
        """Say which tensors come, in order; returns their types."""
        import gguf

        kinds = []
        for name, weight in weights:
            there = name if name.startswith(("blk.", "rope_freqs.")) else names.get_name(name, (".weight", ".bias"))
            if there is None:
                raise InputError(f"gguf has no place for the tensor {name}")
            kind = _kind(there, weight)
            shape = tuple(weight.shape)
            if "_exps." in there and len(shape) == 2:
                shape = (experts, shape[0] // experts, shape[1])
            layout = gguf_blocks.Layout(kind, shape)
            dtype = np.dtype(np.float32)  # of no effect where the type is given
            writer.add_tensor_info(there, layout.shape, dtype, layout.nbytes, gguf.GGMLQuantizationType[kind])
            kinds.append(kind)
        return kinds


def _distance(place: Path, weights: Iterable[Named]) -> float:
    """How far a file's numbers are from the module's: the largest difference of a tensor, over its largest value."""
    import gguf

    reader = gguf.GGUFReader(place)
    worst = 0.0
    for stored, (_, weight) in zip(reader.tensors, weights, strict=True):
        expected = (dequantize(weight) if isinstance(weight, Packed) else weight).float().numpy()
        found = gguf.dequantize(stored.data, stored.tensor_type).reshape(expected.shape)
        worst = max(worst, float(np.abs(found - expected).max()) / (float(np.abs(expected).max()) or 1.0))
    return worst


def _proof(worst: float, kinds: list[str]) -> Gate:
    """The gate of the format: every tensor is read back and compared.

    Raises:
        GateError: One differs by more than its type rounds.
    """
    limit = _MINIMUM if "Q4_1" in kinds else 0.0
    if worst > limit:
        raise GateError(f"the gguf file holds other numbers than the model: {worst:.2g} of a tensor's largest value")
    reason = f"{len(kinds)} tensors read back" + (", zero points rounded to fp16 minima" if limit else ", bit-equal")
    return Gate(name="gguf values", limit=f"≤ {limit:g} relative", value=worst, passed=True, reason=reason)


def _kind(name: str, weight: Weight) -> str:
    if not isinstance(weight, Packed):
        return "F32" if any(part in name for part in _NUMBERS_ONLY) else gguf_blocks.float_kind(weight)
    return gguf_blocks.packed_kind(weight) or gguf_blocks.float_kind(dequantize(weight))


def _bytes(weight: Weight, kind: str) -> np.ndarray:
    if isinstance(weight, Packed):
        if kind.startswith("Q"):
            return gguf_blocks.block_bytes(weight, kind)
        weight = dequantize(weight)
    return gguf_blocks.float_bytes(weight, kind)


def _file_type(kinds: list[str]) -> int:
    """llama.cpp's number for the type that most tensors have."""
    import gguf

    sizes = {"Q3_K": "_M", "Q4_K": "_M", "Q5_K": "_M"}  # small, medium, large: how many tensors have more bits
    types = {name: f"MOSTLY_{name}{sizes.get(name, '')}" for name in {*kinds} - {"F32", "BF16"}}
    counts = Counter(kind for kind in kinds if kind in types)
    return int(gguf.LlamaFileType[types[counts.most_common(1)[0][0]]] if counts else gguf.LlamaFileType.ALL_F32)


def _notes(found: dict[str, Weight], kinds: list[str]) -> list[str]:
    counts = Counter(kinds)
    notes = ["tensors of gguf: " + ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))]
    packed = [weight for weight in found.values() if isinstance(weight, Packed)]
    floats = sum(gguf_blocks.packed_kind(weight) is None for weight in packed)
    if floats:
        notes.append(
            f"{floats} quantized layers are stored as floats: their columns are no multiple of 32, or their "
            "scales need float32"
        )
    if wide := sum(weight.grid.bits < 4 and weight.grid.two_level is None for weight in packed):
        notes.append(f"{wide} layers of fewer than 4 bits take 4 there")
    if counts["Q4_1"]:
        notes.append("zero points are stored as fp16 minima (Q4_1): weights differ by up to 2**-11 of the minimum")
    return notes
