"""An adapter on disk, in PEFT's format: ``adapter_config.json`` and ``adapter_model.safetensors``.

Files are read as data: the config's values are checked one by one, tensors come through this project's own reader, and
neither PEFT nor pickle is needed. What a config asks for beyond the adapters known here is refused, not dropped. The
hash of the base that an adapter was trained on stands in the metadata of its tensors, where PEFT ignores it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compresskit.checkpoint.atomic import writing
from compresskit.checkpoint.files import contained, head, read_json
from compresskit.checkpoint.safetensors_writer import entry, write_safetensors
from compresskit.checkpoint.tensors import Tensors, open_tensors
from compresskit.errors import InputError, PathError, listing
from compresskit.ops.lora.adapter import Term, adaptable, check_shape, sizes, turns
from compresskit.ops.packed.modules import PackedLayer

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
FOLDER = "adapter"
PREFIX = "base_model.model."
BOTTLENECK = "BOTTLENECK"
_BASE = "compresskit_base_sha256"
_MAX_CONFIG = 1 << 22
_KINDS = ("LORA", "VERA", "IA3", "PROMPT_TUNING", BOTTLENECK)
_PLAIN = {
    "peft_type", "task_type", "base_model_name_or_path", "inference_mode", "revision", "auto_mapping", "peft_version",
    "target_modules", "exclude_modules", "init_lora_weights", "init_weights", "init_ia3_weights", "r", "lora_alpha",
    "lora_dropout", "vera_dropout", "d_initial", "projection_prng_key", "save_projection", "use_rslora", "use_dora",
    "rank_pattern", "alpha_pattern", "fan_in_fan_out", "bias", "layers_to_transform", "layers_pattern", "megatron_core",
    "qalora_group_size", "ensure_weight_tying", "feedforward_modules", "num_virtual_tokens", "token_dim", "num_layers",
    "num_attention_heads", "num_transformer_submodules", "prompt_tuning_init", "runtime_config", "loftq_config",
    "tokenizer_name_or_path", "tokenizer_kwargs", "prompt_tuning_init_text",
}  # fmt: skip
"""Keys that are read here, or that change nothing of a trained adapter. Any other must be empty."""
_CHANGE_THE_BASE = ("pissa", "olora", "loftq", "corda", "lora_ga")


@dataclass(frozen=True)
class AdapterFile:
    """An adapter as it is stored.

    Attributes:
        config: The checked ``adapter_config.json``.
        tensors: By name, without PEFT's prefix.
        base: SHA-256 of the base that it was trained on; None where the file doesn't say (PEFT's own).
        source: Its folder.
    """

    config: dict[str, Any]
    tensors: Mapping[str, Tensor]
    base: str | None
    source: Path

    @property
    def kind(self) -> str:
        """``LORA``, ``VERA``, ``IA3``, ``PROMPT_TUNING`` or ``BOTTLENECK``."""
        return str(self.config["peft_type"])

    def layers(self) -> list[str]:
        """The layers that it adapts, in the file's order."""
        return layers_of(self.tensors)

    def numel(self) -> int:
        """Numbers in its tensors."""
        return sum(tensor.numel() for tensor in self.tensors.values())


_LEAVES = (
    ".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector", ".vera_lambda_b", ".vera_lambda_d", ".ia3_l",
    ".bottleneck_down", ".bottleneck_up",
)  # fmt: skip
_WHOLE = ("vera_A", "vera_B", "prompt_embeddings", f"{PREFIX}vera_A", f"{PREFIX}vera_B")


def layers_of(tensors: Mapping[str, Tensor]) -> list[str]:
    """The layers that stored tensors belong to."""
    found = {name[: -len(leaf)]: None for name in tensors for leaf in _LEAVES if name.endswith(leaf)}
    return list(found)


def is_adapter(folder: Path) -> bool:
    """True for a folder with an ``adapter_config.json``."""
    return (folder / CONFIG).is_file()


