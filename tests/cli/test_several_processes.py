"""``torchrun`` on a command: the processes share the layers, and the first one's output is that of one process."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_material import Cli
from lm_folders import PROMPT, make_folder

RUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small language model in bfloat16, and text."""
    transformers = pytest.importorskip("transformers")
    import torch

    place = tmp_path_factory.mktemp("several")
    made = make_folder(place, "llama")
    transformers.AutoModelForCausalLM.from_pretrained(made).to(torch.bfloat16).save_pretrained(made)
    (place / "text.txt").write_text((PROMPT.replace("\n", " ") + "\n") * 24, encoding="utf-8")
    return place


def quantize(
    place: Path, output: str, *options: str, launcher: tuple[str, ...] = RUN
) -> subprocess.CompletedProcess[str]:
    words = (*launcher, "-m", "compresskit", "quantize", "llama", "--bits", "4", "--no-export", "-o", output, *options)
    return subprocess.run(
        [sys.executable, *words], cwd=place, env=ENV, capture_output=True, text=True, timeout=240, check=False
    )


FAILS = """
import os, sys
from compresskit.errors import InputError
from compresskit.ops.quantize import hqq

done, real = [], hqq.quantize_hqq
def third(weight, grid):
    done.append(1)
    if len(done) > 3:
        raise InputError("only on this machine")
    return real(weight, grid)

if os.environ["RANK"] == "1":
    hqq.quantize_hqq = third
sys.argv = ["compresskit", *sys.argv[3:]]
from compresskit.cli.main import main
main()
"""
"""What torchrun starts: its second process can't quantize its fourth layer."""
METHODS = {
    "auto": (),
    "rtn": ("--method", "rtn"),
    "hqq": ("--method", "hqq"),
    "gptq": ("--method", "gptq", "--data", "text.txt"),
    "gptq-repair": ("--method", "gptq", "--data", "text.txt", "--repair", "4"),
}


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_two_processes_write_the_bytes_of_one(folder: Path, tmp_path: Path, method: str) -> None:
    one = quantize(folder, str(tmp_path / "one" / "out"), *METHODS[method], launcher=())
    two = quantize(folder, str(tmp_path / "two" / "out"), *METHODS[method])
    assert one.returncode == two.returncode == 0, two.stderr
    assert one.stdout.count("PASS") == two.stdout.count("PASS")
    files = sorted(path.name for path in (tmp_path / "one" / "out").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "two" / "out").iterdir())
    assert [path.name for path in tmp_path.glob("two/*")] == ["out"]
    for name in set(files) - {"report.json"}:
        assert (tmp_path / "one" / "out" / name).read_bytes() == (tmp_path / "two" / "out" / name).read_bytes(), name


@pytest.mark.slow
def test_a_killed_calibration_goes_on_in_two_processes(folder: Path, tmp_path: Path) -> None:
    options = METHODS["gptq"]
    whole = quantize(folder, str(tmp_path / "whole"), *options, launcher=())
    assert whole.returncode == 0, whole.stderr
    kept = (*options, "--checkpoint", str(tmp_path / "kept"))
    assert quantize(folder, str(tmp_path / "first"), *kept).returncode == 0
    blocks = sorted((tmp_path / "kept").glob("blocks-*"))
    assert len(blocks) == 4  # the embedding, two blocks, and the head
    before = [block.stat().st_mtime_ns for block in blocks[:2]]
    for block in blocks[2:]:
        block.unlink()
    assert quantize(folder, str(tmp_path / "second"), *kept).returncode == 0
    assert [block.stat().st_mtime_ns for block in blocks[:2]] == before and blocks[3].exists()
    for name in ("model.safetensors", "compresskit.json"):
        for output in ("first", "second"):
            assert (tmp_path / output / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("options", [("--data", "none.txt", "--method", "gptq"), ("--method", "awq"), ("--bits", "7")])
def test_an_error_is_said_once(folder: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    done = quantize(folder, str(tmp_path / "out"), *options)
    assert done.returncode != 0
    assert len(re.findall("^error: ", done.stderr, re.M)) == 1, done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_an_error_of_the_second_process_ends_the_first(folder: Path, tmp_path: Path) -> None:
    script = tmp_path / "fails.py"
    script.write_text(FAILS)
    done = quantize(folder, str(tmp_path / "out"), "--method", "hqq", launcher=(*RUN, str(script)))
    assert done.returncode != 0 and "exitcode  : 3" in done.stderr
    assert re.findall("^error: .*", done.stderr, re.M) == [
        "error: layer 'model.layers.0.self_attn.o_proj': only on this machine"
    ]
    assert list(tmp_path.iterdir()) == [script]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the processes in /proc")
def test_a_killed_process_ends_the_others(folder: Path, tmp_path: Path) -> None:
    words = (*RUN, "-m", "compresskit", "quantize", "llama", "-o", str(tmp_path / "out"), "--no-export")
    launcher = subprocess.Popen(
        [sys.executable, *words, *METHODS["gptq"]], cwd=folder, env=ENV,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    helper = None
    deadline = time.monotonic() + 60
    while helper is None and time.monotonic() < deadline:
        for place in Path("/proc").glob("[0-9]*"):
            try:
                mine = int((place / "stat").read_text().rpartition(")")[2].split()[1]) == launcher.pid
                if mine and b"\0RANK=1\0" in (place / "environ").read_bytes():
                    helper = int(place.name)
            except (OSError, IndexError):
                continue
        time.sleep(0.05)
    assert helper is not None
    os.kill(helper, signal.SIGKILL)
    said, _ = launcher.communicate(timeout=120)
    assert launcher.returncode != 0 and "SIGKILL" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("bench", "m.pt"), "bench"),
        (("recipe", "ls"), "recipe"),
        (("lora", "merge", "m.pt"), "lora"),
        (("prune", "m.pt", "--arch", "net.py:Net"), "prune.structured"),
        (("quantize", "m.pt", "--arch", "net.py:Net", "--data", "d.npz"), "quantize.auto with --data"),
        (("quantize", "m.pt", "--method", "awq"), "quantize.awq"),
        (("quantize", "m.pt", "--target-bits", "3"), "quantize.auto"),
    ],
)
def test_what_cannot_be_split_is_refused(
    cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], what: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = cli(*arguments)
    assert done.code == 2 and done.err.startswith(f"error: {what} cannot be split over 2 processes\n")


def test_only_the_first_process_speaks(cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("compresskit.cli.distributed.time.sleep", slept.append)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, waits in (("0", 0), ("1", 1)):
        monkeypatch.setenv("RANK", rank)
        assert cli("quantize", "m.pt", "--method", "awq").code == 2
        assert len(slept) == waits
