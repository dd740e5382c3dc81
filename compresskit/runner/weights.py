"""The weights of a module on disk, tied ones once."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compresskit.checkpoint.bundle import weights_metadata
from compresskit.checkpoint.safetensors_writer import Entry, write_safetensors
from compresskit.checkpoint.tensors import stored_dtype
from compresskit.errors import InputError
from compresskit.model import Model

if TYPE_CHECKING:
    import torch
    from torch import nn

    from compresskit.ops.packed.grid import Packed


def write_weights(model: Model, path: Path) -> None:
    """Write a module's state as safetensors; one tensor at a time, nothing is copied that is contiguous already.

    Names that share their values are stored under the first of them; the architecture ties them again. Layers whose
    stage says so are stored in bitsandbytes' format, and ``config.json`` beside the file then tells transformers. What
    was read in half precision and is the same still is written so.

    Raises:
        InputError: The state holds something else than tensors.
        MachineError: The disk is full or read-only.
    """
    import torch

    from compresskit.ops.packed.grid import PARTS
    from compresskit.ops.packed.modules import PackedLayer

    entries: list[Entry] = []
    foreign = _bitsandbytes(model, model.module)
    packed = {name for name, layer in model.module.named_modules() if isinstance(layer, PackedLayer)}
    seen: set[tuple[int, tuple[int, ...], tuple[int, ...], torch.dtype]] = set()
    for name, tensor in model.module.state_dict().items():
        if not isinstance(tensor, torch.Tensor):
            raise InputError(
                f"{model.source}: '{name}' in the module's state is not a tensor", "give it up, or store it as a buffer"
            )
        layer, _, leaf = name.rpartition(".")
        if layer in foreign and leaf in PARTS:
            entries += _as_stored(layer, foreign[layer]) if leaf == "codes" else []
            continue
        key = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if tensor.numel() and key in seen:
            continue
        seen.add(key)
        dtype = tensor.dtype if layer in packed and leaf != "bias" else stored_dtype(tensor, model.half)
        entries.append(Entry(name, dtype, tuple(tensor.shape), partial(tensor.to, dtype)))
    write_safetensors(path, entries, weights_metadata(model.card))


def write_config(model: Model, folder: Path) -> None:
    """Write the config.json under which transformers reads the weights of a Hugging Face folder, or refuses them.

    Stages that changed sizes say so in it.

    It reads them where all are in bitsandbytes' format. Weights in a format of our own it would take for missing, and
    put random ones in their place with no more than a warning: a ``quantization_config`` without a method stops it.
    """
    if isinstance(model.body, Path) or model.card.arch.kind != "transformers":
        return
    from compresskit.checkpoint.huggingface_bnb import OWN_FORMAT, copy_config

    foreign, changes = _bitsandbytes(model, model.body), model.card.config_changes
    told = OWN_FORMAT if _own_format(model.body, foreign) else _quantization_config(model.body, foreign)
    if told or foreign or changes:
        copy_config(model.source, folder, told, changes)


def _own_format(module: nn.Module, foreign: dict[str, Packed]) -> bool:
    """True where transformers can't read all weights: packed ones of our own, or adapters that it would leave out."""
    from compresskit.ops.lora.adapter import adapted
    from compresskit.ops.lora.prompt import is_prompted
    from compresskit.ops.packed.modules import PackedLayer, PackedLinear

    layers = list(module.modules())
    repaired = any(isinstance(layer, PackedLinear) and layer.repair_in is not None for layer in layers)
    packed = not foreign and any(isinstance(layer, PackedLayer) for layer in layers)
    return repaired or packed or bool(adapted(module)) or is_prompted(module)


def _quantization_config(module: nn.Module, foreign: dict[str, Packed]) -> dict[str, Any] | None:
    """What tells transformers of weights in bitsandbytes' format; None where it can't be told, or there are none."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    from compresskit.checkpoint.huggingface_bnb import quantization_config, skip_patterns
    from compresskit.ops.quantize.bnb import THRESHOLD, readable

    if not foreign or not readable(module, foreign):
        return None
    linear = [n for n, m in module.named_modules() if type(m) in (nn.Linear, Conv1D)]
    skip = skip_patterns(linear, foreign, str(getattr(module, "base_model_prefix", "")))
    return quantization_config(4 if next(iter(foreign.values())).grid.bits == 4 else 8, THRESHOLD, skip)


def _bitsandbytes(model: Model, module: nn.Module) -> dict[str, Packed]:
    """The layers that a stage wants to be stored in bitsandbytes' format."""
    from compresskit.ops.packed.modules import PackedLinear

    names = {
        name
        for applied in model.card.history
        if applied.facts.get("stored") == "bitsandbytes"
        for name in applied.facts["layers"]
    }
    return {n: layer.packed for n, layer in module.named_modules() if n in names and isinstance(layer, PackedLinear)}


def _as_stored(layer: str, packed: Packed) -> Iterator[Entry]:
    from compresskit.ops.quantize.bnb import stored

    for name, tensor in stored(packed.to("meta")).items():
        yield Entry(f"{layer}.{name}", tensor.dtype, tuple(tensor.shape), partial(_stored, packed, name))


def _stored(packed: Packed, name: str) -> torch.Tensor:
    from compresskit.ops.quantize.bnb import stored

    return stored(packed)[name]
