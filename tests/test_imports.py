"""What must not be imported: a help text or an error must not wait for torch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from warm import Warm

PACKAGE = Path(__file__).resolve().parent.parent / "compresskit"
TORCH_BACKED = {"ops", "exporter", "train"}
HEAVY = ("torch", "onnx", "onnxruntime", "transformers", "tokenizers", "sklearn", "openvino", "scipy")

# A finder that comes first and fails the import names the module to blame, in one process for all modules.
BLOCKED = f"""
import importlib, json, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY!r}:
            raise ImportError("imports " + name)

sys.meta_path.insert(0, Blocked())
found = {{}}
for name in json.loads(sys.argv[1]):
    try:
        importlib.import_module(name)
    except ImportError as error:
        found[name] = str(error)
print(json.dumps(found))
"""

HELP = """
import sys
from compresskit.cli.main import main
sys.argv = ["compresskit", *sys.argv[1:]]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
heavy = [name for name in ("torch", "onnx", "onnxruntime", "transformers") if name in sys.modules]
sys.exit("imports " + ", ".join(heavy) if heavy else 0)
"""


def light_modules() -> list[str]:
    """Every module of the package but the torch-backed ones, as they lie in the folder."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[0] not in TORCH_BACKED and parts[-1] != "__main__":
            found.append(".".join(("compresskit", *parts)).removesuffix(".__init__"))
    return found


@pytest.fixture(scope="module")
def failures() -> dict[str, str]:
    command = [sys.executable, "-c", BLOCKED, json.dumps(light_modules())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("module", light_modules())
def test_importing_needs_no_engine(module: str, failures: dict[str, str]) -> None:
    assert module not in failures, failures[module]


def test_the_list_of_modules_is_not_empty() -> None:
    assert {"compresskit", "compresskit.report", "compresskit.render.terminal"} <= set(light_modules())


def command_names() -> list[str]:
    if not (PACKAGE / "cli" / "main.py").is_file():
        return []
    from compresskit.cli.main import command_names as names

    return sorted(names())


@pytest.fixture(scope="module")
def light() -> Iterator[Warm]:
    """A warm interpreter with what a help text needs of other packages, and none of the heavy ones."""
    with closing(Warm("pydantic", "rich.console", "typer.rich_utils", "yaml")) as server:
        yield server


@pytest.mark.parametrize("command", [[], *([name] for name in command_names())], ids=lambda c: " ".join(c) or "top")
def test_help_needs_no_engine(light: Warm, command: list[str]) -> None:
    if not command_names():
        pytest.skip("this build has no command line")
    done = light.run(("-c", HELP, *command, "--help"))
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout
