"""``compresskit doctor``."""

from __future__ import annotations

import importlib.util
import re
from importlib import metadata

import typer

from compresskit.cli import options as shared

_DEVELOPERS = "dev"  # an extra of no use to users
EDGE = ("numpy", "onnx", "onnxruntime", "pydantic", "pyyaml", "rich", "typer")
"""What inspect, bench, evaluate and compare need to run ONNX files."""


def command(json: shared.Json = None) -> None:
    """Show which engines and extras are installed, and how to install the missing ones.

    Exit code 4: a required package is missing. An installation without torch is an edge installation, which runs ONNX
    files and needs only the packages for that.
    """
    import json as jsonlib

    from compresskit import registry
    from compresskit.benchmark import target
    from compresskit.benchmark.machine import environment
    from compresskit.cli.console import check_json, write_json
    from compresskit.runtimes import get, names

    check_json(json)
    missing = {name: get(name).missing() for name in names()}
    packages, extras = _lacking()
    facts = {**environment(), "target": target.here().name}
    found = {
        "environment": facts, "runtimes": missing, "packages": packages, "extras": extras,
        "methods": list(registry.rows()),
    }  # fmt: skip
    write_json(jsonlib.dumps(found, indent=2, ensure_ascii=False) + "\n", json)
    if json != "-":
        from compresskit.render.doctor_view import print_doctor

        print_doctor(found)
    needed = EDGE if packages.get("torch") else packages
    if missing["onnxruntime"] or any(packages.get(name) for name in needed):
        raise typer.Exit(4)


def _lacking() -> tuple[dict[str, str | None], dict[str, str | None]]:
    """What the install names: each package that it always needs, and each extra; None, or what is missing and how to
    get it. Both empty where CompressKit wasn't installed but copied."""
    try:
        lines = metadata.requires("compresskit") or []
    except metadata.PackageNotFoundError:
        return {}, {}
    packages: dict[str, str | None] = {}
    absent: dict[str, list[str]] = {}
    for line in lines:
        name = re.match(r"[\w.-]+", line)
        extra = re.search(r"extra == ['\"]([\w.-]+)['\"]", line)
        if name is None or (extra and extra[1] == _DEVELOPERS):
            continue
        lack = _missing(name[0])
        if extra is None:
            packages[name[0]] = f"pip install '{line.partition(';')[0].strip()}'" if lack else None
        else:
            absent.setdefault(extra[1], []).extend([name[0]] if lack else [])
    return packages, {
        extra: f"{', '.join(names)}: pip install 'compresskit[{extra}]'" if names else None
        for extra, names in sorted(absent.items())
    }


def _missing(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:  # onnxruntime-gpu has the modules of onnxruntime
        return importlib.util.find_spec(package.replace("-", "_")) is None
    return False
