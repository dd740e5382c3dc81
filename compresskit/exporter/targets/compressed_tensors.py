"""A folder of compressed-tensors: the module's codes, for transformers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from compresskit.checkpoint.safetensors_writer import Entry
from compresskit.errors import GateError, InputError, listing
from compresskit.exporter.quiet import first_line, quiet
from compresskit.exporter.samples import samples
from compresskit.exporter.targets.folders import LinearFolder, write_folder
from compresskit.exporter.targets.target import Written
from compresskit.model import Model
from compresskit.ops.calibration.trace import tensors_in
from compresskit.ops.packed.grid import Packed, unpack
from compresskit.ops.packed.layout import Grid
from compresskit.report import Gate
from compresskit.stage import Progress, silent

_INPUTS = 3
_EXACT, _ROUNDED = 1e-5, 1e-2
"""How far outputs may be from the module's, relative: as they are, and where embeddings or what
transformers unpacks by zero points are rounded to float16."""


class CompressedTensors(LinearFolder):
    """Any model of transformers can be carried: the format has codes for Linear layers, others are stored as floats."""

    name: ClassVar[str] = "compressed-tensors"
    package: ClassVar[str] = "compressed_tensors"
    extra: ClassVar[str] = "compressed-tensors"
    ending: ClassVar[str] = "-compressed-tensors"
    architectures: ClassVar[tuple[str, ...] | None] = None

    def write(self, model: Model, place: Path, progress: Progress = silent) -> Written:
        """See :class:`Target`. The gate: transformers loads the folder, and gives the module's outputs."""
        found, coded, rounded = self.split(model)
        progress("writing compressed-tensors", 0, 2)
        write_folder(model, place, found, rounded, _config(coded), _entries)
        progress("writing compressed-tensors", 1, 2)
        shifted = any(weight.zeros is not None for weight in coded.values())
        gate = _prove(model, place, _ROUNDED if rounded or shifted else _EXACT, dense=shifted)
        progress("writing compressed-tensors", 2, 2)
        notes = [f"{len(coded)} layers as codes, loaded by {type(model.module).__name__}.from_pretrained"]
        if shifted:  # transformers 5.24 makes room for zero points that aren't packed, and finds packed ones
            notes.append(
                "transformers loads zero points with quantization_config=CompressedTensorsConfig(dequantize=True)"
            )
        if rounded:
            notes.append(f"the format has codes for Linear alone: {listing(rounded)} are stored in float16")
        return Written([gate], notes)


def _config(coded: dict[str, Packed]) -> dict[str, Any]:
    """The format's own description: a group of layers for each grid."""
    from compressed_tensors.config import CompressionFormat
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationConfig,
        QuantizationScheme,
        QuantizationStatus,
    )

    by_grid: dict[Grid, list[str]] = {}
    for name, weight in coded.items():
        by_grid.setdefault(weight.grid, []).append(name)
    groups = {}
    for at, (grid, names) in enumerate(by_grid.items()):
        size = {"strategy": "group", "group_size": grid.group_size} if grid.group_size else {"strategy": "channel"}
        weights = QuantizationArgs(num_bits=grid.bits, type="int", symmetric=grid.symmetric, **size)
        groups[f"group_{at}"] = QuantizationScheme(targets=names, weights=weights)
    packed = CompressionFormat.pack_quantized.value
    found = QuantizationConfig(
        config_groups=groups, format=packed, quantization_status=QuantizationStatus.COMPRESSED
    ).model_dump(mode="json", exclude_none=True)  # fmt: skip
    return {**found, "quant_method": "compressed-tensors"}


def _entries(name: str, weight: Packed) -> Iterator[Entry]:
    """The tensors of one weight, each made when it is written."""
    rows, columns = weight.shape
    bits, groups = weight.grid.bits, weight.scales.shape[1]
    yield Entry(f"{name}_packed", torch.int32, (rows, math.ceil(columns * bits / 32)), lambda: _codes(weight))
    yield Entry(f"{name}_scale", weight.scales.dtype, (rows, groups), weight.scales.contiguous)
    yield Entry(f"{name}_shape", torch.int64, (2,), lambda: torch.tensor([rows, columns]))
    if weight.zeros is not None:
        packed_rows = math.ceil(rows * bits / 32)
        yield Entry(f"{name}_zero_point", torch.int32, (packed_rows, groups), lambda: _points(weight))


def _codes(weight: Packed) -> Tensor:
    """Codes in the format's own packing, which takes them signed."""
    _, size, _ = weight.grid.layout(weight.shape[1])
    return _packed(unpack(weight.codes, weight.grid.bits, size).flatten(1), weight.grid.bits, 1)


def _points(weight: Packed) -> Tensor:
    assert weight.zeros is not None  # narrows the type
    return _packed(unpack(weight.zeros, weight.grid.bits, weight.scales.shape[1]), weight.grid.bits, 0)


def _packed(codes: Tensor, bits: int, axis: int) -> Tensor:
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    signed = (codes.to(torch.int16) - (1 << (bits - 1))).to(torch.int8)
    found: Tensor = pack_to_int32(signed, bits, packed_dim=axis)
    return found.contiguous()


def _prove(model: Model, folder: Path, limit: float, *, dense: bool) -> Gate:
    """Load the folder by transformers and compare outputs on random inputs.

    Args:
        model: The original, its layers packed or not.
        folder: What was written.
        limit: Largest difference, over the largest output.
        dense: Let transformers unpack the weights while it loads.

    Raises:
        GateError: They are too far off.
        InputError: transformers doesn't load it.
    """
    from transformers import CompressedTensorsConfig

    options: dict[str, Any] = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if dense else {}
    kind: Any = type(model.module)
    try:
        with quiet():
            loaded = kind.from_pretrained(str(folder), dtype=torch.float32, local_files_only=True, **options).eval()
    except Exception as error:  # whatever transformers or the format's library raises
        raise InputError(f"transformers does not load the folder: {first_line(error)}") from error
    off = 0.0
    for feeds in _inputs(model):
        with torch.inference_mode():
            expected, found = (next(tensors_in(dict(net(**feeds)))).float() for net in (model.module, loaded))
        off = max(off, float((found - expected).abs().max() / expected.abs().max()))
    if not off <= limit:
        raise GateError(f"outputs of the folder under transformers are {off:.2g} relative from the module's")
    names = listing([spec.name for spec in model.card.inputs])
    reason = f"{_INPUTS} random inputs ({names}), loaded by transformers"
    return Gate(name="compressed-tensors outputs", limit=f"≤ {limit:g} relative", value=off, passed=True, reason=reason)


def _inputs(model: Model) -> Iterator[dict[str, Tensor]]:
    """Random inputs, without the tokens that stand for pictures or sound."""
    config: Any = model.module.config
    special = [
        v for k, v in config.to_dict().items() if k.endswith(("_token_id", "_token_index")) and isinstance(v, int)
    ]
    random = (feeds for kind, feeds in samples(model.card.inputs) if kind == "random")
    for feeds in itertools.islice(random, _INPUTS):
        tensors = {name: torch.from_numpy(value) for name, value in feeds.items()}
        for name in tensors.keys() & {"input_ids", "decoder_input_ids"}:
            tensors[name] = tensors[name].masked_fill(torch.isin(tensors[name], torch.tensor(special)), 3)
        yield tensors
