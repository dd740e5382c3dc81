"""The JSON schema of recipe files, made from the options of the methods that are installed."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from compresskit import registry
from compresskit.recipe.addresses import MAX_POINTS
from compresskit.recipe.head import Head
from compresskit.recipe.steps import MAX_STEPS
from compresskit.recipe.wording import as_keys

DRAFT = "https://json-schema.org/draft/2020-12/schema"
_DROP = r"^\s*(\d+\.?\d*|\.\d+)\s*(pt|%)\s*$"
_REFERENCE = "#/$defs/{model}"


def schema() -> dict[str, Any]:
    """The schema; keys have hyphens, though underscores are read too."""
    definitions: dict[str, Any] = {}
    head = _object(Head, definitions)["properties"]
    head["input-shape"]["anyOf"].append({"type": "string", "pattern": r"^\d+([,x]\d+)*$"})
    methods = {}
    for name in registry.rows():
        cls = registry.get(name)
        definitions[name] = {**_object(cls, definitions), "description": _first_line(cls)}
        methods[name] = {"anyOf": [{"$ref": f"#/$defs/{name}"}, {"type": "null"}], "description": _first_line(cls)}
    definitions["step"] = _step(methods)
    return {
        "$schema": DRAFT,
        "title": "CompressKit recipe",
        "description": "A pipeline: the steps change a model in order, and the checks judge the result.",
        "type": "object",
        "additionalProperties": False,
        "anyOf": [{"required": ["steps"]}, {"required": ["include"]}],
        "properties": {
            "description": head.pop("description"),
            "include": {
                "description": "Recipes to include, relative to this file. Keys of this file take precedence.",
                "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
            },
            **head,
            "steps": {
                "description": "Steps, in order.",
                "type": "array",
                "minItems": 1,
                "maxItems": MAX_STEPS,
                "items": {"$ref": "#/$defs/step"},
            },
            "matrix": {
                "description": "Lists of values by dotted key, as steps.0.bits. Every combination is run, at most "
                f"{MAX_POINTS}.",
                "type": "object",
                "additionalProperties": {"type": "array", "minItems": 1},
            },
        },
        "$defs": definitions,
    }


def _step(methods: dict[str, Any]) -> dict[str, Any]:
    limit = {
        "description": "Maximum loss of quality of this step, as 0.5pt or 1%, against the model before it.",
        "type": ["string", "null"],
        "pattern": _DROP,
    }
    rollback = {"description": "Undo the step if it loses more.", "type": "boolean", "default": False}
    return {
        "description": "A method alone, or with its options.",
        "anyOf": [
            {"type": "string", "enum": list(methods)},
            {
                "type": "object",
                "additionalProperties": False,
                "properties": {**methods, "max-drop": limit, "rollback": rollback},
                "oneOf": [{"required": [name]} for name in methods],
            },
        ],
    }


def _object(cls: type[BaseModel], definitions: dict[str, Any]) -> dict[str, Any]:
    """The schema of a class, its keys with hyphens; what it refers to goes into ``definitions``."""
    found = cls.model_json_schema(ref_template=_REFERENCE)
    definitions.update({name: _untitled(part) for name, part in found.pop("$defs", {}).items()})
    properties = {name.replace("_", "-"): _untitled(about) for name, about in found["properties"].items()}
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _untitled(part: dict[str, Any]) -> dict[str, Any]:
    """Without the titles that pydantic makes of names."""
    return {key: value for key, value in part.items() if key != "title"}


def _first_line(cls: type[BaseModel]) -> str:
    return as_keys((cls.__doc__ or "").strip().partition("\n")[0])
