"""Commands that are wrong in themselves: exit code 2, and what would be right."""

from __future__ import annotations

import pytest
from cli_material import ARCH, SHAPE, Cli

Q = ("quantize", "m.pt")
QA = (*Q, *ARCH)
FOUR = (*QA, *SHAPE, "--bits", "4", "-o", "out")

WRONG = {
    "no such command": (("quantise", "m.pt"), ("quantise", "quantize")),
    "unknown option": ((*Q, "--bit", "4"), ("--bit", "--bits")),
    "unknown option of bench": (("bench", "m.onnx", "--bits", "4"), ("--bits",)),
    "no model": (("quantize", "--bits", "4"), ("MODEL",)),
    "two models": (("quantize", "m.pt", "n.pt"), ("n.pt",)),
    "unknown method": ((*Q, "--method", "rtm"), ("rtm", "rtn")),
    "method of another stage": ((*Q, "--method", "magnitude"), ("magnitude", "rtn", "int8-static")),
    "option of another method": (
        (*Q, "--method", "int8-static", "--group-size", "32"), ("--group-size", "rtn, hqq, gptq")),
    "option of rtn with auto": (
        (*QA, *SHAPE, "--bits", "8", "--data", "d.npz", "--exclude", "head"), ("--exclude", "--method")),
    "option of int8": ((*Q, "--bits", "4", "--samples", "3"), ("--samples",)),
    "5 bits": ((*Q, "--bits", "5"), ("5 bits", "--weight-format", "4", "8")),
    "7 bits": ((*Q, "--bits", "7"), ("--bits", "7", "4", "8")),
    "4 bits of int8": ((*Q, "--method", "int8-static", "--bits", "4", "--data", "d.npz"), ("--bits", "8")),
    "bits in words": ((*Q, "--bits", "four"), ("--bits", "four")),
    "group size": ((*Q, "--bits", "4", "--group-size", "7"), ("--group-size", "7", "32")),
    "idle include": ((*QA, *SHAPE, "--bits", "4", "--include", "nope*"), ("nope*", "first")),
    "idle exclude": ((*QA, *SHAPE, "--bits", "4", "--exclude", "nope*"), ("nope*", "first")),
    "idle exclude, no architecture": ((*Q, "--bits", "4", "--exclude", "nope*"), ("nope*", "first")),
    "drop without unit": ((*FOUR, "--eval-data", "d.npz", "--max-drop", "3"), ("--max-drop", "'3'", "0.5pt", "1%")),
    "drop in words": ((*FOUR, "--eval-data", "d.npz", "--max-drop", "little"), ("little",)),
    "negative drop": ((*FOUR, "--eval-data", "d.npz", "--max-drop", "-1pt"), ("-1pt",)),
    "drop without data": ((*FOUR, "--max-drop", "1pt"), ("--max-drop", "--eval-data")),
    "drop of compare without data": (("compare", "m.onnx", "bundle", "--max-drop", "1pt"), ("--max-drop", "--data")),
    "drop without export": (
        (*FOUR, "--no-export", "--eval-data", "d.npz", "--max-drop", "1pt"), ("--eval-data", "--no-export")),
    "drop of a bare state dict": (
        (*Q, "--bits", "4", "--eval-data", "d.npz", "--max-drop", "1pt"), ("--eval-data", "--arch")),
    "size in words": ((*FOUR, "--max-size", "small"), ("small", "MB")),
    "size below 0": ((*FOUR, "--max-size", "0MB"), ("0MB",)),
    "speed-up unmeasured": ((*FOUR, "--no-bench", "--min-speedup", "1.2"), ("--min-speedup", "--no-bench")),
    "speed-up below 0": ((*FOUR, "--min-speedup", "-1"), ("--min-speedup", "-1")),
    "speed-up in words": ((*FOUR, "--min-speedup", "fast"), ("--min-speedup", "fast")),
    "speed-up of one": (("bench", "m.onnx", "--min-speedup", "1.2"), ("--min-speedup", "second")),
    "normalize without data": ((*FOUR, "--normalize", "imagenet"), ("--normalize", "--eval-data")),
    "malformed normalize": ((*FOUR, "--eval-data", "d.npz", "--normalize", "1,2"), ("--normalize", "1,2")),
    "malformed arch-args": ((*FOUR, "--arch-args", "{width: 3}"), ("--arch-args", "JSON")),
    "arch-args not an object": ((*FOUR, "--arch-args", "[1]"), ("--arch-args", "object")),
    "arch-args without arch": ((*Q, "--arch-args", '{"width": 3}'), ("--arch-args", "--arch")),
    "unknown argument": ((*FOUR, "--arch-args", '{"depth": 3}'), ("depth",)),
    "malformed shape": ((*QA, "--input-shape", "1,a"), ("--input-shape", "1,a")),
    "empty shape": ((*QA, "--input-shape", ""), ("--input-shape",)),
    "negative shape": ((*QA, "--input-shape", "1,-3"), ("--input-shape", "1,-3")),
    "shape unknown": ((*QA, "--bits", "4"), ("--input-shape", "--data")),
    "shape without architecture": ((*Q, *SHAPE, "--bits", "4"), ("--input-shape", "--arch")),
    "no such file": ((*Q, "--arch", "nope.py:Net"), ("nope.py",)),
    "no such name": ((*Q, "--arch", "net.py:Nat"), ("Nat", "Net")),
    "no such module": ((*Q, "--arch", "no_such_module:Net"), ("no_such_module",)),
    "no name": ((*Q, "--arch", "net.py"), ("--arch", "FILE.py:NAME")),
    "failing architecture": ((*Q, "--arch", "net.py:broken"), ("my own mistake", "net.py:")),
    "not a module": ((*Q, "--arch", "net.py:number"), ("int",)),
    "arch of onnx": (("bench", "m.onnx", *ARCH), ("--arch", "m.onnx")),
    "metric unknown": (("evaluate", "m.onnx", "--data", "d.npz", "--metric", "acuracy"), ("acuracy", "accuracy")),
    "metric not computable": (("evaluate", "m.onnx", "--data", "d.npz", "--metric", "perplexity"), ("perplexity",)),
    "metric without data": ((*FOUR, "--metric", "accuracy"), ("--metric", "--eval-data")),
    "eval-data without export": ((*FOUR, "--no-export", "--eval-data", "d.npz"), ("--eval-data", "--no-export")),
    "eval-data of a bare state dict": ((*Q, "--bits", "4", "--eval-data", "d.npz"), ("--eval-data", "--arch")),
    "speed-up of a bare state dict": ((*Q, "--bits", "4", "--min-speedup", "2"), ("--min-speedup", "--arch")),
    "data unknown": (("evaluate", "m.onnx", "--data", "net.py"), ("net.py", ".npz")),
    "evaluate without data": (("evaluate", "m.onnx"), ("--data",)),
    "calibration missing": ((*QA, *SHAPE, "--method", "int8-static"), ("--data",)),
    "compare one": (("compare", "m.onnx"), ("two",)),
    "runtime unknown": (("bench", "m.onnx", "--runtime", "onxruntime"), ("onxruntime", "onnxruntime")),
    "torch of onnx": (("bench", "m.onnx", "--runtime", "torch"), ("m.onnx", "--arch")),
    "device unknown": (("bench", "m.onnx", "--device", "toaster"), ("toaster",)),
    "threads below 0": ((*FOUR, "--threads", "-1"), ("--threads", "-1")),
    "seed below 0": ((*FOUR, "--seed", "-1"), ("--seed", "-1")),
    "batch 0": (("bench", "m.onnx", "--batch", "0"), ("--batch", "0")),
    "export of onnx": (("export", "m.onnx", "-o", "n.onnx"), ("m.onnx", "ONNX already")),
    "export of a bare state dict": (("export", "m.pt", "-o", "n.onnx"), ("--arch",)),
    "export to another kind": (("export", "m.pt", *ARCH, *SHAPE, "-o", "n.pt"), ("n.pt", ".onnx")),
    "bench of a bare state dict": (("bench", "m.pt"), ("m.pt", "--arch")),
    "evaluate a bare state dict": (("evaluate", "m.pt", "--data", "d.npz"), ("m.pt", "--arch")),
    "quantize an ONNX file in 4 bit": (("quantize", "m.onnx", "--bits", "4"), ("m.onnx", "ONNX")),
    "a bundle again without arch": (("quantize", "bare", "--bits", "4"), ("bare", "quantize.rtn")),
    "existing output": ((*QA, *SHAPE, "--bits", "4", "-o", "bundle"), ("bundle", "--force")),
    "existing file": (("export", "m.pt", *ARCH, *SHAPE, "-o", "m.onnx"), ("m.onnx", "--force")),
    "existing default output": (("export", "m.pt", *ARCH, *SHAPE), ("m.onnx", "--force")),
    "json into a missing folder": ((*FOUR, "--json", "nope/r.json"), ("--json", "nope/r.json")),
    "json is a folder": ((*FOUR, "--json", "bundle"), ("--json", "bundle")),
    "rows 0": (("inspect", "m.pt", "--rows", "0"), ("--rows", "0")),
}  # fmt: skip


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_command_is_a_usage_error(cli: Cli, case: str) -> None:
    arguments, words = WRONG[case]
    cli(*arguments).refused(2, *words)


def test_no_arguments_show_the_help(cli: Cli) -> None:
    found = cli()
    assert found.code in (0, 2) and "Usage" in found.out + found.err


@pytest.mark.parametrize("flag", ["--help", "-h"])
@pytest.mark.parametrize("command", [(), ("quantize",), ("bench",)])
def test_help_is_a_success(cli: Cli, command: tuple[str, ...], flag: str) -> None:
    found = cli(*command, flag)
    assert found.code == 0 and "Usage" in found.out and found.err == ""


def test_the_version(cli: Cli) -> None:
    import compresskit

    found = cli("--version")
    assert (found.code, found.out.strip(), found.err) == (0, compresskit.__version__, "")


@pytest.mark.parametrize("place", [0, 1, 4])
def test_debug_shows_the_traceback_wherever_it_stands(cli: Cli, place: int) -> None:
    words = ["quantize", "missing.pt", "--bits", "4"]
    words.insert(place, "--debug")
    found = cli(*words)
    assert found.code == 2 and "Traceback" in found.err and "error: missing.pt" in found.err
