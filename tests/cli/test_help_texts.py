"""Every command and every option is described, and an option means the same everywhere."""

from __future__ import annotations

import re
from typing import Any

import pytest
from cli_material import Cli

from compresskit import registry
from compresskit.cli.app import build, summaries
from compresskit.cli.guides import GUIDES
from compresskit.cli.main import command_names
from compresskit.exporter import targets

VARIANTS = [
    *((name, ()) for name in command_names() if name not in registry.kind_names()),
    *((stage, ("--method", method)) for stage in registry.kind_names() for method in registry.methods(stage)),
]
METHODS = {stage: [("--method", method) for method in registry.methods(stage)] for stage in registry.kind_names()}
MEANS_TWO_THINGS = {
    "-o": "a folder, or the file of export",
    "--output": "the same",
    "--data": "see DESIGN: calibrate, or measure",
}


def options(name: str, arguments: tuple[str, ...]) -> list[Any]:
    return [p for p in build(name, list(arguments)).params if p.param_type_name == "option"]


def ids(variant: tuple[str, tuple[str, ...]]) -> str:
    return " ".join((variant[0], *variant[1]))


@pytest.mark.parametrize("name", command_names())
def test_the_help_begins_with_the_line_of_the_list(cli: Cli, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    found = cli(name, "--help")
    lines = [line.strip() for line in found.out.splitlines() if line.strip()]
    assert found.code == 0 and lines[0].startswith(f"Usage: compresskit {name}")
    assert lines[1] == summaries()[name]
    assert re.search(rf"{name} +{re.escape(summaries()[name])}", cli("--help").out)


@pytest.mark.parametrize("variant", VARIANTS, ids=ids)
def test_every_option_is_described(variant: tuple[str, tuple[str, ...]]) -> None:
    for option in options(*variant):
        assert option.help and len(option.help) > 10, option.opts
        assert option.help[0].isupper() and option.help.rstrip()[-1] in ".)", (option.opts, option.help)


SEVERAL = ("--batch", "--threads", "--sequence", "--seq", "--engine")
"""What bench takes several of, other commands one."""


def test_an_option_means_the_same_everywhere() -> None:
    """The same name, the same help and kind; the options of a method may differ from those of another method."""
    fields = {n.replace("_", "-") for row in registry.rows() for n in registry.get(row).model_fields}
    own = {f"--{no}{name}" for name in fields for no in ("", "no-")}
    seen: dict[str, tuple[str, str, str]] = {}
    for name, arguments in VARIANTS:
        for option in options(name, arguments):
            for flag in (*option.opts, *option.secondary_opts):
                if flag in MEANS_TWO_THINGS or flag in own or flag in ("--help", "--method"):
                    continue
                if flag == "--runtime" or (name == "bench" and flag in SEVERAL):  # serve takes the runtimes of ONNX
                    continue
                kind = str(option.type_descriptor.annotation)
                meaning = (option.help, kind, ids((name, arguments)))
                before = seen.setdefault(flag, meaning)
                assert before[:2] == meaning[:2], f"{flag} of {before[2]} and of {meaning[2]}"


@pytest.mark.parametrize("variant", VARIANTS, ids=ids)
def test_no_option_is_declared_twice(variant: tuple[str, tuple[str, ...]]) -> None:
    flags = [flag for option in options(*variant) for flag in (*option.opts, *option.secondary_opts)]
    assert len(flags) == len(set(flags))


@pytest.mark.parametrize("row", registry.rows())
def test_a_methods_help_has_its_options_and_no_others(cli: Cli, monkeypatch: pytest.MonkeyPatch, row: str) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    stage, _, method = row.partition(".")
    text = cli(stage, "--method", method, "--help-all").out
    mine = set(registry.get(row).model_fields)
    others = {n for other in registry.rows() if other.startswith(f"{stage}.") for n in registry.get(other).model_fields}
    for name in mine | others:
        assert (f"--{name.replace('_', '-')}" in re.findall(r"--[a-z0-9-]+", text)) == (name in mine), name


@pytest.mark.parametrize("name", ["quantize", "export"])
def test_every_target_is_listed(cli: Cli, name: str) -> None:
    text = " ".join(cli(name, "--help-all").out.split())
    listed = re.search(r"--to NAME [^.]+\. One of: ([^.]+)\.", text)
    assert listed and set(listed[1].split(", ")) == {*targets.names(), "onnx"}


@pytest.mark.parametrize("whole", ["--help", "--help-all"])
@pytest.mark.parametrize("variant", VARIANTS, ids=ids)
def test_help_fits_80_columns_and_has_examples(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, variant: tuple[str, tuple[str, ...]], whole: str
) -> None:
    """No line is too long, no word is broken, and the short help is a part of the whole one."""
    monkeypatch.setenv("COLUMNS", "80")
    name, arguments = variant
    text = cli(name, *arguments, whole).out
    assert max(map(len, text.splitlines())) <= 80
    assert f"\nExamples:\n  compresskit {name}" in text
    command = build(name, list(arguments))
    joined = " ".join(text.split())
    shown = [option for option in command.params if option.param_type_name == "option" and option.help in joined]
    assert whole == "--help" or len(shown) == len(options(*variant))
    own = [option for option in shown if option.name in command.guide.first]
    assert whole == "--help-all" or not command.guide.first or 3 <= len(own) <= 11


@pytest.mark.parametrize("name", sorted(GUIDES))
def test_a_guide_names_options_that_exist(name: str) -> None:
    first, *second = name.split()
    known = {option.name for row in [(), *METHODS.get(name, ())] for option in options(first, (*second, *row))}
    assert set(GUIDES[name].first) <= known
    assert all(example.split()[0] == first for example in GUIDES[name].examples)


def test_choices_are_not_broken_inside_words(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    words = re.findall(r"[\w-]+", cli("quantize", "--help").out)
    assert all(method in words for method in registry.methods("quantize"))


def test_a_command_imports_no_plugin(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    plugins = {**registry.rows(), "strange.kind": "no_such_package:Kind"}
    monkeypatch.setattr(registry, "rows", lambda: plugins)
    monkeypatch.setattr(registry, "_imported", lambda row: pytest.fail(f"{row} was imported"))
    summaries.cache_clear()
    assert cli("recipe", "ls").code == 0
