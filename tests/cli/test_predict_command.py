"""``compresskit predict``: what words stand for, what is shown, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from cli_material import Cli


@pytest.fixture
def rows(here: Path) -> np.ndarray:
    """Three samples, also in rows.csv under a header."""
    x = np.load("d.npz")["x"][:3]
    lines = [",".join(f"c{i}" for i in range(32)), *(",".join(map(str, row.tolist())) for row in x)]
    Path("rows.csv").write_text("\n".join(lines) + "\n")
    Path("names.txt").write_text("north\neast\nsouth\nwest\n")
    return x


@pytest.mark.parametrize("model", ["m.onnx", "bundle"])
def test_rows_and_arrays(cli: Cli, rows: np.ndarray, model: str) -> None:
    np.savez("rows.npz", x=rows)
    path = "m.onnx" if model == "m.onnx" else "bundle/model.onnx"
    logits = onnxruntime.InferenceSession(path).run(None, {"x": rows})[0]
    said = {}
    for given in ("rows.csv", "rows.npz"):
        done = cli("predict", model, given, "--labels", "names.txt", "--top", 2, "--json", "-")
        assert done.code == 0, done
        said[given] = json.loads(done.out)
    assert said["rows.csv"] == said["rows.npz"]
    names = ["north", "east", "south", "west"]
    assert [one["classes"][0]["label"] for one in said["rows.csv"]] == [names[i] for i in logits.argmax(1)]
    assert all(len(one["classes"]) == 2 for one in said["rows.csv"])
    shown = cli("predict", model, "rows.csv", "--labels", "names.txt", "--top", 1)
    assert shown.code == 0 and len(shown.out.splitlines()) == 3
    assert shown.out.split()[1] == names[int(logits[0].argmax())]


def test_outputs_that_nobody_named_are_shown_as_they_are(cli: Cli, rows: np.ndarray) -> None:
    done = cli("predict", "m.onnx", "rows.csv", "--json", "out.json")
    assert done.code == 0 and len(done.out.splitlines()) == 3, done
    told = json.loads(Path("out.json").read_text())
    logits = onnxruntime.InferenceSession("m.onnx").run(None, {"x": rows})[0]
    assert np.allclose([next(iter(one["outputs"].values())) for one in told], logits, atol=1e-6)


@pytest.mark.usefixtures("rows", "untouched")
@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("m.onnx", "north wind"), 2, "a .csv of numbers"),
        (("m.onnx", "none.csv"), 2, "none.csv"),
        (("m.onnx", "d.npz", "rows.csv"), 2, "goes alone"),
        (("m.pt", "rows.csv"), 3, "compresskit export"),
        (("m.onnx", "rows.csv", "--runtime", "torch"), 2, "torch"),
        (("none", "rows.csv"), 2, "does not exist"),
        (("m.onnx", "rows.csv", "--json", "rows.csv"), 2, "--json"),
    ],
)
def test_what_is_refused(cli: Cli, words: tuple[str, ...], code: int, told: str) -> None:
    cli("predict", *words).refused(code, told)


def test_a_table_of_numbers_names_its_bad_line(cli: Cli, rows: np.ndarray) -> None:
    Path("bad.csv").write_text("1,2\n3,x\n")
    cli("predict", "m.onnx", "bad.csv").refused(3, "bad.csv line 2")
    Path("bad.csv").write_text("1,2\n3\n")
    cli("predict", "m.onnx", "bad.csv").refused(3, "bad.csv line 2")
