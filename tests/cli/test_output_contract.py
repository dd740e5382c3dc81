"""What goes to stdout, to stderr and into files."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from cli_material import ARCH, SHAPE, Cli, picture
from warm import Warm

from compresskit.report import Report

FOUR = ("quantize", "m.pt", *ARCH, *SHAPE, "--bits", "4", "--no-bench", "-o", "out")
BARE = ("quantize", "m.pt", "--bits", "4", "-o", "out")
REPORTING = {
    "quantize": FOUR,
    "bare": BARE,
    "export": ("export", "m.pt", *ARCH, *SHAPE, "-o", "out.onnx"),
    "evaluate": ("evaluate", "m.onnx", "--data", "d.npz"),
    "compare": ("compare", "m.onnx", "bundle", "--data", "d.npz", "--no-bench"),
    "bench": ("bench", "m.onnx", "bundle", "--processes", "2", "--rounds", "2", "--no-limits"),
}


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("case", REPORTING)
def test_json_on_stdout_is_one_document(cli: Cli, case: str) -> None:
    found = cli(*REPORTING[case], "--json", "-")
    report = Report.model_validate_json(found.out)
    assert found.code == report.exit_code() == 0, found
    assert found.err == ""
    assert found.out == report.to_json()
    assert "NaN" not in found.out and "Infinity" not in found.out


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("command", [("inspect", "m.pt"), ("inspect", "m.onnx"), ("inspect", "bundle"), ("doctor",)])
def test_json_of_commands_without_a_verdict(cli: Cli, command: tuple[str, ...]) -> None:
    found = cli(*command, "--json", "-")
    assert found.code == 0 and found.err == "" and isinstance(json.loads(found.out), dict)
    again = cli(*command, "--json", "i.json")
    assert again.code == 0 and json.loads(Path("i.json").read_text()) == json.loads(found.out)
    assert again.out and again.out != found.out


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("case", ["bare", "export", "evaluate", "compare"])
def test_the_json_file_and_the_bundle_hold_the_report(cli: Cli, case: str) -> None:
    found = cli(*REPORTING[case], "--json", "r.json")
    assert found.code == 0 and found.err == "" and found.out
    report = Report.model_validate_json(Path("r.json").read_bytes())
    assert report.command.startswith(f"compresskit {REPORTING[case][0]}")
    if Path("out").is_dir():
        assert Path("out/report.json").read_bytes() == Path("r.json").read_bytes()


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("case", ["bare", "evaluate", "compare"])
def test_quiet_prints_nothing(cli: Cli, case: str) -> None:
    found = cli(*REPORTING[case], "--quiet")
    assert (found.code, found.out, found.err) == (0, "", "")


@pytest.mark.usefixtures("here")
def test_quiet_still_gives_the_document(cli: Cli) -> None:
    found = cli(*BARE, "--quiet", "--json", "-")
    assert Report.model_validate_json(found.out) and found.err == ""


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("case", ["bare", "evaluate", "compare"])
def test_markdown(cli: Cli, case: str) -> None:
    found = cli(*REPORTING[case], "--markdown")
    assert found.code == 0 and found.err == ""
    assert found.out.startswith("### ") and found.out.endswith("\n") and not found.out.endswith("\n\n")
    assert re.search(r"^\| model \|", found.out, re.M) and re.search(r"^\| --- \|", found.out, re.M)


@pytest.mark.usefixtures("here")
def test_the_table_says_the_verdict_first(cli: Cli) -> None:
    found = cli(*REPORTING["compare"])
    assert found.out.startswith("PASS") and "accuracy" in found.out and "\x1b" not in found.out


@pytest.mark.usefixtures("here")
def test_a_bare_state_dict_is_told_what_would_verify_it(cli: Cli) -> None:
    """The hint must be one that can be followed: without an architecture --eval-data is refused."""
    found = cli(*BARE)
    assert found.out.startswith("UNVERIFIED") and "--arch" in found.out


NASTY = "[red]x\x1b[31m\nerror: 9 o'clock"


@pytest.fixture
def nasty(here: Path) -> Path:
    """A checkpoint whose path and tensor names hold markup, terminal escapes and line breaks."""
    import torch

    if os.name == "nt":
        pytest.skip("no such names there")
    torch.save({f"{NASTY}.weight": torch.ones(64, 64), "plain.weight": torch.ones(64, 64)}, f"{NASTY}.pt")
    return Path(f"{NASTY}.pt")


def harmless(text: str) -> None:
    assert "\x1b" not in text and "\r" not in text
    assert not any(line.startswith("error: 9") for line in text.splitlines()), text


@pytest.mark.parametrize("more", [(), ("--markdown",), ("--exclude", "plain"), ("--exclude", f"{NASTY[:5]}nothing")])
def test_names_reach_the_terminal_escaped(cli: Cli, nasty: Path, more: tuple[str, ...]) -> None:
    found = cli("quantize", nasty, "--bits", "4", *more, "-o", f"{NASTY}-out")
    assert found.code in (0, 2)
    harmless(found.out)
    harmless(found.err)
    if "--markdown" not in more:
        assert "[red]x" in found.out + found.err
        assert "\\x1b" in found.out + found.err or more


def test_names_of_inspected_models_are_escaped(cli: Cli, nasty: Path) -> None:
    found = cli("inspect", nasty)
    assert found.code == 0 and "[red]x" in found.out
    harmless(found.out)
    assert f"{NASTY}.weight" in {row["name"] for row in json.loads(cli("inspect", nasty, "--json", "-").out)["layers"]}


@pytest.mark.parametrize("words", [
    ("quantize", f"{NASTY}.nope", "--bits", "4"),
    ("quantize", "m.pt", "--arch", f"net.py:{NASTY}", "--bits", "4"),
    ("quantize", "m.pt", "--method", NASTY),
    ("quantize", "m.pt", f"--{NASTY}"),
    ("quantize", "m.pt", "--bits", NASTY),
    ("quantize", "m.pt", "--bits", "4", "--exclude", NASTY),
    ("quantize", "m.pt", *ARCH, "--arch-args", json.dumps({NASTY: 1})),
    ("evaluate", "m.onnx", "--data", f"{NASTY}.npz"),
    ("evaluate", "m.onnx", "--data", "d.npz", "--metric", NASTY),
    (NASTY,),
])  # fmt: skip
@pytest.mark.usefixtures("untouched")
def test_what_was_typed_is_echoed_escaped(cli: Cli, words: tuple[str, ...]) -> None:
    found = cli(*words)
    found.refused(found.code)
    assert found.code in (2, 3)
    harmless(found.err)


def texts(folder: Path) -> str:
    """Everything in the files of a folder, as far as it is text."""
    return "".join(p.read_bytes().decode("latin-1") for p in sorted(folder.rglob("*")) if p.is_file())


@pytest.mark.parametrize("typed", ["relative", "absolute"])
def test_artefacts_tell_nothing_of_this_machine(cli: Cli, here: Path, typed: str) -> None:
    place = f"{here}{os.sep}" if typed == "absolute" else ""
    arch = ("--arch", f"{place}net.py:Net")
    found = cli(
        "quantize", f"{place}m.pt", *arch, *SHAPE, "--bits", "4", "--eval-data", f"{place}d.npz", "--no-bench",
        "-o", f"{place}out",
    )  # fmt: skip
    assert found.code == 0, found
    said = texts(here / "out")
    import compresskit

    for secret in (
        str(here),
        str(Path(compresskit.__file__).parent),
        sys.prefix,
        str(Path.home()),
        socket.gethostname(),
    ):
        assert len(secret) < 4 or secret not in said, secret
    assert not re.search(r"20\d\d-\d\d-\d\d[T ]\d\d:\d\d", said)


@pytest.mark.usefixtures("translated_anew")
@pytest.mark.parametrize(("method", "more"), [
    ("rtn", ("--bits", "4", "--no-bench")), ("int8-static", ("--bits", "8", "--data", "d.npz", "--no-bench")),
])  # fmt: skip
def test_the_same_command_gives_the_same_bytes(
    cli: Cli, warm_torch: Warm, here: Path, method: str, more: tuple[str, ...]
) -> None:
    """In two processes, with other hash seeds, in other folders, at other times."""
    import torch

    words = ("quantize", "m.pt", *ARCH, *SHAPE, *more, "-o")
    assert cli(*words, "out").code == 0
    other = here / "elsewhere" / "out"
    env = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    warm_torch.run(("-m", "compresskit", *words, str(other)), env=env).check_returncode()
    found, again = ({k: v for k, v in picture(p).items() if k != "report.json"} for p in (here / "out", other))
    assert found == again and "model.onnx" in found and "compresskit.json" in found
    assert ("model.safetensors" in found) == (method == "rtn")


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("more", [(), ("--markdown",), ("--json", "-")])
def test_any_encoding_of_stdout_will_do(cli: Cli, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]) -> None:
    """A Windows code page or ASCII has no ``≤``; documents are UTF-8 all the same."""
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii", write_through=True))
    found = cli(*REPORTING["compare"], *more)
    assert found.code == 0, found
    said = raw.getvalue().decode("utf-8" if more else "ascii")
    assert ("≤" in said) == (more == ("--json", "-")) or more == ("--markdown",)
    if more == ("--json", "-"):
        Report.model_validate_json(said)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems hold names to be text")
@pytest.mark.parametrize("more", [(), ("--json", "-"), ("--markdown",)])
def test_a_file_name_that_is_no_text(cli: Cli, here: Path, more: tuple[str, ...]) -> None:
    name = os.fsdecode(b"m\xff.pt")
    shutil.copyfile("m.pt", name)
    found = cli("quantize", name, "--bits", "4", "-o", os.fsdecode(b"out\xff"), *more)
    assert found.code == 0 and found.err == "", found
    Report.model_validate_json(Path(os.fsdecode(b"out\xff"), "report.json").read_bytes())
    cli("inspect", name + "x").refused(2, "does not exist")


def without_reader(warm: Warm, words: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    """Run with a stdout whose reader is gone."""
    hear, tell = os.pipe()
    os.close(hear)
    try:
        return warm.run(("-m", "compresskit", *words), stdout=tell)
    finally:
        os.close(tell)


@pytest.mark.usefixtures("here")
@pytest.mark.skipif(os.name == "nt", reason="pipes break otherwise there")
@pytest.mark.parametrize(("words", "code"), [
    (("--help",), 0),
    (("doctor", "--json", "-"), 0),
    (("quantize", "m.pt", "--bits", "4", "-o", "a"), 0),
    (("quantize", "m.pt", "--bits", "4", "-o", "a", "--max-size", "100B", "--json", "-"), 1),
])  # fmt: skip
def test_a_reader_that_went_away_changes_no_exit_code(warm_torch: Warm, words: tuple[str, ...], code: int) -> None:
    found = without_reader(warm_torch, words)
    assert (found.returncode, found.stderr) == (code, "")


@pytest.mark.usefixtures("here")
def test_closed_streams_are_no_error(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    for stream, words, code in (("stdout", ("inspect", "m.pt"), 0), ("stderr", ("inspect", "nope.pt"), 2)):
        with monkeypatch.context() as patch:
            patch.setattr(sys, stream, None)
            assert cli(*words).code == code
            getattr(sys, stream).close()
