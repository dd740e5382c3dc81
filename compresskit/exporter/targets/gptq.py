"""A folder in GPTQ's checkpoint format, as AutoGPTQ, GPTQModel and vLLM read it; codes are those of the module.

Of a matrix ``(out, in)`` it stores ``qweight`` int32 ``(in·bits/32, out)``, ``qzeros`` int32 ``(groups, out·bits/32)``,
``scales`` float16 ``(groups, out)`` and ``g_idx`` int32 ``(in,)``, the group of each column. Codes follow each other in
the bits of the words, lowest first, so that at 3 bits 32 codes take three words.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from compresskit import __version__
from compresskit.checkpoint.safetensors_writer import Entry
from compresskit.checkpoint.tensors import Tensors, open_tensors
from compresskit.errors import GateError, InputError, listing
from compresskit.exporter.targets.folders import FILE, LinearFolder, write_folder
from compresskit.exporter.targets.target import DENSE, Written
from compresskit.model import Model
from compresskit.ops.packed.grid import Packed, unpack
from compresskit.ops.packed.layout import Grid
from compresskit.report import Gate
from compresskit.stage import Progress, silent

_WORD = 32
"""Codes of a run: they fill whole words at any number of bits."""
_BLOCKS = "model.layers."
"""Names of the layers that programs of this format look for codes in."""
_ROWS = 256
"""Rows that are read back at a time: each bit of their codes is a byte then."""


class Gptq(LinearFolder):
    """Linear layers of the blocks have codes; the head and packed embeddings are stored in float16."""

    name: ClassVar[str] = "gptq"
    package: ClassVar[str] = "transformers"
    extra: ClassVar[str] = "hf"
    ending: ClassVar[str] = "-gptq"
    architectures: ClassVar[tuple[str, ...]] = DENSE

    def has_codes(self, name: str) -> bool:
        """See :class:`LinearFolder`."""
        return name.startswith(_BLOCKS)

    def reason_against_shape(self, name: str, shape: tuple[int, ...], grid: Grid) -> str | None:
        """See :class:`Target`."""
        if not self.has_codes(name):
            return None
        if any(size % _WORD for size in shape):
            return f"its sizes {shape[0]} × {shape[1]} are no multiples of {_WORD}; `exclude` it"
        return super().reason_against_shape(name, shape, grid)

    def write(self, model: Model, place: Path, progress: Progress = silent) -> Written:
        """See :class:`Target`. The gate: all codes, zero points and scales are read back from the file."""
        found, coded, floats = self.split(model)
        if not coded:
            raise InputError(f"gptq can't carry {model.source}: none of its blocks' layers has codes", "quantize it")
        for name, weight in coded.items():
            if not bool((_half(weight) == weight.scales).all()):
                raise InputError(f"gptq can't carry {name}: its scales need float32", "`exclude` it")
        # The first version stores zero points less one: 0 has no place there, and GPTQModel takes no other program's.
        version = 2 if any(weight.zeros is not None for weight in coded.values()) else 1
        left = [
            name.removesuffix(".weight")
            for name, weight in found.items()
            if not isinstance(weight, Packed) and len(weight.shape) == 2 and self.has_codes(name)
        ]
        told = _config(coded, left, version)
        progress("writing gptq", 0, 2)
        write_folder(model, place, found, floats, told, partial(_entries, version=version))
        progress("writing gptq", 1, 2)
        gate = _prove(open_tensors(place / FILE), coded, version)
        progress("writing gptq", 2, 2)
        return Written([gate], _notes(coded, floats, told))


def _config(coded: dict[str, Packed], left: list[str], version: int) -> dict[str, Any]:
    """The format's own description.

    Args:
        coded: Layers with codes.
        left: Linear layers of the blocks without. GPTQModel and vLLM look for them in ``dynamic``, transformers in
            ``modules_in_block_to_quantize``, which names the others.
        version: Of the format.
    """
    kinds = {name: (weight.grid.bits, _group_size(weight)) for name, weight in coded.items()}
    usual = Counter(kinds.values()).most_common(1)[0][0]
    dynamic: dict[str, dict[str, int]] = {f"-:{_exactly(name)}": {} for name in left}
    for name, kind in kinds.items():
        if kind != usual:
            dynamic[f"+:{_exactly(name)}"] = _described(*kind)
    told: dict[str, Any] = {
        "quant_method": "gptq",
        "checkpoint_format": "gptq" if version == 1 else "gptq_v2",
        **_described(*usual),
        "desc_act": False,
        "sym": version == 1,
        "lm_head": False,
        "pack_dtype": "int32",
        "meta": {"quantizer": [f"compresskit:{__version__}"]},
    }
    if left:
        told["modules_in_block_to_quantize"] = [list(coded)]
    if dynamic:
        told["dynamic"] = dynamic
    return told


def _described(bits: int, group_size: int) -> dict[str, int]:
    return {"bits": bits, "group_size": group_size}


def _group_size(weight: Packed) -> int:
    """As the format says it: -1 where a row is one group."""
    return weight.grid.group_size if weight.scales.shape[1] > 1 else -1


def _exactly(name: str) -> str:
    return f"^{re.escape(name)}$"


def _entries(name: str, weight: Packed, version: int) -> Iterator[Entry]:
    """The tensors of one weight, each made when it is written."""
    layer = name.removesuffix("weight")
    (rows, columns), bits = weight.shape, weight.grid.bits
    groups, size, _ = weight.grid.layout(columns)
    yield Entry(f"{layer}qweight", torch.int32, (columns * bits // _WORD, rows), lambda: _words(_codes(weight).T, bits))
    yield Entry(f"{layer}qzeros", torch.int32, (groups, rows * bits // _WORD), lambda: _points(weight, version))
    yield Entry(f"{layer}scales", torch.float16, (groups, rows), lambda: _half(weight).T.contiguous())
    yield Entry(f"{layer}g_idx", torch.int32, (columns,), lambda: _groups(columns, size))


def _half(weight: Packed) -> Tensor:
    return weight.scales.to(torch.float16)


def _codes(weight: Packed) -> Tensor:
    """uint8 ``(out, in)``."""
    _, size, _ = weight.grid.layout(weight.shape[1])
    return unpack(weight.codes, weight.grid.bits, size).flatten(1)


def _zeros(weight: Packed) -> Tensor:
    """Zero points, uint8 ``(out, groups)``."""
    if weight.zeros is None:
        return torch.full(tuple(weight.scales.shape), weight.grid.middle, dtype=torch.uint8)
    return unpack(weight.zeros, weight.grid.bits, weight.scales.shape[1])


def _points(weight: Packed, version: int) -> Tensor:
    stored = _zeros(weight) - (2 - version)
    return _words(stored, weight.grid.bits).T.contiguous()


def _groups(columns: int, size: int) -> Tensor:
    return torch.arange(columns, dtype=torch.int32) // size


def _words(codes: Tensor, bits: int) -> Tensor:
    """Codes to words along the first axis: uint8 ``(n, m)`` to int32 ``(n·bits/32, m)``, ``n`` a multiple of 32."""
    runs = codes.reshape(-1, _WORD, codes.shape[1])
    words = torch.zeros(len(runs), bits, codes.shape[1], dtype=torch.int64)
    for at in range(_WORD):
        word, shift = divmod(at * bits, _WORD)
        code = runs[:, at].to(torch.int64)
        words[:, word] |= code << shift & 0xFFFFFFFF
        if shift + bits > _WORD:
            words[:, word + 1] |= code >> (_WORD - shift)
    return words.flatten(0, 1).to(torch.int32)


def _read(words: Tensor, bits: int) -> Tensor:
    """The codes of words along the last axis, bit by bit: int32 ``(m, n·bits/32)`` to uint8 ``(m, n)``."""
    single = np.unpackbits(words.contiguous().numpy().astype("<i4").view(np.uint8), axis=1, bitorder="little")
    codes = np.packbits(single.reshape(len(words), -1, bits), axis=2, bitorder="little")
    return torch.from_numpy(codes.squeeze(2))


def _prove(stored: Tensors, coded: dict[str, Packed], version: int) -> Gate:
    """The gate of the format: what was written is unpacked and compared.

    Raises:
        GateError: It isn't what the module holds.
    """
    for name, weight in coded.items():
        bits, codes = weight.grid.bits, _codes(weight)
        qweight, scales, groups = (stored.get(f"{name}.{part}") for part in ("qweight", "scales", "g_idx"))
        points = _read(stored.get(f"{name}.qzeros"), bits) + (2 - version)
        same = torch.equal(points.T, _zeros(weight)) and torch.equal(scales.T.float(), weight.scales.float())
        same = same and groups.tolist() == [at // weight.grid.layout(len(groups))[1] for at in range(len(groups))]
        for start in range(0, len(codes), _ROWS):
            rows = slice(start, start + _ROWS)
            same = same and torch.equal(_read(qweight[:, rows].T, bits), codes[rows])
        if not same:
            raise GateError(f"the gptq folder holds other numbers than the model: {name}")
        stored.release()
    reason = f"codes, zero points and scales of {len(coded)} layers read back, bit-equal"
    return Gate(name="gptq values", limit="≤ 0", value=0.0, passed=True, reason=reason)


def _notes(coded: dict[str, Packed], floats: list[str], told: dict[str, Any]) -> list[str]:
    notes = [f"{len(coded)} layers as codes; transformers loads the folder with optimum and gptqmodel installed"]
    if any(rule.startswith("+") for rule in told.get("dynamic", {})):
        notes.append(
            "bits or groups differ by layer (`dynamic` in config.json): GPTQModel loads that, transformers does not"
        )
    if not told["sym"]:
        notes.append("zero points are stored as in the format's second version, gptq_v2; `symmetric` gives the first")
    if floats:
        notes.append(f"the format has codes for Linear layers of blocks alone: {listing(floats)} are stored in float16")
    return notes
