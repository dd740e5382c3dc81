"""The files for CI services: what their scripts run is what the inputs say, and nothing else."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from check_material import report, save

from compresskit.cli.app import build

ROOT = Path(__file__).resolve().parents[2]
BASH = shutil.which("bash")
BLOCK = re.compile(r"^```yaml\n(.*?)^```", re.M | re.S)

needs_bash = pytest.mark.skipif(BASH is None or os.name == "nt", reason="no bash here")


def document(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def workflow() -> dict[str, Any]:
    """The sample; YAML 1.1 reads its key ``on`` as true."""
    found: dict[str, Any] = document("examples/ci/compress.yml")
    return found


def action_step() -> dict[str, Any]:
    (step,) = document("action.yml")["runs"]["steps"]
    return step


@pytest.fixture
def recorder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which ``compresskit`` and ``python`` only write down what they are called with."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("compresskit", "python"):
        note(tools / name, tmp_path)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def note(program: Path, folder: Path, code: int = 0) -> None:
    """Make a program that writes its name and arguments to a file ``calls``, and ends with a code."""
    words = f"import json, sys; print(json.dumps([{program.name!r}, *sys.argv[1:]]), file=open('{folder}/calls', 'a'))"
    program.parent.mkdir(parents=True, exist_ok=True)
    program.write_text(f'#!/bin/sh\n"{sys.executable}" -S -c "{words}" "$@"\nexit {code}\n')
    program.chmod(0o755)


def bash(script: str, env: dict[str, str], timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Run a script as a runner does."""
    Path("script.sh").write_text(script, encoding="utf-8")
    words = [str(BASH), "--noprofile", "--norc", "-e", "-o", "pipefail", "script.sh"]
    return subprocess.run(
        words, env={**os.environ, **env}, capture_output=True, text=True, timeout=timeout, check=False
    )


def calls() -> list[list[str]]:
    return [json.loads(line) for line in Path("calls").read_text().splitlines()] if Path("calls").exists() else []


def environment(given: dict[str, str]) -> dict[str, str]:
    """What a runner makes of the step's ``env`` for some inputs."""
    declared = document("action.yml")["inputs"]
    values = {name: given.get(name, facts.get("default", "")) for name, facts in declared.items()}
    found = {}
    for variable, text in action_step()["env"].items():
        match = re.fullmatch(r"\$\{\{ inputs\.([\w-]+) \}\}", text)
        assert match and match[1] in values, text
        found[variable] = values[match[1]]
    return found


def test_every_input_reaches_the_script_through_the_environment() -> None:
    declared, step = document("action.yml")["inputs"], action_step()
    used = {re.sub(r"\W*inputs\.|\W*$|^\W*", "", text) for text in step["env"].values()}
    assert used == set(declared) >= {"report", "max-drop", "baseline", "allow-other-machine", "install"}
    for name in step["env"]:
        assert f'"${name}"' in step["run"] or f'${name}"' in step["run"], name
    assert all(facts["description"] for facts in declared.values())


@pytest.mark.parametrize(
    "step", [action_step(), *workflow()["jobs"]["compress"]["steps"]], ids=lambda s: s.get("name", "uses")
)
def test_no_expression_stands_in_a_script(step: dict[str, Any]) -> None:
    assert "${{" not in step.get("run", "")


INPUTS = {
    "report only": ({"report": "out"}, ["--format=github", "--", "out"]),
    "limits": (
        {"report": "out", "max-drop": "1%", "max-size": "20MB", "min-speedup": "1.2"},
        ["--format=github", "--max-drop=1%", "--max-size=20MB", "--min-speedup=1.2", "--", "out"]),
    "baseline": (
        {"report": "out", "baseline": "old dir/report.json", "max-growth": "5%", "allow-other-machine": "true"},
        ["--format=github", "--baseline=old dir/report.json", "--max-growth=5%", "--allow-other-machine", "--", "out"]),
    "an option as a report": ({"report": "--help"}, ["--format=github", "--", "--help"]),
    "code": (
        {"report": '$(touch owned); `touch owned` "\'; touch owned #\n touch owned', "max-drop": "1%; touch owned"},
        ["--format=github", "--max-drop=1%; touch owned", "--",
         '$(touch owned); `touch owned` "\'; touch owned #\n touch owned']),
}  # fmt: skip


