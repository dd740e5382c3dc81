"""What the small files of a Hugging Face or sentence-transformers folder say of a model's use."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from compresskit.checkpoint.files import contained, parse_json, regular_file
from compresskit.errors import InputError
from compresskit.facts import read_facts
from compresskit.usage import Usage

_MOST = 1 << 24
_CLASSIFIERS = ("ForSequenceClassification", "ForImageClassification")
_SCORES = {"regression": "none", "multi_label_classification": "sigmoid", "single_label_classification": "softmax"}
_MODES = {
    "pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max", "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens", "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}  # fmt: skip
"""Older names of the modes, in the order in which their vectors are joined."""


def usage_of(folder: Path) -> Usage:
    """The usage that a folder's files tell; what they don't tell, or tell in no known form, is left open.

    Args:
        folder: Of a Hugging Face model, or a bundle made of one.
    """
    config, modules = _read(folder, "config.json"), _read(folder, "modules.json")
    found: dict[str, Any] = {}
    if isinstance(config, dict) and str(next(iter(config.get("architectures") or ()), "")).endswith(_CLASSIFIERS):
        found |= _classes(config)
    if isinstance(modules, list):
        found |= _sentences(folder, modules)
    if isinstance(pixels := _read(folder, "preprocessor_config.json"), dict):
        found["pixels"] = _pixels(pixels)
    usage = Usage()
    for name, value in found.items():  # one that can't be used leaves the others
        try:
            usage = replace(usage, **{name: getattr(read_facts(Usage, {name: value}), name)})
        except InputError:
            continue
    return usage


def _read(folder: Path, name: str) -> Any:
    """The JSON of a file; None where there is none that can be used."""
    try:
        path = contained(folder, name, str(folder))
        return parse_json(path.read_bytes()) if regular_file(path) <= _MOST else None
    except (InputError, OSError, ValueError):
        return None


def _classes(config: dict[str, Any]) -> dict[str, Any]:
    """Names and scores of a classifier, by the rules of the transformers library."""
    named = config.get("id2label")
    labels = [named.get(str(index)) for index in range(len(named))] if isinstance(named, dict) else []
    count = len(labels) or config.get("num_labels", 2)
    scores = _SCORES.get(str(config.get("problem_type")), "sigmoid" if count == 1 else "softmax")
    return {"scores": scores, "labels": labels}


def _sentences(folder: Path, modules: list[Any]) -> dict[str, Any]:
    """How sentence-transformers makes one vector of a text; nothing where it takes modules that aren't known here."""
    kinds = [str(m.get("type")).rpartition(".")[2] for m in modules if isinstance(m, dict)]
    if len(kinds) != len(modules) or kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        return {}
    pooling = _read(folder, f"{modules[1].get('path')}/config.json")
    if not isinstance(pooling, dict) or pooling.get("include_prompt") is False:
        return {}
    modes = pooling.get("pooling_mode") or [mode for key, mode in _MODES.items() if pooling.get(key)] or "mean"
    found: dict[str, Any] = {"pooling": [modes] if isinstance(modes, str) else modes, "unit": len(kinds) == 3}
    settings = _read(folder, "sentence_bert_config.json")
    if isinstance(settings, dict):
        if settings.get("max_seq_length"):
            found["tokens"] = settings["max_seq_length"]
        found["lower"] = settings.get("do_lower_case", False)
    about = _read(folder, "config_sentence_transformers.json")
    if isinstance(about, dict) and isinstance(prompts := about.get("prompts"), dict):
        found["prompt"] = prompts.get(about.get("default_prompt_name"), "")
    return found


def _pixels(data: dict[str, Any]) -> dict[str, Any]:
    """The settings of transformers' image processors that scale, cut and normalize."""
    found: dict[str, Any] = {"scale": data.get("rescale_factor", 1 / 255) if data.get("do_rescale", True) else 1.0}
    if data.get("do_normalize", True) and data.get("image_mean") and data.get("image_std"):
        found |= {"mean": data["image_mean"], "std": data["image_std"]}
    if data.get("do_resize", True):
        found |= {"resize": _sides(data.get("size")), "filter": data.get("resample", 2)}
    if data.get("do_center_crop"):
        found["crop"] = _sides(data.get("crop_size"))
    return found


def _sides(size: Any) -> list[Any]:
    if isinstance(size, int):
        return [size, size]
    if isinstance(size, dict) and "shortest_edge" in size:
        return [size["shortest_edge"]]
    return [size["height"], size["width"]] if isinstance(size, dict) and {"height", "width"} <= size.keys() else []
