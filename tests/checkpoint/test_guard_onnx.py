"""ONNX files that lie, reach out of their folder, or ask for more memory than they have bytes."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compresskit.checkpoint.guard import check_onnx
from compresskit.checkpoint.load import load
from compresskit.errors import InputError
from compresskit.model import InputSpec

X = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])
Y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])
WEIGHT = numpy_helper.from_array(np.ones((4, 2), np.float32), "w")


def model(nodes: Any = None, initializers: Any = (WEIGHT,), opset: int = 20, domains: Any = ()) -> onnx.ModelProto:
    nodes = nodes or [helper.make_node("MatMul", ["x", "w"], ["y"])]
    graph = helper.make_graph(nodes, "g", [X], [Y], list(initializers))
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=imports)


def raw(name: str, dims: list[int], data: bytes = b"", kind: int = TensorProto.FLOAT) -> onnx.TensorProto:
    return onnx.TensorProto(name=name, dims=dims, data_type=kind, raw_data=data)


def write(path: Path, content: onnx.ModelProto) -> Path:
    path.write_bytes(content.SerializeToString())
    return path


def node(op: str, inputs: list[str], domain: str = "") -> list[onnx.NodeProto]:
    return [helper.make_node(op, inputs, ["t"], domain=domain), helper.make_node("MatMul", ["x", "t"], ["y"])]


HUGE = numpy_helper.from_array(np.array([1 << 14, 1 << 14], np.int64), "s")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (model(opset=999), "opset 999"),
        (model(domains=["evil"]), "operator set 'evil'"),
        (model(node("Run", ["w"], "evil")), "'evil::Run'"),
        (model(initializers=[raw("w", [1 << 28])]), "which is 1073741824 bytes; the file holds 0"),
        (model(initializers=[raw("w", [4, 2], bytes(31))]), "which is 32 bytes; the file holds 31"),
        (model(initializers=[raw("w", [-4, -2], bytes(32))]), "has the shape"),
        (model(initializers=[raw("w", [1], b"", 99)]), "data type 99"),
        (model(node("ConstantOfShape", ["s"]), [HUGE]), "would make a tensor of 1073741824 bytes"),
        (model(node("Expand", ["w", "s"]), [WEIGHT, HUGE]), "would make a tensor"),
        (model(node("Tile", ["w", "s"]), [WEIGHT, HUGE]), "would make a tensor"),
    ],
)
def test_refused(tmp_path: Path, content: onnx.ModelProto, said: str) -> None:
    path = write(tmp_path / "m.onnx", content)
    with pytest.raises(InputError, match=re.escape(said)):
        check_onnx(path)


def test_a_tensor_in_a_subgraph_is_checked_too(tmp_path: Path) -> None:
    inner = helper.make_graph([helper.make_node("Identity", ["w2"], ["y"])], "then", [], [Y], [raw("w2", [1 << 28])])
    branch = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    condition = numpy_helper.from_array(np.array(True), "c")
    with pytest.raises(InputError, match="its tensor 'w2' declares"):
        check_onnx(write(tmp_path / "m.onnx", model([branch], [condition])))


@pytest.mark.parametrize("content", [b"", b"hello, this is text\n" * 9, b"\x08\x07", bytes(64)])
def test_not_an_onnx_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(InputError):
        check_onnx(path)


def test_every_truncation_is_found_or_still_whole(tmp_path: Path) -> None:
    whole = model().SerializeToString()
    path = tmp_path / "m.onnx"
    for size in range(1, len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError):
            check_onnx(path)


def external(tmp_path: Path, location: str, size: int = 32, **entries: int) -> Path:
    tensor = onnx.TensorProto(name="w", dims=[4, 2], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    folder = tmp_path / "in"
    folder.mkdir(exist_ok=True)
    for place in (folder / "w.data", tmp_path / "outside"):
        place.write_bytes(bytes(size))
    return write(folder / "m.onnx", model(initializers=[tensor]))


def test_external_data_inside_the_folder(tmp_path: Path) -> None:
    check_onnx(external(tmp_path, "w.data", length=32, offset=0))


@pytest.mark.parametrize(
    ("location", "entries", "said"),
    [
        ("../outside", {}, "not a path inside"),
        ("/etc/passwd", {}, "not a path inside"),
        ("C:\\x", {}, "not a path inside"),
        ("none", {}, "is not in"),
        ("", {}, "not a path inside"),
        ("w.data", {"offset": 8}, "the file has 32"),
        ("w.data", {"offset": -8}, "the file has 32"),
        ("w.data", {"length": 1 << 40}, "declares 32 bytes"),
    ],
)
def test_external_data_elsewhere(tmp_path: Path, location: str, entries: dict[str, int], said: str) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        check_onnx(external(tmp_path, location, **entries))


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
@pytest.mark.parametrize("kind", ["symbolic", "hard"])
def test_external_data_behind_a_link(tmp_path: Path, kind: str) -> None:
    path = external(tmp_path, "w.data")
    link = path.parent / "w.data"
    link.unlink()
    target = path.parent / "real" if kind == "symbolic" else tmp_path / "outside"
    (path.parent / "real").write_bytes(bytes(32))
    (link.symlink_to if kind == "symbolic" else link.hardlink_to)(target)
    with pytest.raises(InputError, match="link"):
        check_onnx(path)


def test_inputs_are_read_from_the_graph(tmp_path: Path) -> None:
    table = numpy_helper.from_array(np.ones((50, 4), np.float32), "table")
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["b", "seq_len"])
    mask = helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["b", "other"])
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT16, [1, 3, "h"])
    nodes = [helper.make_node("Identity", ["input_ids"], ["i"]), helper.make_node("Gather", ["table", "i"], ["y"])]
    graph = helper.make_graph(nodes, "g", [ids, mask, image, X], [Y], [table])
    loaded = load(write(tmp_path / "m.onnx", helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])))
    assert loaded.body == tmp_path / "m.onnx" and loaded.card.arch.kind == "onnx"
    assert loaded.card.inputs == (
        InputSpec("input_ids", "int64", ("batch", "sequence"), 50),
        InputSpec("attention_mask", "int64", ("batch", "other"), 2),
        InputSpec("image", "float16", (1, 3, "h")),
        InputSpec("x", "float32", ("batch", 4)),
    )


def test_typed_fields_and_small_integers_pass(tmp_path: Path) -> None:
    tensors = [
        helper.make_tensor("w", TensorProto.FLOAT, [4, 2], [1.0] * 8),
        helper.make_tensor("h", TensorProto.FLOAT16, [3], [1.0] * 3),
        helper.make_tensor("q", TensorProto.UINT4, [5], [1, 2, 3, 4, 5]),
        helper.make_tensor("i", TensorProto.INT8, [2], [1, 2]),
        helper.make_tensor("s", TensorProto.STRING, [1], [b"x"]),
        helper.make_tensor("c", TensorProto.COMPLEX64, [2], [1 + 1j, 2]),
        helper.make_tensor("e", TensorProto.FLOAT, [0], []),
    ]
    check_onnx(write(tmp_path / "m.onnx", model(initializers=tensors)))


def test_nan_is_named_unless_allowed(tmp_path: Path) -> None:
    bad = numpy_helper.from_array(np.array([[np.nan] * 2] * 4, np.float32), "w")
    mask = numpy_helper.from_array(np.array([-np.inf], np.float32), "mask")
    path = write(tmp_path / "m.onnx", model(initializers=[bad, mask]))
    with pytest.raises(InputError, match="NaN values in 'w'"):
        load(path)
    assert load(path, allow_nonfinite=True).body == path