@needs_bash
@pytest.mark.usefixtures("recorder")
@pytest.mark.parametrize("case", INPUTS)
def test_the_action_hands_its_inputs_on(case: str) -> None:
    given, expected = INPUTS[case]
    done = bash(action_step()["run"], environment(given))
    assert (done.returncode, done.stderr) == (0, "")
    assert calls() == [["compresskit", "check", *expected]]
    assert not Path("owned").exists()


@needs_bash
@pytest.mark.usefixtures("recorder")
def test_the_action_refuses_what_is_neither_true_nor_false() -> None:
    done = bash(action_step()["run"], environment({"report": "out", "allow-other-machine": "yes"}))
    assert done.returncode == 2 and "true or false" in done.stdout and calls() == []


@needs_bash
def test_the_action_says_that_compresskit_is_not_there(recorder: Path) -> None:
    (recorder / "tools" / "compresskit").unlink()
    bare = {"PATH": os.pathsep.join([str(recorder / "tools"), "/usr/bin", "/bin"])}
    done = bash(action_step()["run"], environment({"report": "out"}) | bare)
    assert done.returncode == 4 and "::error::compresskit is not on the PATH" in done.stdout and calls() == []
    done = bash(action_step()["run"], environment({"report": "out", "install": "yes"}) | bare)
    assert done.returncode == 2 and "install must be true or false" in done.stdout and calls() == []


@needs_bash
@pytest.mark.parametrize("scripts", ["bin", "Scripts"])
def test_the_action_installs_its_own_version_on_request(recorder: Path, scripts: str) -> None:
    """Beside the job's environment, from the lock for the edge; what is run is the action's own folder."""
    env = {"RUNNER_TEMP": f"{recorder}/run ner", "GITHUB_ACTION_PATH": str(ROOT)}
    inside = recorder / "run ner" / "compresskit-check" / scripts
    note(inside / "python", recorder)
    done = bash(action_step()["run"], environment({"report": "out", "install": "true"}) | env)
    assert (done.returncode, done.stderr) == (0, "")
    asked, made, packages, checked = calls()
    assert asked[:2] == ["python", "-c"] and "(3, 12)" in asked[2]
    assert made == ["python", "-P", "-m", "venv", str(inside.parent)]
    assert packages[:5] == ["python", "-P", "-m", "pip", "install"] and "--require-hashes" in packages
    assert Path(packages[packages.index("--requirement") + 1]) == ROOT / "requirements" / "edge.txt"
    assert checked == ["python", "-P", "-m", "compresskit", "check", "--format=github", "--", "out"]


@needs_bash
def test_the_action_refuses_to_install_under_an_old_python(recorder: Path) -> None:
    note(recorder / "tools" / "python", recorder, code=1)
    done = bash(action_step()["run"], environment({"report": "out", "install": "true"}))
    assert done.returncode == 4 and "::error::install: true needs Python 3.12 or newer" in done.stdout
    assert not any("venv" in words for words in calls())


@needs_bash
@pytest.mark.parametrize(("size", "code", "said"), [("1MB", 0, "PASS  "), ("1KB", 1, "::error title=failed%3A size::")])
def test_the_action_ends_as_the_check_does(recorder: Path, size: str, code: int, said: str) -> None:
    """With the real program: its exit code, its annotations and the job's summary."""
    (recorder / "tools" / "compresskit").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m compresskit "$@"\n')
    save(report())
    env = {"GITHUB_STEP_SUMMARY": "summary.md", "GITHUB_ACTIONS": "true", "PYTHONPATH": str(ROOT)}
    done = bash(action_step()["run"], environment({"report": "report.json", "max-size": size}) | env)
    assert (done.returncode, done.stderr) == (code, "") and said in done.stdout
    assert Path("summary.md").read_text(encoding="utf-8").startswith("### ")