def adapter_folder(path: Path) -> Path:
    """The adapter that a path means: its own folder, or the one inside a bundle.

    Raises:
        InputError: There is none.
    """
    for folder in (path, path / FOLDER):
        if is_adapter(folder):
            return folder
    raise InputError(f"{path} holds no adapter: {CONFIG} was expected there", "give the folder that lora or PEFT wrote")


def read_adapter(path: Path, *, allow_nonfinite: bool = False) -> AdapterFile:
    """Read an adapter's folder.

    Args:
        path: The folder, or a bundle with one in it.
        allow_nonfinite: Accept NaN and infinities.

    Raises:
        InputError: Missing, damaged, hostile, or of a kind that isn't known here.
    """
    if not path.exists():
        raise PathError(f"{path} does not exist", "check the path")
    folder = adapter_folder(path)
    config = _read_config(folder)
    if not (folder / TENSORS).is_file():
        pickled = (
            " (adapter_model.bin is a pickle, which is not read)" if (folder / "adapter_model.bin").exists() else ""
        )
        raise InputError(f"{folder} has no {TENSORS}{pickled}", "save it with safe_serialization=True")
    file = contained(folder, TENSORS, str(folder))
    if head(file, 9)[8:] != b"{":
        raise InputError(f"{file} is not a safetensors file")
    opened = open_tensors(file, allow_nonfinite=allow_nonfinite)
    tensors = {n.removeprefix(PREFIX).removeprefix("base_model."): opened.get(n) for n in opened}
    _check_tensors(tensors, str(file))
    return AdapterFile(config, {n: t.float() for n, t in tensors.items()}, _base_of(opened), folder)


def _check_tensors(tensors: Mapping[str, Tensor], where: str) -> None:
    """Refuse what no adapter known here has, and factors that can't be multiplied."""
    if strange := [name for name in tensors if not name.endswith(_LEAVES) and name not in _WHOLE]:
        raise InputError(f"{where} holds tensors that no adapter known here has: {listing(strange)}")
    if wrong := [name for name, t in tensors.items() if not t.is_floating_point() or not t.dim() or not t.numel()]:
        raise InputError(f"{where}: {listing(wrong)} should be floating point, and hold something")
    _check_pairs(tensors, where)


def _check_pairs(tensors: Mapping[str, Tensor], where: str) -> None:
    for name, down in tensors.items():
        if not name.endswith(".lora_A.weight"):
            continue
        up = tensors.get(name.removesuffix("lora_A.weight") + "lora_B.weight")
        if up is not None and (down.dim() < 2 or down.dim() != up.dim() or down.shape[0] != up.shape[1]):
            raise InputError(f"{where}: '{name}' is {list(down.shape)}, its other factor {list(up.shape)}", "damaged")


def _base_of(tensors: Tensors) -> str | None:
    found = tensors.metadata.get(_BASE)
    if found is not None and (len(found) != 64 or set(found) - set("0123456789abcdef")):
        raise InputError(f"{tensors.source}: the hash of its base is damaged")
    return found


def _read_config(folder: Path) -> dict[str, Any]:
    path = contained(folder, CONFIG, str(folder))
    data = read_json(path, _MAX_CONFIG)
    check_config(data, str(path))
    return data


def check_config(data: dict[str, Any], where: str) -> None:
    """Refuse a config whose adapter would be read wrongly.

    Raises:
        InputError: An unknown kind, a value that can't be, or something that isn't known here.
    """
    kind = data.get("peft_type")
    if kind not in _KINDS:
        raise InputError(f"{where} is of the kind {kind!r}; known are {', '.join(_KINDS)}")
    unknown = [key for key, value in data.items() if key not in _PLAIN and value not in (None, False, [], {}, 0, "")]
    if unknown:
        raise InputError(f"{where} uses unknown settings: {listing(unknown)}", "merge it with PEFT first")
    if data.get("bias", "none") != "none":
        raise InputError(f"{where}: it trained biases too (bias = {data['bias']!r})", "merge it with PEFT first")
    init = data.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower().startswith(_CHANGE_THE_BASE):
        raise InputError(
            f"{where}: init_lora_weights = '{init}' changed the base that it was trained on",
            "save it with PEFT's path_initial_model_for_weight_conversion",
        )
    if kind == "LORA":
        _check_numbers(data, where)


