"""Engines and targets on the command line."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from cli_material import ARCH, SHAPE, Cli
from onnx import helper

from compresskit import runtimes

QUICK = ("--processes", "2", "--rounds", "1", "--no-limits", "--json", "-")
needs_openvino = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="openvino is not installed")


@pytest.fixture
def int8(here: Path) -> Path:
    """``int8.onnx``: the good model with weights of 8 full bits."""
    from compresskit.exporter.int8 import quantize_static_int8

    x = np.load("d.npz")["x"]
    name = onnx.load("m.onnx").graph.input[0].name
    quantize_static_int8(Path("m.onnx"), Path("int8.onnx"), [{name: x}])
    return here


def report(outcome) -> dict:
    assert outcome.code == 0, outcome
    return json.loads(outcome.out)


def values(found: dict, name: str) -> list[float]:
    return [m["value"] for m in found["measurements"] if m["name"] == name]


@needs_openvino
def test_auto_times_every_engine_and_names_one(cli: Cli, here: Path) -> None:
    found = report(cli("bench", "m.onnx", "--runtime", "auto", *QUICK))
    assert [model["name"] for model in found["models"]] == ["m.onnx (onnxruntime)", "m.onnx (openvino)"]
    assert len(values(found, "latency_p50")) == 2 and len(values(found, "speedup")) == 1
    notes = "\n".join(found["notes"])
    assert re.search(r"fastest here.* m\.onnx \((onnxruntime|openvino)\)", notes)
    assert "openvino-bf16, because" in notes
    assert "torch can't run m.onnx" in notes


@needs_openvino
def test_auto_takes_torch_where_the_class_is_given(cli: Cli, here: Path) -> None:
    found = report(cli("bench", "m.pt", *ARCH, *SHAPE, "--runtime", "auto", *QUICK))
    assert [m["runtime"] for m in found["measurements"] if m["name"] == "latency_p50"] == [
        "onnxruntime", "openvino", "torch",
    ]  # fmt: skip


def test_auto_says_what_is_not_installed(cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from compresskit.runtimes.openvino import OpenVino

    lack = "openvino is not installed: pip install 'compresskit[openvino]'"
    monkeypatch.setattr(OpenVino, "missing", lambda self: lack)
    found = report(cli("bench", "m.onnx", "--runtime", "auto", *QUICK))
    assert f"not tried: {lack}" in found["notes"]
    assert any(note.startswith("fastest here: onnxruntime, the only one") for note in found["notes"])


@needs_openvino
def test_auto_says_what_an_engine_cannot_open(cli: Cli, here: Path) -> None:
    node = helper.make_node("CDist", ["x", "x"], ["y"], domain="com.microsoft", metric="euclidean")
    x, y = (helper.make_tensor_value_info(name, 1, [4, 4]) for name in "xy")
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph([node], "g", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), "odd.onnx")
    found = report(cli("bench", "odd.onnx", "--runtime", "auto", *QUICK))
    assert any("odd.onnx (openvino) does not run" in note for note in found["notes"]), found["notes"]


@needs_openvino
@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_quality_is_measured_under_any_engine(cli: Cli, here: Path, runtime: str) -> None:
    found = report(cli("evaluate", "m.onnx", "--data", "d.npz", "--runtime", runtime, "--json", "-"))
    assert values(found, "accuracy") == [100.0]
    assert {m["runtime"] for m in found["measurements"]} == {runtime}


@needs_openvino
def test_engines_are_compared_with_commas(cli: Cli, here: Path) -> None:
    found = report(
        cli("compare", "m.onnx", "bundle", "--data", "d.npz", "--runtime", "onnxruntime,openvino", "--no-bench",
            "--json", "-")
    )  # fmt: skip
    assert [model["name"] for model in found["models"]] == [
        f"{name} ({runtime})" for name in ("m.onnx", "bundle") for runtime in ("onnxruntime", "openvino")
    ]
    assert len(values(found, "accuracy")) == 4


def test_a_target_without_vnni_is_emulated(cli: Cli, int8: Path) -> None:
    from compresskit.benchmark import target

    command = ("evaluate", "int8.onnx", "--data", "d.npz", "--json", "-")
    exact, clipped = (report(cli(*command, "--target", name)) for name in ("x86-vnni", "x86-avx2"))
    (note,) = (n for n in clipped["notes"] if "8-bit products" in n)
    assert re.search(r"can saturate in [12] of 2 layers", note), note
    if not target.here().saturates:
        there, here = (f"{values(found, 'accuracy')[0]:.3f} %" for found in (clipped, exact))
        assert note.endswith(f"accuracy there {there}, here {here}")


def test_clipping_changes_what_is_computed(cli: Cli, int8: Path) -> None:
    command = ("compare", "m.onnx", "int8.onnx", "--data", "d.npz", "--no-bench", "--max-size", "1MB", "--json", "-")
    sqnr = {}
    for name in ("x86-vnni", "x86-avx2", "arm64", "gpu"):
        found = json.loads(cli(*command, "--target", name).out)
        sqnr[name] = values(found, "sqnr")[0]
    assert sqnr["x86-vnni"] == sqnr["arm64"] == sqnr["gpu"] > sqnr["x86-avx2"] + 1


def test_speed_under_another_target_is_said_to_be_this_machines(cli: Cli, int8: Path) -> None:
    from compresskit.benchmark import target

    other = "arm64" if target.here().name != "arm64" else "x86-vnni"
    found = json.loads(cli("compare", "m.onnx", "int8.onnx", "--target", other, "--json", "-").out)
    assert any(note.startswith("the speed was measured on this machine") for note in found["notes"])


def test_a_file_of_seven_bit_weights_is_exact_everywhere(cli: Cli, here: Path) -> None:
    from compresskit.exporter.int8 import Int8Settings, quantize_static_int8

    name = onnx.load("m.onnx").graph.input[0].name
    batches = [{name: np.load("d.npz")["x"]}]
    quantize_static_int8(Path("m.onnx"), Path("int8.onnx"), batches, Int8Settings(reduce_range=True))
    found = report(cli("evaluate", "int8.onnx", "--data", "d.npz", "--target", "x86-avx2", "--json", "-"))
    assert any("exact on every CPU" in note for note in found["notes"])


def test_a_target_that_changes_nothing_is_said(cli: Cli, here: Path) -> None:
    found = report(cli("evaluate", "m.onnx", "--data", "d.npz", "--target", "x86-avx2", "--json", "-"))
    assert any("`target` x86-avx2 changes nothing" in note for note in found["notes"])


EVALUATE = ("evaluate", "m.onnx", "--data", "d.npz")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((*EVALUATE, "--target", "x86-avx"), ("x86-avx", "did you mean x86-avx2")),
        ((*EVALUATE, "--target", "x86-avx2", "--runtime", "openvino"), ("onnxruntime only",)),
        ((*EVALUATE, "--runtime", "auto"), ("bench", "onnxruntime")),
        ((*EVALUATE, "--runtime", "openvin"), ("openvin", "did you mean openvino")),
        (("bench", "m.onnx", "--runtime", "auto", "--runtime", "torch"), ("alone",)),
    ],
)
def test_wrong_engines_and_targets_are_usage_errors(
    cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    monkeypatch.setattr("compresskit.benchmark.target.has_vnni", lambda: True)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    cli(*arguments).refused(2, *words)


def test_a_missing_openvino_is_one_line(cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from compresskit.runtimes.openvino import OpenVino

    monkeypatch.setattr(OpenVino, "missing", lambda self: "openvino is not installed: pip install it")
    cli(*EVALUATE, "--runtime", "openvino").refused(4, "pip install")
    outcome = cli("doctor", "--json", "-")
    assert outcome.code == 0
    found = json.loads(outcome.out)
    assert "pip install" in found["runtimes"]["openvino"]
    assert found["environment"]["target"] in ("x86-vnni", "x86-avx2", "arm64")


@pytest.mark.parametrize("name", [n for n in runtimes.names() if runtimes.get(n).missing()])
def test_a_runtime_that_is_missing_is_named_with_the_way_to_get_it(cli: Cli, here: Path, name: str) -> None:
    outcome = cli("bench", "m.onnx", "--runtime", name, *QUICK)
    assert outcome.code == 4, outcome
    lack = runtimes.get(name).missing()
    assert lack is not None and lack.split(":")[0] in outcome.err and lack.split(": ")[1][:12] in outcome.err


def test_doctor_lists_every_runtime(cli: Cli, here: Path) -> None:
    found = json.loads(cli("doctor", "--json", "-").out)["runtimes"]
    assert found == {name: runtimes.get(name).missing() for name in runtimes.names()}


REQUIRES = ["numpy>=2.0", "absent-one>=1.5", "onnxruntime>=1.31", "absent-two>=3; extra == 'more'",
            "numpy>=2.0; extra == 'some'", "absent-three; extra == 'dev'"]  # fmt: skip


def test_doctor_names_what_the_install_lacks(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.requires", lambda name: REQUIRES)
    outcome = cli("doctor", "--json", "-")
    found = json.loads(outcome.out)
    assert outcome.code == 4
    assert found["packages"] == {"numpy": None, "absent-one": "pip install 'absent-one>=1.5'", "onnxruntime": None}
    assert found["extras"] == {"more": "absent-two: pip install 'compresskit[more]'", "some": None}
    shown = cli("doctor", "--plain").out
    assert "absent-one" in shown and "absent-three" not in shown


def test_doctor_takes_another_build_of_a_package(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime-gpu is another distribution of the same modules."""
    import importlib.metadata as metadata

    real = metadata.version

    def version(name: str) -> str:
        if name == "onnxruntime":
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(metadata, "requires", lambda name: ["onnxruntime>=1.31"])
    assert cli("doctor").code == 0


