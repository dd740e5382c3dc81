"""The files that GitHub reads: sound, with no more rights than they use, and calling only what exists."""

from __future__ import annotations

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

from compresskit import __version__
from compresskit.cli.app import build

ROOT = Path(__file__).resolve().parents[2]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
SAMPLE = ROOT / "examples" / "ci" / "compress.yml"
BASH = shutil.which("bash")
CHECKER = shutil.which(
    "check-jsonschema", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
)
SCHEMAS = {
    "github-workflows": [*WORKFLOWS, SAMPLE],
    "github-actions": [ROOT / "action.yml"],
    "github-issue-forms": sorted(p for p in (GITHUB / "ISSUE_TEMPLATE").glob("*.yml") if p.name != "config.yml"),
    "github-issue-config": [GITHUB / "ISSUE_TEMPLATE" / "config.yml"],
    "dependabot": [GITHUB / "dependabot.yml"],
}
by_file = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)


def document(path: Path) -> dict[Any, Any]:
    found: dict[Any, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found


def steps(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Every step with the name of its job; a job that calls another workflow counts as one."""
    return [(name, step) for name, job in document(path)["jobs"].items() for step in job.get("steps", [job])]


def scripts(path: Path) -> list[tuple[str, list[str]]]:
    """Every command in a script as words, with the name of its job; continued lines are joined."""
    found = []
    for name, step in steps(path):
        for line in step.get("run", "").replace("\\\n", " ").splitlines():
            found.append((name, shlex.split(line)))
    return found


def test_what_fires_here_is_meant_for_here() -> None:
    """The sample is for other repositories."""
    assert [path.stem for path in WORKFLOWS] == ["ci", "docs", "release"]
    ci, docs, release = (document(path)[True] for path in WORKFLOWS)
    assert set(ci) == {"push", "pull_request", "workflow_dispatch", "workflow_call"}
    assert docs == {"push": {"branches": ["main"]}} and release == {"push": {"tags": ["v*"]}}


@pytest.mark.skipif(CHECKER is None, reason="needs check-jsonschema")
@pytest.mark.parametrize("schema", SCHEMAS)
def test_files_fit_their_schemas(schema: str) -> None:
    assert SCHEMAS[schema]
    words = [str(CHECKER), "--builtin-schema", f"vendor.{schema}", *map(str, SCHEMAS[schema])]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@by_file
def test_rights_time_and_concurrency_are_limited(path: Path) -> None:
    found = document(path)
    assert found["permissions"] == {"contents": "read"} and "group" in found["concurrency"]
    rights = {name: job["permissions"] for name, job in found["jobs"].items() if "permissions" in job}
    more = {"release": {"id-token": "write"}, "docs": {"id-token": "write", "pages": "write"}}
    assert rights == ({"publish": more[path.stem]} if path.stem in more else {})
    assert all(0 < job["timeout-minutes"] <= 60 for job in found["jobs"].values() if "steps" in job)


def test_a_release_does_not_wait_for_itself() -> None:
    """Two workflows in one group, the one calling the other, end each other."""
    groups = [document(path)["concurrency"]["group"].partition("$")[0] for path in WORKFLOWS]
    assert groups == ["ci-", "docs-", "release-"]


@by_file
def test_actions_are_pinned_to_a_major_version_or_of_this_repository(path: Path) -> None:
    for _, step in steps(path):
        used = step.get("uses", "")
        if used.startswith("./"):
            assert (ROOT / used / "action.yml").is_file() or (ROOT / used).is_file(), used
        elif used:
            assert re.fullmatch(r"[\w-]+/[\w-]+@(v\d+|release/v\d+)", used), used
        if used.startswith("actions/checkout"):
            assert step["with"]["persist-credentials"] is False


@by_file
def test_inputs_of_the_own_action_exist(path: Path) -> None:
    declared = document(ROOT / "action.yml")["inputs"]
    used = [step["with"] for _, step in steps(path) if step.get("uses") == "./"]
    assert all(set(given) <= set(declared) and "report" in given for given in used)
    assert len(used) == (2 if path.stem == "ci" else 0)  # with and without its own install


@by_file
def test_no_expression_stands_in_a_script(path: Path) -> None:
    assert not [step for _, step in steps(path) if "${{" in step.get("run", "")]


@by_file
def test_what_scripts_call_exists(path: Path) -> None:
    """Targets of make, modules that an earlier line installed, our own options, stages of the Dockerfile."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    images = re.findall(r"^FROM .+ AS (\S+)$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.M)
    dev = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("\ndev = [")[2].partition("\n]")[0]
    here = {"pip", "zipfile"}
    installed: dict[str, set[str]] = {}
    for job, words in scripts(path):
        have = installed.setdefault(job, set(here))
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, re.M), words
        elif words[:2] == ["python", "-m"]:
            assert words[2] in have, words
            if words[2:4] == ["pip", "install"]:
                have |= {word for word in words[4:] if word.isalpha()}
                have |= set(re.findall(r'^  "([a-z]+)', dev, re.M)) if ".[dev]" in words else set()
                for file in (words[i + 1] for i, word in enumerate(words) if word in ("--constraint", "--requirement")):
                    assert (ROOT / file).is_file(), words
        elif words[0] == "compresskit" and not words[1].startswith("-"):
            known = {flag for param in build(words[1], words[2:]).params for flag in param.opts}
            assert {word for word in words if word.startswith("--")} <= known, words
        elif words[:2] == ["docker", "build"]:
            assert words[words.index("--target") + 1] in images, words


