"""A kind of stage that an installed package brings: its command, its help, its recipe key, its place, its bundle."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_material import ARCH, SHAPE, Outcome
from warm import Warm

from compresskit import kinds
from compresskit.cli.commands import COMMANDS
from compresskit.report import read_report

PLUGIN = Path(__file__).parent / "plugin_relu"
SUMMARY = "Put cheaper layers in the place of others."
DATA = ("--eval-data", "d.npz", "--max-size", "1MB", "--no-bench", "--quiet")
"""A Clip and its two limits take more bytes than a Relu: by default the gate would say so."""
RECIPE = """\
model: m.pt
arch: net.py:Net
input-shape: [1, 32]
eval-data: d.npz
steps:
  - swap.relu: {cap: 40}
  - quantize.rtn: {bits: 8}
"""


# What an environment changes while Python starts has no effect in a fork: the package is put there by hand.
FORKED = """
import sys
sys.path.insert(0, sys.argv.pop(1))
from compresskit.cli.main import main
main()
"""
ENVIRONMENT = {"COLUMNS": "200"}
Fork = Callable[..., Outcome]


def compresskit(*arguments: str, plugin: Path = PLUGIN) -> Outcome:
    """The command line in an interpreter that finds the package, as an installed one."""
    environment = os.environ | ENVIRONMENT | {"PYTHONPATH": str(plugin)}
    done = subprocess.run(
        [sys.executable, "-m", "compresskit", *arguments], capture_output=True, text=True, check=False, env=environment
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def forked(warm_torch: Warm) -> Fork:
    """As ``compresskit``, for commands that need torch: from an interpreter that has imported it."""

    def run(*arguments: str, plugin: Path = PLUGIN) -> Outcome:
        done = warm_torch.run(("-c", FORKED, str(plugin), *arguments), env=os.environ | ENVIRONMENT)
        return Outcome(done.returncode, done.stdout, done.stderr)

    return run


def broken(folder: Path, *changes: tuple[str, str]) -> Path:
    """A copy of the package with other text in it."""
    place = folder / "broken"
    shutil.copytree(PLUGIN, place, ignore=shutil.ignore_patterns("__pycache__"))
    code = (place / "swap_relu.py").read_text(encoding="utf-8")
    for old, new in changes:
        assert old in code
        code = code.replace(old, new)
    (place / "swap_relu.py").write_text(code, encoding="utf-8")
    return place


def test_the_top_help_has_its_line_among_the_stages() -> None:
    lines = [line.strip(" │") for line in compresskit("--help").out.splitlines()]
    names = [line.split()[0] for line in lines if line]
    assert any(line.startswith("swap") and line.endswith(SUMMARY) for line in lines)
    assert names.index("lora") < names.index("swap") < names.index("run")


def test_a_kind_named_like_a_command_is_refused_and_the_command_stays(here: Path, tmp_path: Path) -> None:
    place = broken(tmp_path, ('name="swap"', 'name="bench"'))
    (entries,) = place.glob("*.dist-info/entry_points.txt")
    entries.write_text(entries.read_text(encoding="utf-8").replace("swap.relu", "bench.relu"), encoding="utf-8")
    said = "the plugin bench.relu (swap_relu:SwapRelu) can't be used"
    shown = " ".join(compresskit("--help", plugin=place).out.replace("│", " ").split())
    assert COMMANDS["bench"] in shown and said in shown and "can't be called bench, which is a command" in shown
    assert compresskit("bench", "--help", plugin=place).out.split("Usage: ")[1].startswith("compresskit bench")
    Path("r.yaml").write_text("model: m.pt\nsteps:\n  - bench.relu: {cap: 40}\n", encoding="utf-8")
    found = compresskit("recipe", "check", "r.yaml", plugin=place)
    assert found.code == 2 and "which is a command" in found.err


def test_the_names_that_a_kind_cannot_have_are_those_of_the_commands() -> None:
    assert set(kinds.COMMANDS) == set(COMMANDS)


def test_its_own_help_has_its_options() -> None:
    found = compresskit("swap", "--help")
    assert found.code == 0 and SUMMARY in found.out and "Put a capped ReLU in the place of each ReLU." in found.out
    assert "--cap" in found.out and "Largest output of a layer." in found.out and "--max-drop" in found.out


def test_its_command_gives_a_bundle_that_is_read_again(here: Path, forked: Fork) -> None:
    done = forked("swap", "m.pt", *ARCH, *SHAPE, *DATA, "--cap", "0.5", "--max-drop", "100pt", "-o", "out")
    assert done.code == 0, done
    report = json.loads((here / "out" / "report.json").read_text(encoding="utf-8"))
    assert report["coverage"]["done"] == {"act": "Hardtanh from 0 to 0.5"}
    assert "1 ReLU swapped" in report["notes"] and report["history"][0]["name"] == "swap.relu"
    original, result = report["models"]
    assert original["parameters"] == result["parameters"] and result["macs"] == original["macs"]
    assert forked("inspect", "out", *ARCH, plugin=here).code == 2, "without the package it can't be rebuilt"
    again = forked("quantize", "out", *ARCH, "--bits", "8", *DATA, "--max-drop", "100pt", "-o", "smaller")
    assert again.code == 0, again
    second = read_report(here / "smaller" / "report.json")
    assert [step["name"] for step in second.history] == ["swap.relu", "quantize.rtn"]
    (plain, capped), (reloaded, _) = (
        [found.values("accuracy")[entry.name].value for entry in found.models]
        for found in (read_report(here / "out" / "report.json"), second)
    )
    assert reloaded == capped != plain, "what was read again answers as what was written, not as the original"


def test_its_output_is_named_after_the_method(here: Path) -> None:
    assert compresskit("swap", "m.pt", *ARCH, *SHAPE, *DATA, "--cap", "40").code == 0
    assert (here / "m-relu" / "model.onnx").is_file()


def test_its_options_are_checked(here: Path, forked: Fork) -> None:
    forked("swap", "m.pt", *ARCH, *SHAPE, "--cap", "-1").refused(2, "--cap -1", "greater than 0")
    forked("swap", "m.pt", *ARCH, *SHAPE, "--method", "gelu").refused(2, "choose relu")
    forked("swa", "m.pt").refused(2, "did you mean 'swap'?")


def test_it_is_a_step_of_recipes(here: Path, forked: Fork) -> None:
    (here / "r.yaml").write_text(RECIPE, encoding="utf-8")
    assert forked("recipe", "check", "r.yaml", "--allow-code").code == 0
    done = forked("run", "r.yaml", *ARCH, "--no-bench", "--cache", "steps", "--quiet", "-o", "out")
    assert done.code == 0, done
    report = json.loads((here / "out" / "report.json").read_text(encoding="utf-8"))
    assert [(step["name"], step["state"]) for step in report["steps"]] == [
        ("swap.relu", "done"), ("quantize.rtn", "done"),
    ]  # fmt: skip
    schema = json.loads(forked("recipe", "schema").out)
    assert schema["$defs"]["swap.relu"]["properties"]["cap"]["default"] == 6.0


def test_it_has_its_place_in_the_order(here: Path, forked: Fork) -> None:
    steps = "steps:\n  - quantize.rtn: {bits: 8}\n  - swap.relu\n"
    (here / "r.yaml").write_text(f"model: m.pt\ninput-shape: [1, 32]\n{steps}", encoding="utf-8")
    forked("run", "r.yaml", *ARCH).refused(2, "swap.relu comes after quantize")
    forked("swap", "m.onnx").refused(2, "swap.relu can't work on an ONNX graph")


@pytest.mark.parametrize(
    "change, told",
    [
        (('    method: ClassVar[str] = "relu"\n', ""), "declares no method"),
        (('method: ClassVar[str] = "relu"', 'method: ClassVar[str] = "gelu"'), "the class is of swap.gelu"),
        (("        before_codes=True,\n", ""), "before_codes"),
        (("def replay(", "def rebuild("), "doesn't declare replay()"),
        (("import annotations\n", "import annotations\nimport no_such_module\n"), "No module named 'no_such_module'"),
        (('name="swap"', 'name="quantize"'), "there is a kind quantize already"),
    ],
)  # fmt: skip
def test_a_package_that_forgets_something_is_told(tmp_path: Path, change: tuple[str, str], told: str) -> None:
    """The help still comes; what is wrong stands in the line of the command."""
    place = broken(tmp_path, change)
    if "quantize" in told:
        points = place / "swap_relu-1.0.dist-info" / "entry_points.txt"
        points.write_text(points.read_text().replace("swap.relu ", "quantize.relu "))
        compresskit("quantize", "m.pt", "--method", "relu", plugin=place).refused(4, told)
        return
    found = compresskit("--help", plugin=place)
    assert found.code == 0 and "the plugin swap.relu" in found.out
    compresskit("swap", "m.pt", plugin=place).refused(4, "the plugin swap.relu", told)