def _check_numbers(data: dict[str, Any], where: str) -> None:
    if not _number(data.get("lora_alpha")) or not isinstance(data.get("r"), int) or not 0 < data["r"] < 1 << 16:
        raise InputError(
            f"{where}: r and lora_alpha must be numbers, found {data.get('r')!r}, {data.get('lora_alpha')!r}"
        )
    for key in ("rank_pattern", "alpha_pattern"):
        pattern = data.get(key) or {}
        if not isinstance(pattern, dict) or not all(_number(v) for v in pattern.values()):
            raise InputError(f"{where}: {key} must be names with numbers")
        special = [name for name in pattern if set(name) & set("*+?[](){}|^$\\")]
        if special:
            raise InputError(f"{where}: {key} has patterns, names were expected: {listing(special)}")


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e9


def terms_of(config: Mapping[str, Any], tensors: Mapping[str, Tensor], module: nn.Module) -> dict[str, Term]:
    """What stored tensors mean for the layers of a module.

    Args:
        config: Checked; see :func:`check_config`.
        tensors: By PEFT's names, without its prefix.
        module: The base: DoRA needs its weights.

    Raises:
        InputError: Tensors are missing, or don't fit the module.
    """
    make = {"LORA": _lora, "VERA": _vera, "IA3": _ia3, BOTTLENECK: _bottleneck}.get(str(config["peft_type"]))
    if make is None:
        raise InputError(f"an adapter of the kind {config['peft_type']} has no part in a layer")
    try:
        found = {name: make(config, tensors, name, adaptable(module, name)) for name in layers_of(tensors)}
    except KeyError as error:
        raise InputError(f"the adapter is damaged: it has no tensor {error}") from None
    except (RuntimeError, IndexError) as error:
        raise InputError(f"the adapter does not fit this model: {error}", "it was made for another one") from error
    if not found:
        raise InputError("the adapter holds no layer")
    return found


def _lora(config: Mapping[str, Any], tensors: Mapping[str, Tensor], name: str, layer: nn.Module) -> Term:
    down, up = tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]
    check_shape(name, layer, Term(down, up))  # before anything is multiplied
    up = up * scale_of(config, name, down.shape[0])
    magnitude = tensors.get(f"{name}.lora_magnitude_vector")
    if magnitude is None:
        return Term(down, up)
    # "DoRA: Weight-Decomposed Low-Rank Adaptation" (Liu et al., 2024, arXiv:2402.09353): the rows of W + BA are scaled
    # to learnt lengths.
    weight = getattr(layer, "weight").detach().float()  # noqa: B009 - a packed layer's is computed
    weight = (weight.T if turns(layer) else weight).flatten(1)
    lengths = (weight + up.reshape(-1, down.shape[0]) @ down.reshape(down.shape[0], -1)).norm(dim=1)
    gain = magnitude.reshape(-1) / lengths
    bias = getattr(layer, "bias", None)
    return Term(down, up, gain, None if bias is None else bias.detach() * (1 - gain))


def scale_of(config: Mapping[str, Any], name: str, rank: int) -> float:
    """The factor of ``B A`` in a layer: alpha over the rank, or over its root for rsLoRA."""
    alpha = next(
        (v for key, v in (config.get("alpha_pattern") or {}).items() if name == key or name.endswith(f".{key}")),
        config["lora_alpha"],
    )
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _vera(_config: Mapping[str, Any], tensors: Mapping[str, Tensor], name: str, layer: nn.Module) -> Term:
    # "VeRA: Vector-based Random Matrix Adaptation" (Kopiczko et al., 2024, arXiv:2310.11454)
    inputs, outputs = sizes(layer)
    rows, columns = tensors["vera_A"][:, :inputs], tensors["vera_B"][:outputs]
    inner, outer = tensors[f"{name}.vera_lambda_d"], tensors[f"{name}.vera_lambda_b"]
    if inner.shape != rows.shape[:1] or outer.shape != (outputs,):
        raise InputError(f"the adapter of '{name}' has {inner.numel()} and {outer.numel()} numbers: damaged")
    return Term((inner.unsqueeze(1) * rows).contiguous(), (outer.unsqueeze(1) * columns).contiguous())