@needs_bash
@pytest.mark.usefixtures("recorder")
def test_the_sample_runs_commands_that_exist() -> None:
    Path("demo").mkdir()
    for step in workflow()["jobs"]["compress"]["steps"]:
        if "run" in step:
            assert bash(step["run"], step.get("env", {})).returncode == 0
    ours = [words[1:] for words in calls() if words[0] == "compresskit"]
    assert [words[0] for words in ours] == ["demo", "quantize"]
    installs = [words for words in calls() if words[0] == "python"]
    assert all(words[:4] == ["python", "-m", "pip", "install"] for words in installs) and len(installs) == 2
    for name, *words in ours:
        known = {flag for param in build(name, words).params for flag in param.opts}
        assert {word for word in words if word.startswith("--")} <= known


def test_the_sample_uses_the_action_as_it_is() -> None:
    (step,) = [s for s in workflow()["jobs"]["compress"]["steps"] if "compresskit@" in s.get("uses", "")]
    declared = document("action.yml")["inputs"]
    assert set(step["with"]) <= set(declared) and "report" in step["with"]
    assert all(isinstance(value, str) for value in step["with"].values())
    assert workflow()["permissions"] == {"contents": "read"} and True in workflow()


def test_the_sample_needs_nothing_of_this_repository() -> None:
    """It stands in another one, where a path of this one means nothing."""
    for step in workflow()["jobs"]["compress"]["steps"]:
        assert not step.get("uses", "").startswith(".")
        for words in re.findall(r"pip install (.+)", step.get("run", "")):
            named = [word for word in shlex.split(words) if not word.startswith(("-", "https://"))]
            assert all(re.match(r"(torch|compresskit)\b", word) for word in named), words


@needs_bash
@pytest.mark.slow
def test_the_sample_passes_in_an_empty_repository(recorder: Path) -> None:
    """Its shell steps and the action's, with the real program; only the install is taken as done."""
    program = recorder / "tools" / "compresskit"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m compresskit "$@"\n')
    env = {"PYTHONPATH": str(ROOT), "GITHUB_ACTIONS": "true"}
    for step in workflow()["jobs"]["compress"]["steps"]:
        if "run" in step:
            done = bash(step["run"], step.get("env", {}) | env, timeout=250)
        elif "with" in step and "report" in step["with"]:
            done = bash(action_step()["run"], environment(step["with"]) | env)
        elif "upload-artifact" in step["uses"]:
            assert Path(step["with"]["path"]).is_file()
        assert "run" not in step or done.returncode == 0, done.stdout + done.stderr
    assert "PASS  digits.pt" in done.stdout and "::error" not in done.stdout and done.returncode == 0


def test_the_hook_names_a_command_that_exists() -> None:
    (hook,) = document(".pre-commit-hooks.yaml")
    assert hook["entry"].split() == ["compresskit", "check"] and hook["pass_filenames"] is False


@pytest.mark.parametrize(("path", "fires"), [
    ("models/out/report.json", True), ("report.json", True), ("models/out/model.onnx", True), ("model.onnx", True),
    ("out/model.onnx.data", True), ("out/model.safetensors", True), ("out/compresskit.json", True),
    ("xreport.json", False), ("out/mymodel.onnx", False), ("model.onnx/readme.md", False), ("out/model_onnx", False),
    ("out/model.onnx.bak", False), ("report.json.md", False), ("docs/compresskit.jsonl", False),
])  # fmt: skip
def test_the_hook_fires_for_each_part_of_a_bundle(path: str, fires: bool) -> None:
    """A model without its report must not slip through: check itself tells that the two don't belong together."""
    (hook,) = document(".pre-commit-hooks.yaml")
    assert bool(re.search(hook["files"], path)) is fires


def test_yaml_in_the_page_is_sound() -> None:
    page = (ROOT / "docs" / "check.md").read_text(encoding="utf-8")
    action, gitlab, hooks = (yaml.safe_load(body) for body in BLOCK.findall(page))
    assert set(action[-1]["with"]) <= set(document("action.yml")["inputs"])
    assert gitlab["check"]["artifacts"]["reports"]["junit"] == "check.xml"
    assert any("-o check.xml" in line for line in gitlab["check"]["script"])
    assert [hook["id"] for hook in hooks["repos"][0]["hooks"]] == ["compresskit-check"]
