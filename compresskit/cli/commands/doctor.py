"""``compresskit doctor``."""

from __future__ import annotations

import importlib.util

import typer

from compresskit.cli import options as shared

_NEEDED = ("onnxruntime", "torch")
_OPTIONAL = {"transformers": "hf", "peft": "lora", "tokenizers": "hf", "accelerate": "hf", "sklearn": "demo"}


def command(json: shared.Json = None) -> None:
    """Show what is installed here, what is missing and how to get it.

    Exit code 4 when a runtime that every journey needs is missing.
    """
    import json as jsonlib

    from compresskit import registry
    from compresskit.bench import target
    from compresskit.bench.machine import environment
    from compresskit.cli.console import check_json, write_json
    from compresskit.runtimes import get, names

    check_json(json)
    missing = {name: get(name).missing() for name in names()}
    extras = {
        name: None if importlib.util.find_spec(name) else f"pip install 'compresskit[{extra}]'"
        for name, extra in _OPTIONAL.items()
    }
    facts = {**environment(), "target": target.here().name}
    found = {"environment": facts, "runtimes": missing, "extras": extras, "methods": list(registry.rows())}
    write_json(jsonlib.dumps(found, indent=2, ensure_ascii=False) + "\n", json)
    if json != "-":
        from compresskit.render.doctor_view import print_doctor

        print_doctor(found)
    if any(missing[name] for name in _NEEDED):
        raise typer.Exit(4)
