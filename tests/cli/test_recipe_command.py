"""``compresskit recipe``: what ships, and whether a file is good."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_material import Cli

from compresskit.cli.commands import SUBCOMMANDS
from compresskit.recipe import shipped

BAD = "steps:\n  - quantize.gptq: {bit: 4}\n  - quantise.rtn\nseed: -1\n"


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_alone_it_shows_its_help(cli: Cli) -> None:
    found = cli("recipe")
    assert found.code == 2 and "Usage: compresskit recipe" in found.out
    assert all(f"compresskit recipe {word}" in found.out for word in SUBCOMMANDS["recipe"])


@pytest.mark.parametrize("word", SUBCOMMANDS["recipe"])
def test_each_command_has_help_that_begins_with_its_line(cli: Cli, word: str) -> None:
    found = cli("recipe", word, "--help")
    assert found.code == 0 and SUBCOMMANDS["recipe"][word] in " ".join(found.out.split())


def test_a_mistyped_command(cli: Cli) -> None:
    cli("recipe", "chek", "r.yaml", "--allow-code").refused(2, "chek", "'check'")


def test_ls_names_each_with_its_steps(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    found = cli("recipe", "ls")
    assert found.code == 0 and found.err == ""
    for name in shipped.names():
        assert name in found.out
    assert "prune.structured → distill.kd → quantize.int8-static" in found.out


def test_ls_lists_what_lacks_an_extra_here(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compresskit.recipe.reading.find_spec", lambda _name: None)
    assert "nf4 → lora.lora" in cli("recipe", "ls").out
    cli("recipe", "check", "qlora").refused(2, "peft", "compresskit[lora]")


def test_show_prints_the_file(cli: Cli) -> None:
    found = cli("recipe", "show", "tiny")
    assert (found.code, found.out) == (0, shipped.named("tiny").read_text(encoding="utf-8"))
    cli("recipe", "show", "tini").refused(2, "tini", "'tiny'")


def test_cp_copies_and_replaces_nothing(cli: Cli, empty: Path) -> None:
    text = shipped.named("tiny").read_bytes()
    assert cli("recipe", "cp", "tiny").code == 0 and (empty / "tiny.yaml").read_bytes() == text
    (empty / "tiny.yaml").write_text("mine")
    cli("recipe", "cp", "tiny").refused(2, "tiny.yaml", "--force")
    assert (empty / "tiny.yaml").read_text() == "mine"
    assert cli("recipe", "cp", "tiny", "--force").code == 0 and (empty / "tiny.yaml").read_bytes() == text
    (empty / "sub").mkdir()
    assert cli("recipe", "cp", "tiny", "sub").code == 0 and (empty / "sub" / "tiny.yaml").read_bytes() == text
    assert cli("recipe", "cp", "tiny", "sub/own.yaml").code == 0 and (empty / "sub" / "own.yaml").read_bytes() == text
    assert sorted(p.name for p in empty.iterdir()) == ["sub", "tiny.yaml"]
    cli("recipe", "cp", "tini", "x.yaml").refused(2, "tini")


def test_check_of_a_good_recipe(cli: Cli, empty: Path) -> None:
    (empty / "r.yaml").write_text("steps:\n- quantize.gptq: {bits: 4}\nmatrix: {steps.0.bits: [3, 4]}\n")
    found = cli("recipe", "check", "r.yaml")
    assert found.code == 0 and found.err == ""
    assert found.out.startswith("valid: r.yaml, 1 step, 2 points")
    assert "to be given on the command line: model, data, eval-data" in found.out
    assert cli("recipe", "check", "r.yaml", "--quiet").out == ""


def test_check_tells_each_problem_on_a_line(cli: Cli, empty: Path) -> None:
    (empty / "r.yaml").write_text(BAD)
    found = cli("recipe", "check", "r.yaml")
    assert (found.code, found.out) == (2, "")
    assert found.err.splitlines() == [
        "error: r.yaml:2: steps[0].quantize.gptq: 'bit' is not an option; did you mean 'bits'?",
        "error: r.yaml:3: steps[1]: there is no method 'quantise.rtn'; did you mean 'quantize.rtn'?",
        "error: r.yaml:4: seed: expected at least 0, found -1",
    ]


def test_a_large_matrix_is_counted_not_drawn(cli: Cli, empty: Path) -> None:
    (empty / "r.yaml").write_text("steps: [quantize.rtn]\nmatrix: {seed: [0, 1, 2, 3, 4, 5]}\n")
    out = cli("recipe", "check", "r.yaml").out
    assert "seed=3" in out and "seed=4" not in out and "and 2 more points" in out


def test_check_with_sets_and_code(cli: Cli, empty: Path) -> None:
    (empty / "r.yaml").write_text("arch: net.py:Net\nsteps: [quantize.gptq]\n")
    (empty / "net.py").write_text("raise SystemExit('this ran')\n")
    cli("recipe", "check", "r.yaml").refused(2, "r.yaml:1", "--allow-code")
    assert cli("recipe", "check", "r.yaml", "--allow-code").code == 0
    cli("recipe", "check", "r.yaml", "--allow-code", "--set", "steps.0.bits=7").refused(
        2, "--set steps.0.bits=7", "found 7"
    )
    assert "bits: 8" in cli("recipe", "check", "r.yaml", "--allow-code", "--set", "steps.0.bits=8").out


def test_check_escapes_what_a_file_says(cli: Cli, empty: Path) -> None:
    (empty / "r.yaml").write_text('"\\e[31m": 1\nsteps: [quantize.rtn]\n')
    cli("recipe", "check", "r.yaml").refused(2, "\\x1b[31m")


def test_schema_is_json(cli: Cli) -> None:
    found = cli("recipe", "schema")
    assert found.code == 0 and "quantize.gptq" in json.loads(found.out)["$defs"]