@pytest.mark.parametrize(("absent", "code"), [
    (("torch", "onnxscript", "torch-pruning"), 0), (("torch", "onnx"), 4), (("onnxscript",), 4),
])  # fmt: skip
def test_doctor_knows_an_install_for_the_edge(
    cli: Cli, root: Path, monkeypatch: pytest.MonkeyPatch, absent: tuple[str, ...], code: int
) -> None:
    """Without torch the commands on ONNX files are what there is, and what these need counts."""
    from compresskit.cli.commands import doctor

    asked = [line.strip() for line in (root / "requirements" / "edge.in").read_text().splitlines() if line[0] != "#"]
    assert set(doctor.EDGE) <= set(asked)
    monkeypatch.setattr(
        "importlib.metadata.requires", lambda name: [*doctor.EDGE, "torch", "onnxscript", "torch-pruning"]
    )
    monkeypatch.setattr(doctor, "_missing", lambda package: package in absent)
    assert cli("doctor", "--json", "-").code == code


def test_doctor_asks_nothing_of_a_copy_without_an_install(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the image for the edge there is no torch, and none is missed."""
    from importlib import metadata

    from compresskit.runtimes.torch import TorchRuntime

    def requires(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", requires)
    monkeypatch.setattr(TorchRuntime, "missing", lambda self: "torch is not installed: pip install torch")
    outcome = cli("doctor", "--json", "-")
    assert outcome.code == 0 and json.loads(outcome.out)["packages"] == {}


def test_auto_tells_of_absent_providers_in_one_line(cli: Cli, here: Path) -> None:
    notes = report(cli("bench", "m.onnx", "--runtime", "auto", *QUICK))["notes"]
    absent = [n for n in runtimes.names() if n.startswith("onnxruntime-") and runtimes.get(n).missing()]
    assert [note for note in notes if "not installed: onnxruntime-" in note] == [
        f"not tried, not installed: {', '.join(absent)}; compresskit doctor says how to get them"
    ] * bool(absent)


def test_torch_without_a_compiler_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert "no C++ compiler" in (runtimes.get("torch-compile").missing() or "")
    assert runtimes.get("torch").missing() is None
