"""ONNX files that others wrote, by the command line: 8 bit, samples along any axis, and nothing else printed."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from cli_material import Cli
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper as nh

from compresskit.report import Report

BITS = ("--bits", "8", "--no-bench", "-o", "out", "--json", "-")


def saved(
    nodes: list[onnx.NodeProto], inputs: dict[str, list[object]], out: list[object], **stored: np.ndarray
) -> None:
    graph = h.make_graph(
        nodes, "g", [h.make_tensor_value_info(name, T.FLOAT, shape) for name, shape in inputs.items()],
        [h.make_tensor_value_info("y", T.FLOAT, out)], [nh.from_array(a, name) for name, a in stored.items()],
    )  # fmt: skip
    onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8), "m.onnx")


@pytest.fixture
def rng(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.random.Generator:
    """The current folder is empty."""
    monkeypatch.chdir(tmp_path)
    return np.random.default_rng(0)


def stateful(rng: np.random.Generator, batch: str | int, state: str | int) -> None:
    """y = (x w + Σ h v) · rate: ``h`` has its samples along its second axis, ``rate`` is a number."""
    nodes = [
        h.make_node("MatMul", ["x", "w"], ["a"]),
        h.make_node("ReduceSum", ["h", "first"], ["s"], keepdims=0),
        h.make_node("MatMul", ["s", "v"], ["b"]),
        h.make_node("Add", ["a", "b"], ["c"]),
        h.make_node("Mul", ["c", "rate"], ["y"]),
    ]
    w, v = (rng.normal(size=(n, 32)).astype("f4") for n in (64, 16))
    inputs: dict[str, list[object]] = {"x": [batch, 64], "h": [2, state, 16], "rate": []}
    saved(nodes, inputs, [batch, 32], w=w, v=v, first=np.array([0]))


def fed(rng: np.random.Generator, samples: int = 24) -> None:
    x, state = rng.normal(size=(samples, 64)).astype("f4"), rng.normal(size=(2, samples, 16)).astype("f4")
    np.savez("d.npz", x=x, h=state, rate=np.float32(2))


@pytest.mark.parametrize(
    ("axes", "told"),
    [(("N", "N"), ()), (("N", "M"), ("h=1",)), ((1, 1), ("h=1",)), ((1, 1), ("h=1", "rate=none"))],
    ids=["by the graph's names", "told", "one sample at a time", "scalar told"],
)
def test_samples_along_any_axis(
    axes: tuple[str | int, str | int], told: tuple[str, ...], cli: Cli, rng: np.random.Generator
) -> None:
    stateful(rng, *axes)
    fed(rng)
    options = [word for axis in told for word in ("--batch-axis", axis)]
    found = cli("quantize", "m.onnx", "--data", "d.npz", *options, *BITS)
    assert found.code == 0 and found.err == "", found
    report = Report.model_validate_json(found.out)
    assert report.values("cosine")["out"].value > 0.999 and report.coverage.done.keys() == {"w", "v"}
    assert "from 24 samples" in str(report.notes)
    # What was told is in the bundle.
    assert cli("compare", "m.onnx", "out", *options, "--data", "d.npz", "--no-bench").code == 0
    assert cli("bench", "out", "--processes", "2", "--rounds", "2", "--no-limits").code == 0


def test_an_axis_that_is_not_told_is_asked_for(cli: Cli, rng: np.random.Generator) -> None:
    stateful(rng, "N", "M")
    fed(rng)
    cli("quantize", "m.onnx", "--data", "d.npz", *BITS).refused(3, "--batch-axis")
    cli("quantize", "m.onnx", "--data", "d.npz", "--batch-axis", "h=3", *BITS).refused(2, "3 axes")
    cli("quantize", "m.onnx", "--data", "d.npz", "--batch-axis", "q=1", *BITS).refused(2, "'q'", "'h'")
    cli("quantize", "m.onnx", "--data", "d.npz", "--batch-axis", "h", *BITS).refused(2, "NAME=AXIS")


def test_a_recipe_tells_it_too(cli: Cli, rng: np.random.Generator) -> None:
    stateful(rng, "N", "M")
    fed(rng)
    recipe = "batch-axis: {h: 1, rate: none}\ndata: d.npz\nsteps: [quantize.int8-static]\n"
    Path("r.yaml").write_text(recipe, encoding="utf-8")
    found = cli("run", "r.yaml", "m.onnx", "--no-bench", "--no-cache", "-o", "out", "--json", "-")
    assert found.code == 0 and "error" not in found.err, found


@pytest.mark.parametrize("stored", ["x", "images", "input"])
def test_one_array_goes_to_one_input(stored: str, cli: Cli, rng: np.random.Generator) -> None:
    """Under whatever name, and whether the model is ONNX or torch whose input is told by the data alone."""
    import torch
    from torch import nn

    np.savez("d.npz", **{stored: rng.normal(size=(24, 64)).astype("f4")})
    saved([h.make_node("MatMul", ["rows", "w"], ["y"])], {"rows": ["N", 64]}, ["N", 32],
          w=rng.normal(size=(64, 32)).astype("f4"))  # fmt: skip
    assert cli("quantize", "m.onnx", "--data", "d.npz", *BITS).code == 0
    Path("net.py").write_text("from torch import nn\ndef net():\n    return nn.Sequential(nn.Linear(64, 32))\n")
    torch.save(nn.Sequential(nn.Linear(64, 32)).state_dict(), "m.pt")
    static = ("--method", "int8-static", "--data", "d.npz", "--eval-data", "d.npz", "--force")
    found = cli("quantize", "m.pt", "--arch", "net.py:net", *static, *BITS)
    assert found.code == 0 and found.err == "", found


@pytest.mark.parametrize("location", ["m.onnx.data", "weights.bin"])
def test_weights_beside_the_file_count(location: str, cli: Cli, rng: np.random.Generator) -> None:
    saved([h.make_node("MatMul", ["x", "w"], ["y"])], {"x": ["N", 64]}, ["N", 256],
          w=rng.normal(size=(64, 256)).astype("f4"))  # fmt: skip
    onnx.save_model(onnx.load("m.onnx"), "n.onnx", save_as_external_data=True, location=location, size_threshold=0)
    sizes, hashes = set(), set()
    for change in (False, True):
        if change:
            data = bytearray(Path(location).read_bytes())
            data[:4] = b"\0\0\0\0"
            Path(location).write_bytes(data)
        found = cli("quantize", "n.onnx", "--force", *BITS)
        assert found.code == 0 and found.err == "", found
        original = Report.model_validate_json(found.out).models[0]
        sizes.add(original.bytes)
        hashes.add(original.sha256)
    assert sizes == {Path("n.onnx").stat().st_size + 64 * 256 * 4} and len(hashes) == 2


def _conv(rng: np.random.Generator) -> None:
    saved([h.make_node("Conv", ["x", "w"], ["y"])], {"x": ["N", 3, 8, 8]}, ["N", 16, 6, 6],
          w=rng.normal(size=(16, 3, 3, 3)).astype("f4"))  # fmt: skip
    np.savez("d.npz", x=rng.normal(size=(16, 3, 8, 8)).astype("f4"))


def _product(rng: np.random.Generator) -> None:
    saved([h.make_node("MatMul", ["x", "w"], ["y"])], {"x": ["N", 64]}, ["N", 128],
          w=rng.normal(size=(64, 128)).astype("f4"))  # fmt: skip
    np.savez("d.npz", x=rng.normal(size=(16, 64)).astype("f4"))


def _recurrent(kind: str, rng: np.random.Generator) -> None:
    gates = {"LSTM": 4, "GRU": 3}[kind]
    w, r = (rng.normal(size=(1, gates * 32, 32)).astype("f4") / 8 for _ in range(2))
    first = h.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2])
    core = h.make_node(kind, ["t", "w", "r"], ["y"], hidden_size=32)
    saved([first, core], {"x": ["N", 5, 32]}, [5, 1, "N", 32], w=w, r=r)
    np.savez("d.npz", x=rng.normal(size=(16, 5, 32)).astype("f4"))


def _scaled(rng: np.random.Generator) -> None:
    saved([h.make_node("Mul", ["x", "w"], ["y"])], {"x": ["N", 64, 64]}, ["N", 64, 64],
          w=rng.normal(size=(64, 64)).astype("f4"))  # fmt: skip
    np.savez("d.npz", x=rng.normal(size=(16, 64, 64)).astype("f4"))


def _left(rng: np.random.Generator) -> None:
    """A product whose weight comes first."""
    saved([h.make_node("MatMul", ["w", "x"], ["y"])], {"x": ["N", 64, 8]}, ["N", 128, 8],
          w=rng.normal(size=(128, 64)).astype("f4"))  # fmt: skip
    np.savez("d.npz", x=rng.normal(size=(16, 64, 8)).astype("f4"))


KINDS = {"conv": _conv, "product": _product, "LSTM": partial(_recurrent, "LSTM"), "GRU": partial(_recurrent, "GRU"),
         "scaled": _scaled, "left": _left}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_what_inspect_names_works(kind: str, cli: Cli, rng: np.random.Generator) -> None:
    KINDS[kind](rng)
    found = cli("inspect", "m.onnx", "--json", "-")
    assert found.code == 0 and found.err == "", found
    estimates = json.loads(found.out)["estimates"]
    commands = [form["by"].split()[1:] for form in estimates["quantize"]["forms"] if "checkpoint" not in form["by"]]
    if suggestion := estimates.get("suggestion"):
        commands.append(suggestion["options"])
    assert commands or kind in ("LSTM", "GRU", "scaled")
    for words in commands:
        options = ["d.npz" if word == "DATA" else word for word in words]
        done = cli("quantize", "m.onnx", *options, "--no-bench", "-o", "out", "--force", "--json", "-")
        assert done.code in (0, 1) and done.err == "", (words, done)
