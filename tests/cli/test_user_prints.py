"""What the user's code prints goes to stderr: stdout is the document's. And a terminal of no width shows all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_material import Cli

CHATTY = """\
print("imported")
import numpy as np
import net

class Net(net.Net):
    def __init__(self):
        super().__init__()
        print("constructed")

    def forward(self, x):
        print("run")
        return super().forward(x)

def batches():
    print("walked")
    file = np.load("d.npz")
    yield file["x"], file["y"]
    print("done")

def score(outputs, batch):
    print("scored")
    return np.ones(len(batch.targets))
"""


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    "command",
    [
        ("inspect", "m.pt"),
        (
            "quantize",
            "m.pt",
            "--method",
            "gptq",
            "--bits",
            "8",
            "--no-bench",
            "-o",
            "out",
            "--data",
            "chatty.py:batches",
        ),
        ("evaluate", "m.pt", "--data", "chatty.py:batches", "--metric", "chatty.py:score"),
        ("evaluate", "m.pt", "--data", "chatty.py:batches", "--runtime", "torch"),
    ],
)
def test_documents_on_stdout_are_whole(cli: Cli, command: tuple[str, ...]) -> None:
    Path("chatty.py").write_text(CHATTY, encoding="utf-8")
    found = cli(*command, "--arch", "chatty.py:Net", "--input-shape", "1,32", "--json", "-")
    assert found.code in (0, 1), found
    assert isinstance(json.loads(found.out), dict)
    assert "imported" in found.err and "constructed" in found.err


@pytest.mark.parametrize("columns", ["0", "-3", "none"])
@pytest.mark.parametrize("command", [("recipe", "ls"), ("--help",), ("quantize", "--help")])
def test_a_terminal_of_no_width_shows_all(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, columns: str, command: tuple[str, ...]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    found = cli(*command)
    assert found.code == 0 and len(found.out.split()) > 20