def test_every_system_and_version_that_is_supported_is_tested() -> None:
    job = document(GITHUB / "workflows" / "ci.yml")["jobs"]["test"]
    matrix = job["strategy"]["matrix"]
    assert {name.partition("-")[0] for name in matrix["os"]} == {"ubuntu", "macos", "windows"}
    (least,) = re.findall(r'^requires-python = ">=(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M)
    assert matrix["python"] == [least, "3.11", "3.12", "3.13"]
    # Windows has no make, and its default shell isn't bash: one line a step, which every shell reads alike.
    assert all("make" not in step.get("run", "") and "\n" not in step.get("run", "") for step in job["steps"])


def test_lint_and_tests_are_all_of_the_check() -> None:
    """The workflow runs the two apart; together they are what a developer runs."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(r"^check: lint\n\t@\$\(MAKE\) test\n", makefile, re.M)
    called = [words for _, words in scripts(GITHUB / "workflows" / "ci.yml")]
    assert ["make", "lint"] in called and any(words[:3] == ["python", "-m", "pytest"] for words in called)


def test_only_what_was_tested_and_built_is_published() -> None:
    jobs = document(GITHUB / "workflows" / "release.yml")["jobs"]
    assert set(jobs["publish"]["needs"]) == {"ci", "build"} and jobs["publish"]["environment"]["name"] == "pypi"
    fetched, published = jobs["publish"]["steps"]
    (kept,) = [s["with"] for s in jobs["build"]["steps"] if s.get("uses", "").startswith("actions/upload-artifact")]
    assert (fetched["with"]["name"], fetched["with"]["path"]) == (kept["name"], "dist/")
    assert published["uses"].startswith("pypa/gh-action-pypi-publish@") and "with" not in published  # no token


@pytest.mark.skipif(BASH is None or os.name == "nt", reason="no bash here")
@pytest.mark.parametrize(("tag", "heading", "said"), [
    (f"v{__version__}", f"## [{__version__}] - 2026-01-02", ""),
    ("v99.0.0", f"## [{__version__}] - 2026-01-02", f"/__init__.py says {__version__}"),
    (__version__, f"## [{__version__}] - 2026-01-02", "the tag is"),
    (f"v{__version__}", f"## [{__version__}] - unreleased", f"no dated section [{__version__}]"),
    (f"v{__version__}", f"## [{__version__.replace('.', 'x')}] - 2026-01-02", "no dated section"),
])  # fmt: skip
def test_a_tag_that_is_not_the_version_is_not_released(tmp_path: Path, tag: str, heading: str, said: str) -> None:
    (step,) = [s for _, s in steps(GITHUB / "workflows" / "release.yml") if "tag" in s.get("name", "")]
    (tmp_path / "compresskit").mkdir()
    shutil.copy(ROOT / "compresskit" / "__init__.py", tmp_path / "compresskit")
    (tmp_path / "CHANGELOG.md").write_text(f"# Changelog\n\n{heading}\n", encoding="utf-8")
    tools = tmp_path / "tools"
    tools.mkdir()
    # Without site-packages, as on a runner that has installed nothing.
    (tools / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    (tools / "python").chmod(0o755)
    env = {**os.environ, "GITHUB_REF_NAME": tag, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        [str(BASH), "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", step["run"]],
        cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == bool(said), done.stderr
    assert said in done.stdout and bool(done.stdout) is bool(said)


def test_the_bug_forms_ask_for_the_machine() -> None:
    for name in ("bug", "verdict"):
        fields = {item.get("id"): item for item in document(GITHUB / "ISSUE_TEMPLATE" / f"{name}.yml")["body"]}
        assert "compresskit doctor --plain" in fields["doctor"]["attributes"]["label"]
        assert fields["doctor"]["validations"]["required"] is True
    assert "--plain" in {flag for param in build("doctor", []).params for flag in param.opts}


def test_dependencies_are_watched_where_they_are() -> None:
    for update in document(GITHUB / "dependabot.yml")["updates"]:
        folder = ROOT / update["directory"].lstrip("/")
        wanted = {
            "pip": "pyproject.toml",
            "uv": "edge.in",
            "docker": "Dockerfile",
            "github-actions": ".github/workflows",
        }
        assert (folder / wanted[update["package-ecosystem"]]).exists()
