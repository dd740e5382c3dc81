"""8 bit of ONNX files that nobody here wrote: of every age, width and form, or one clear line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto as T
from onnx import helper as h
from onnx import numpy_helper as nh

from compresskit.errors import InputError
from compresskit.exporter.dynamic import quantize_dynamic_int8
from compresskit.exporter.int8 import quantize_static_int8
from compresskit.runtimes.saturating import SaturatingOnnxRuntime

EXACT = SaturatingOnnxRuntime(clips=False)  # whatever this machine's products do
IMAGES = {"x": np.random.default_rng(1).normal(size=(8, 3, 8, 8)).astype("f4")}
ROWS = {"x": np.random.default_rng(1).normal(size=(8, 32)).astype("f4")}


def weights(**shapes: tuple[int, ...]) -> list[onnx.TensorProto]:
    rng = np.random.default_rng(0)
    return [nh.from_array((rng.normal(size=s) / 4).astype("f4"), name) for name, s in shapes.items()]


def conv_net(opset: int, ir: int) -> onnx.ModelProto:
    """A small classifier in the form of its time: Clip and Squeeze took attributes before they took inputs, and up to
    IR version 3 initializers were inputs too."""
    stored = weights(conv=(8, 3, 3, 3), bias=(8,), fc=(5, 8), fc_bias=(5,))
    clip, squeeze = (["c"], {"min": 0.0, "max": 6.0}), (["p"], {"axes": [2, 3]})
    if opset >= 11:
        stored += [nh.from_array(np.float32(0), "low"), nh.from_array(np.float32(6), "high")]
        clip = (["c", "low", "high"], {})
    if opset >= 13:
        stored.append(nh.from_array(np.array([2, 3]), "axes"))
        squeeze = (["p", "axes"], {})
    nodes = [
        h.make_node("Conv", ["x", "conv", "bias"], ["c"], pads=[1] * 4),
        h.make_node("Clip", clip[0], ["r"], **clip[1]),
        h.make_node("GlobalAveragePool", ["r"], ["p"]),
        h.make_node("Squeeze", squeeze[0], ["f"], **squeeze[1]),
        h.make_node("Gemm", ["f", "fc", "fc_bias"], ["y"], transB=1),
    ]
    return model(nodes, ("x", T.FLOAT, ["N", 3, 8, 8]), ("y", T.FLOAT, ["N", 5]), stored, opset=opset, ir=ir)


def model(
    nodes: list[onnx.NodeProto], source: tuple[Any, ...], out: tuple[Any, ...], stored: list[onnx.TensorProto], *,
    opset: int = 17, ir: int = 8,
) -> onnx.ModelProto:  # fmt: skip
    inputs = [h.make_tensor_value_info(*source)]
    if ir < 4:
        inputs += [h.make_tensor_value_info(t.name, t.data_type, t.dims) for t in stored]
    graph = h.make_graph(nodes, "g", inputs, [h.make_tensor_value_info(*out)], stored)
    made = h.make_model(graph, opset_imports=[h.make_opsetid("", opset)], ir_version=ir)
    onnx.checker.check_model(made)
    return made


def product(kind: int = T.FLOAT, dtype: str = "f4", **form: int) -> onnx.ModelProto:
    weight = nh.from_array(np.random.default_rng(0).normal(size=(32, 64)).astype(dtype), "w")
    node = h.make_node("MatMul", ["x", "w"], ["y"])
    return model([node], ("x", kind, ["N", 32]), ("y", kind, ["N", 64]), [weight], **form)


def apart(one: Path, other: Path, feeds: dict[str, np.ndarray]) -> float:
    a, b = (next(iter(EXACT.open(path).run(feeds).values())) for path in (one, other))
    assert a.dtype == b.dtype
    return float(np.linalg.norm(a.astype("f8") - b) / np.linalg.norm(a.astype("f8")))


def static(source: Path, feeds: dict[str, np.ndarray]) -> dict[str, Any]:
    return quantize_static_int8(source, source.with_name("q.onnx"), [feeds])


def dynamic(source: Path, feeds: dict[str, np.ndarray]) -> dict[str, Any]:
    return quantize_dynamic_int8(source, source.with_name("q.onnx"))


METHODS = pytest.mark.parametrize("method", [static, dynamic])
OLDEST_IR = {7: 3, 8: 3, 9: 4, 10: 5, 11: 6, 12: 7, 13: 7, 14: 7, 15: 8, 16: 8, 17: 8, 18: 8, 19: 9, 20: 9, 21: 10,
             22: 10, 23: 11, 24: 12}  # fmt: skip


@pytest.mark.parametrize(
    ("opset", "ir"), [*OLDEST_IR.items(), *((9, ir) for ir in range(3, 13)), *((17, ir) for ir in range(3, 13))]
)
def test_files_of_every_age(opset: int, ir: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    onnx.save(conv_net(opset, ir), tmp_path / "m.onnx")
    before = (tmp_path / "m.onnx").read_bytes()
    capfd.readouterr()
    facts = static(tmp_path / "m.onnx", IMAGES)
    assert capfd.readouterr() == ("", "")
    assert facts["layers"].keys() == {"conv", "fc"} and facts["samples"] == 8
    assert any(f"opset {opset} was raised" in note for note in facts["notes"]) is (opset < 13)
    assert apart(tmp_path / "m.onnx", tmp_path / "q.onnx", IMAGES) < 0.03
    assert [v.name for v in onnx.load(tmp_path / "q.onnx").graph.input] == ["x"]
    assert (tmp_path / "m.onnx").read_bytes() == before
    assert dynamic(tmp_path / "m.onnx", IMAGES)["layers"].keys() == {"fc"}
    assert apart(tmp_path / "m.onnx", tmp_path / "q.onnx", IMAGES) < 0.03


@METHODS
def test_no_warning_of_onnxruntime_reaches_the_terminal(
    method: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made = conv_net(17, 8)
    made.graph.output[0].CopyFrom(h.make_tensor_value_info("y", T.FLOAT, ["N", 7]))  # it has 5 columns
    onnx.save(made, tmp_path / "m.onnx")
    onnxruntime.set_default_logger_severity(2)  # as in a process that has just begun
    capfd.readouterr()
    method(tmp_path / "m.onnx", IMAGES)
    assert capfd.readouterr() == ("", "")


@METHODS
def test_external_data_come_in_and_go_out(method: Any, tmp_path: Path) -> None:
    for place in ("inside", "beside"):
        (tmp_path / place).mkdir()
    onnx.save(product(), tmp_path / "inside" / "m.onnx")
    onnx.save_model(
        product(), tmp_path / "beside" / "m.onnx", save_as_external_data=True, location="w.data", size_threshold=0
    )
    for place in ("inside", "beside"):
        assert method(tmp_path / place / "m.onnx", ROWS)["layers"].keys() == {"w"}
    inside, beside = (tmp_path / place / "q.onnx" for place in ("inside", "beside"))
    assert inside.read_bytes() == beside.read_bytes(), "small weights are in the file, wherever they lay"
    kind = quantize_static_int8 if method is static else quantize_dynamic_int8
    more: tuple[Any, ...] = ([ROWS],) if method is static else ()
    (tmp_path / "out").mkdir()
    kind(tmp_path / "beside" / "m.onnx", tmp_path / "out" / "q.onnx", *more, data_above=1024)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["q.onnx", "q.onnx.data"]
    assert apart(tmp_path / "out" / "q.onnx", inside, ROWS) == 0


@pytest.mark.parametrize(("kind", "dtype"), [(T.DOUBLE, "f8"), (T.FLOAT16, "f2")])
@METHODS
def test_other_widths_compute_in_float32_behind_their_own_interface(
    kind: int, dtype: str, method: Any, tmp_path: Path
) -> None:
    onnx.save(product(kind, dtype), tmp_path / "m.onnx")
    feeds = {"x": ROWS["x"].astype(dtype)}
    facts = method(tmp_path / "m.onnx", feeds)
    assert facts["layers"].keys() == {"w"}
    assert f"float{np.dtype(dtype).itemsize * 8}" in facts["notes"][0]
    assert apart(tmp_path / "m.onnx", tmp_path / "q.onnx", feeds) < 0.03


def test_what_float32_cannot_hold_is_refused(tmp_path: Path) -> None:
    made = product(T.DOUBLE, "f8")
    made.graph.initializer[0].CopyFrom(nh.from_array(np.full((32, 64), 1e300), "w"))
    onnx.save(made, tmp_path / "m.onnx")
    with pytest.raises(InputError, match="computes something else in float32"):
        static(tmp_path / "m.onnx", {"x": ROWS["x"].astype("f8")})


@METHODS
def test_what_is_quantized_is_not_quantized_again(method: Any, tmp_path: Path) -> None:
    onnx.save(product(), tmp_path / "m.onnx")
    for first in (static, dynamic):
        first(tmp_path / "m.onnx", ROWS)
        (tmp_path / "q.onnx").replace(tmp_path / "once.onnx")
        with pytest.raises(InputError, match="is quantized already"):
            method(tmp_path / "once.onnx", ROWS)
        assert not (tmp_path / "q.onnx").exists()


@METHODS
@pytest.mark.parametrize(
    "made", ["_quantized", "_scale", "_zero_point", "_QuantizeLinear_Output", "_DequantizeLinear_Output"]
)
def test_names_that_the_quantizer_would_take_are_no_trouble(made: str, method: Any, tmp_path: Path) -> None:
    """Of a value inside, of a weight, of the output: each is the companion that another value would get."""
    nodes = [
        h.make_node("MatMul", ["x", "w"], [f"x{made}"]),
        h.make_node("Mul", [f"x{made}", f"w{made}"], ["h"]),
        h.make_node("MatMul", ["h", "v"], [f"h{made}"]),
    ]
    stored = weights(w=(32, 64), v=(64, 16), **{f"w{made}": (64,)})
    out = (f"h{made}", T.FLOAT, ["N", 16])
    onnx.save(model(nodes, ("x", T.FLOAT, ["N", 32]), out, stored), tmp_path / "m.onnx")
    facts = method(tmp_path / "m.onnx", ROWS)
    assert facts["layers"].keys() == {"w", "v"}
    assert apart(tmp_path / "m.onnx", tmp_path / "q.onnx", ROWS) < 0.05
    assert [v.name for v in onnx.load(tmp_path / "q.onnx").graph.output] == [f"h{made}"]