def _ia3(config: Mapping[str, Any], tensors: Mapping[str, Tensor], name: str, _layer: nn.Module) -> Term:
    # "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning" (Liu et al., 2022)
    values = tensors[f"{name}.ia3_l"].reshape(-1)
    forward = config.get("feedforward_modules") or []
    ahead = isinstance(forward, list) and any(name == key or name.endswith(f".{key}") for key in map(str, forward))
    return Term(before=values) if ahead else Term(gain=values)


def _bottleneck(_config: Mapping[str, Any], tensors: Mapping[str, Tensor], name: str, _layer: nn.Module) -> Term:
    return Term(tensors[f"{name}.bottleneck_down"], tensors[f"{name}.bottleneck_up"], serial=True)


def write_adapter(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], base: str | None) -> None:
    """Write an adapter's folder, the same bytes for the same adapter.

    Args:
        folder: Made where it isn't there.
        config: PEFT's; no absolute paths.
        tensors: By PEFT's names, without its prefix.
        base: See :func:`base_hash`.

    Raises:
        MachineError: The disk is full or read-only.
    """
    entries = [entry(_stored_name(name), tensor.detach().contiguous()) for name, tensor in sorted(tensors.items())]
    text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    with writing(folder / CONFIG):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG).write_text(text, encoding="utf-8")
        write_safetensors(folder / TENSORS, entries, {"format": "pt", **({} if base is None else {_BASE: base})})


def _stored_name(name: str) -> str:
    if name == "prompt_embeddings":
        return name
    return f"base_model.{name}" if name in _WHOLE else f"{PREFIX}{name}"


def base_hash(module: nn.Module) -> str:
    """SHA-256 of a module's state: names, types, shapes and values. The same for any file that it was read from."""
    found = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if not isinstance(tensor, Tensor):
            continue
        found.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def check_base(adapter: AdapterFile, base: str) -> None:
    """Refuse an adapter that was trained on another base.

    Raises:
        InputError: The hashes differ.
    """
    if adapter.base is not None and adapter.base != base:
        raise InputError(
            f"{adapter.source} was trained on another base: hash mismatch, {adapter.base[:12]}… is on record, "
            f"the base given is {base[:12]}…",
            "give the model that the adapter was trained on",
        )


def packed_layers(module: nn.Module) -> list[str]:
    """Names of the layers with quantized weights."""
    return [name for name, layer in module.named_modules() if isinstance(layer, PackedLayer)]


def about(adapter: AdapterFile) -> dict[str, Any]:
    """What an adapter holds, as JSON: kind, numbers, base, and by layer its rank, scale and numbers."""
    layers = {}
    for name in adapter.layers():
        own = {key: tensor for key, tensor in adapter.tensors.items() if key.startswith(f"{name}.")}
        down = own.get(f"{name}.lora_A.weight", own.get(f"{name}.bottleneck_down"))
        rank = len(down) if down is not None else int(own.get(f"{name}.vera_lambda_d", torch.empty(0)).numel())
        scale = scale_of(adapter.config, name, rank) if adapter.kind == "LORA" and rank else None
        numbers = sum(tensor.numel() for tensor in own.values())
        layers[name] = {"rank": rank, "scale": scale, "parameters": numbers}
    variant = "rslora" if adapter.config.get("use_rslora") else "dora" if adapter.config.get("use_dora") else None
    return {
        "kind": adapter.kind.lower() + (f" ({variant})" if variant else ""),
        "parameters": adapter.numel(),
        "base": str(adapter.config.get("base_model_name_or_path") or ""),
        "base_sha256": adapter.base,
        "targets": adapter.config.get("target_modules"),
        "layers": layers,
    }
