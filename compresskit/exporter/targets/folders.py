"""Hugging Face folders with codes of Linear layers: what the formats that transformers loads have in common."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from compresskit.checkpoint.safetensors_writer import Entry, write_safetensors
from compresskit.checkpoint.tensors import stored_dtype
from compresskit.errors import InputError
from compresskit.exporter.targets.target import Target, copy_extras, linear_shape
from compresskit.exporter.targets.weights import Weight, check_shapes, weights_of
from compresskit.model import Model
from compresskit.ops.packed.grid import Packed, dequantize
from compresskit.ops.packed.layout import Grid

FILE = "model.safetensors"
_FLOATS = (nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class LinearFolder(Target):
    """A folder with config.json, one model.safetensors, and the tokenizer.

    Linear layers have codes, in groups that divide their columns; other packed layers are stored in float16.
    """

    marker: ClassVar[str | None] = "config.json"

    def reason_against(self, grid: Grid) -> str | None:
        """See :class:`Target`."""
        if not grid.format.equal_steps:
            return f"the format has no {grid.dtype}; quantize with equal steps"
        return None

    def reason_against_shape(self, name: str, shape: tuple[int, ...], grid: Grid) -> str | None:
        """See :class:`Target`."""
        if grid.group_size and shape[1] % grid.group_size:
            return f"its {shape[1]} columns don't fill groups; give a `group_size` that divides them, or `exclude` it"
        return None

    def split(self, model: Model) -> tuple[dict[str, Weight], dict[str, Packed], list[str]]:
        """A module's weights, which of them are written as codes, by layer, and the packed ones written as floats.

        Raises:
            InputError: The format has no place for a weight.
        """
        found = weights_of(model.module, self.name)
        plain = check_shapes(model.module, found, self.name)
        coded, floats = {}, []
        for name, weight in found.items():
            layer = name.removesuffix(".weight")
            if not isinstance(weight, Packed):
                continue
            if linear_shape(plain, layer) is not None and self.has_codes(layer):
                coded[layer] = weight
            elif isinstance(_layer(plain, layer), (nn.Linear, *_FLOATS)):
                floats.append(name)
            else:  # its floats would be most of the model
                raise InputError(
                    f"{self.name} can't carry {name}: it has codes for Linear, which this is not",
                    "take another format, or quantize with `exclude` for these layers",
                )
        for layer, weight in coded.items():
            if reason := self.reason_against_shape(layer, weight.shape, weight.grid):
                raise InputError(f"{self.name} can't carry {layer}: {reason}")
        return found, coded, floats

    def has_codes(self, name: str) -> bool:
        """Whether the format has codes for the Linear layer of this name; else it is stored in float16."""
        return True


def _layer(plain: nn.Module, name: str) -> nn.Module | None:
    """None for a layer that exists only while a module is quantized, as each expert of a fused tensor."""
    try:
        return plain.get_submodule(name)
    except AttributeError:
        return None


def write_folder(
    model: Model,
    place: Path,
    found: Mapping[str, Weight],
    floats: Iterable[str],
    told: dict[str, Any],
    entries_of: Callable[[str, Packed], Iterator[Entry]],
) -> None:
    """Write the weights, one in memory at a time, the config, and the small files beside them.

    Args:
        model: Where it was read from.
        place: An empty folder.
        found: All weights by name; those that aren't packed are stored as they were read.
        floats: Names of packed ones that are stored in float16.
        told: ``quantization_config``.
        entries_of: The tensors of a packed weight, by its name.
    """
    data = json.loads((model.source / "config.json").read_text(encoding="utf-8")) | model.card.config_changes
    data["quantization_config"] = told
    rounded = set(floats)
    entries: list[Entry] = []
    for name, weight in found.items():
        if not isinstance(weight, Packed):
            dtype = stored_dtype(weight, model.half)
            entries.append(Entry(name, dtype, tuple(weight.shape), partial(weight.to, dtype)))
        elif name in rounded:
            entries.append(Entry(name, torch.float16, weight.shape, partial(dequantize, weight, torch.float16)))
        else:
            entries += entries_of(name, weight)
    write_safetensors(place / FILE, entries, {"format": "pt"})
    copy_extras(model, place)
    (place / "config.json").write_text(json.dumps(data, indent=1), encoding="utf-8")
