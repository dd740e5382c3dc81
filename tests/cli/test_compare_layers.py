"""``compare A B --layers``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_material import ARCH, Cli

DATA = ("--data", "d.npz")


@pytest.mark.parametrize("other", ["own.onnx", "m.safetensors"])
def test_the_same_model_in_two_forms_does_not_part(cli: Cli, here: Path, other: str) -> None:
    assert cli("export", "m.pt", *ARCH, "--input-shape", "1,32", "-o", "own.onnx", "-q").code == 0
    done = cli("compare", "m.pt", other, *ARCH, *DATA, "--layers", "--json", "-")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["models"] == ["m.pt", other] and found["samples"] == 32
    assert {row["name"] for row in found["layers"]} >= {"first", "head"} and found["first"] is None


def test_a_bundle_without_weights_stands_for_its_file(cli: Cli, here: Path) -> None:
    given = ("--method", "int8-static", "--no-bench", "-o", "int8", "-q")
    assert cli("quantize", "m.pt", *ARCH, *DATA, *given).code in (0, 1)
    done = cli("compare", "m.pt", "int8", *ARCH, *DATA, "--layers", "--json", "-")
    assert done.code == 0, done.err
    assert "first" in {row["name"] for row in json.loads(done.out)["layers"]}


def test_codes_of_a_bundle_part_where_they_begin(cli: Cli, here: Path) -> None:
    assert cli("quantize", "m.pt", *ARCH, *DATA, "--bits", "4", "--no-bench", "-o", "int4", "-q").code == 0
    for other in ("int4", "int4/model.onnx"):
        done = cli("compare", "m.pt", other, *ARCH, *DATA, "--layers")
        assert done.code == 0, done.err
        assert "the models part at first" in done.out and "← jump" in done.out


def test_what_does_not_fit_is_refused(cli: Cli, here: Path) -> None:
    cli("compare", "m.pt", "m.onnx", *ARCH, *DATA, "--layers", "--max-drop", "1pt").refused(2, "--layers", "limits")
    cli("compare", "m.pt", "m.onnx", *ARCH, *DATA, "--layers").refused(3, "no layer of the same name")
    cli("compare", "m.pt", "m.onnx", "m.pt", *ARCH, *DATA, "--layers").refused(2, "--layers compares two models")
