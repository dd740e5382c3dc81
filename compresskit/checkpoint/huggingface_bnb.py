"""What config.json must say for transformers to read weights that lie in bitsandbytes' format."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from compresskit.checkpoint.atomic import writing
from compresskit.checkpoint.huggingface import CONFIG

Bits = Literal[4, 8]
OWN_FORMAT = {"packed_by": "compresskit", "use": "model.onnx beside this file, or compresskit.load"}
"""What stands for a quantization that transformers doesn't know: without ``quant_method`` it refuses the folder."""


def copy_config(source: Path, target: Path, told: dict[str, Any] | None, changes: Mapping[str, Any] = {}) -> None:
    """Copy a folder's config.json with another ``quantization_config``, or with none.

    Args:
        source: Folder with the original config.json, which was read before and is sound.
        target: Folder to write into.
        told: What :func:`quantization_config` gave.
        changes: Other entries: the sizes of a pruned model.

    Raises:
        MachineError: The disk is full or read-only.
    """
    config = json.loads((source / CONFIG).read_text(encoding="utf-8"))
    config.pop("torch_dtype", None)
    config.pop("quantization_config", None)
    config["dtype"] = "float32"  # what isn't quantized is stored so
    config.update(changes)
    if told is not None:
        config["quantization_config"] = told
    with writing(target / CONFIG):
        (target / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def quantization_config(bits: Bits, threshold: float, skip: Iterable[str]) -> dict[str, Any]:
    """What ``transformers.BitsAndBytesConfig`` would write.

    Args:
        bits: 4 (NF4) or 8 (LLM.int8()).
        threshold: See :data:`compresskit.ops.quantize.bnb.THRESHOLD`.
        skip: What :func:`skip_patterns` gave.
    """
    return {
        "_load_in_4bit": bits == 4,
        "_load_in_8bit": bits == 8,
        "bnb_4bit_compute_dtype": "float32",
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": False,
        "llm_int8_enable_fp32_cpu_offload": False,
        "llm_int8_has_fp16_weight": False,
        "llm_int8_skip_modules": list(skip),
        "llm_int8_threshold": threshold,
        "load_in_4bit": bits == 4,
        "load_in_8bit": bits == 8,
        "quant_method": "bitsandbytes",
    }


def skip_patterns(linear: Collection[str], quantized: Collection[str], prefix: str) -> list[str]:
    """The linear layers that transformers must leave as they are.

    It compares a pattern with a name's beginning, as a regular expression, and with its end. ``AutoModel`` drops the
    prefix of the base model, so a pattern must hold with and without it, and must not catch a quantized layer.

    Args:
        linear: Names of all layers that transformers would convert.
        quantized: Names of those that were quantized.
        prefix: ``base_model_prefix`` of the model.
    """
    patterns = []
    for name in linear:
        if name in quantized:
            continue
        bare = name.removeprefix(f"{prefix}.") if prefix else name
        kept = [q for q in quantized if _matches(bare, q) or _matches(bare, q.removeprefix(f"{prefix}."))]
        patterns.append(bare if not kept else f"^(?:{re.escape(prefix)}\\.)?{re.escape(bare)}$")
    return sorted(set(patterns))


def _matches(pattern: str, name: str) -> bool:
    return re.match(rf"(?:{pattern})(?:(?<=\.)|(?=\.|$))", name) is not None or name.endswith(pattern)
