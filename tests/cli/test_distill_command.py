"""distill on the command line: any teacher, the verdict against it, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_material import ARCH, SHAPE, Cli

STUDENT = ("--arch-args", '{"width": 8}')
QUICK = ("--epochs", 2, "--no-bench", "--quiet", "--json", "-", "--threads", 1)


@pytest.fixture
def small(here: Path) -> Path:
    """The folder with a student in it, narrower than the models there, and data without labels."""
    net: dict[str, Any] = {}
    exec((here / "net.py").read_text(encoding="utf-8"), net)
    torch.manual_seed(0)
    torch.save(net["Net"](8).state_dict(), here / "s.pt")
    np.savez(here / "bare.npz", x=np.load(here / "d.npz")["x"])
    return here


def distill(cli: Cli, *words: object) -> dict[str, Any]:
    found = cli("distill", "s.pt", *ARCH, *STUDENT, *QUICK, *words)
    assert found.code in (0, 1), found
    report: dict[str, Any] = json.loads(found.out)
    return report


@pytest.mark.parametrize(
    "teacher",
    [("m.pt", "--teacher-arch", "net.py:Net"), ("m.onnx",), ("bundle",), ("bundle", "--teacher-arch", "net.py:Net")],
    ids=["module", "onnx", "bundle", "bundle-module"],
)
def test_the_verdict_holds_the_student_against_its_teacher(cli: Cli, small: Path, teacher: tuple[str, ...]) -> None:
    report = distill(cli, "--teacher", *teacher, "--data", "d.npz", "--eval-data", "d.npz", "-o", "out")
    first, last = report["models"]
    assert first["name"] == teacher[0] and last["name"] == "out"
    drop = next(gate for gate in report["gates"] if gate["name"] == "accuracy drop")
    assert drop["reason"].startswith("100.000 →")  # the data are what the teacher gets right
    applied = report["history"][-1]
    assert applied["name"] == "distill.standardized" and applied["options"]["teacher"] == teacher[0]
    assert applied["facts"]["training"]["epochs"] == 2
    assert cli("evaluate", "out", "--data", "d.npz", "--quiet").code == 0
    again = cli("inspect", "out", *ARCH, *STUDENT)
    assert again.code == 0, again


def test_the_speed_and_work_of_both_are_told_apart(cli: Cli, small: Path) -> None:
    report = distill(cli, "--teacher", "m.pt", "--teacher-arch", "net.py:Net", "--data", "bare.npz", "-o", "out")
    first, last = report["models"]
    assert (first["macs"], last["macs"]) == (32 * 32 + 32 * 4, 32 * 8 + 8 * 4)
    assert first["bytes"] > 1.5 * last["bytes"]
    assert report["verdict"] == "UNVERIFIED"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--data", "d.npz"), 2, "distill needs a teacher"),
        (("--teacher", "m.onnx"), 2, "needs training data"),
        (("--teacher", "none.pt", "--data", "d.npz"), 2, "none.pt"),
        (("--teacher", "m.pt", "--data", "d.npz"), 2, "give --teacher-arch FILE.py:NAME"),
        (("--teacher", "m.onnx", "--teacher-arch-args", "{}", "--data", "d.npz"), 2, "is for --teacher-arch"),
        (("--teacher", "m.onnx", "--teacher-arch-args", "[", "--data", "d.npz"), 2, "a JSON object"),
        (("--teacher", "m.onnx", "--method", "dkd", "--data", "bare.npz"), 2, "dkd needs class labels"),
        (("--teacher", "m.onnx", "--method", "layers", "--data", "d.npz"), 2, "which m.onnx doesn't show"),
        (("--teacher", "five.pt", "--teacher-arch", "net.py:five", "--data", "d.npz"), 3, "gives [5] a sample"),
        (("--teacher", "m.onnx", "--data", "d.npz", "--labels", "none"), 2, "No such option"),
    ],
)
def test_what_does_not_go_together_is_refused(
    cli: Cli, small: Path, words: tuple[str, ...], code: int, said: str
) -> None:
    with (small / "net.py").open("a", encoding="utf-8") as file:
        file.write("\n\ndef five():\n    return nn.Linear(32, 5)\n")
    torch.save(torch.nn.Linear(32, 5).state_dict(), small / "five.pt")
    found = cli("distill", "s.pt", *ARCH, *STUDENT, *QUICK, *words, "-o", "out")
    found.refused(code, said)
    assert not (small / "out").exists()


def test_a_quantized_student_is_refused(cli: Cli, small: Path) -> None:
    assert (
        cli("quantize", "s.pt", *ARCH, *SHAPE, *STUDENT, "--bits", "4", "-o", "packed", "--no-bench", "--quiet").code
        == 0
    )
    found = cli("distill", "packed", *ARCH, *STUDENT, *QUICK, "--teacher", "m.onnx", "--data", "d.npz", "-o", "out")
    found.refused(2, "quantized", "first")


def test_the_teacher_is_never_written_over(cli: Cli, small: Path) -> None:
    found = cli("distill", "s.pt", *ARCH, *STUDENT, "--teacher", "bundle", "--data", "d.npz", "-o", "bundle", "--force")
    found.refused(2, "bundle")
    assert (small / "bundle" / "model.onnx").exists()
