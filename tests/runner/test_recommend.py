from pathlib import Path

import pytest

from compresskit.errors import InputError
from compresskit.report import Measurement
from compresskit.runner import recommend
from compresskit.runner.candidate import Candidate
from compresskit.runtimes import get, names


def candidates(*runtimes):
    return [Candidate(f"m ({name})", Path("m.onnx"), "m.onnx", runtime=name) for name in runtimes]


def timed(latencies, speedups=()):
    found = [Measurement(model=f"m ({name})", name="latency_p50", value=ms, unit="ms") for name, ms in latencies]
    for name, value, low, high in speedups:
        found.append(Measurement(model=f"m ({name})", name="speedup", value=value, unit="×", n=7, low=low, high=high))
    return found


def test_the_fastest_is_named_with_its_interval():
    models = candidates("onnxruntime", "openvino", "torch")
    measured = timed(
        [("onnxruntime", 2.4), ("openvino", 1.0), ("torch", 9.0)],
        [("openvino", 2.4, 2.3, 2.5), ("torch", 0.27, 0.26, 0.28)],
    )
    (note,) = recommend.recommendation(models, measured)
    assert note == "fastest here: m (openvino) 2.40× m (onnxruntime) (95 % interval 2.30 to 2.50)"


def test_what_noise_hides_is_not_called_faster():
    measured = timed([("onnxruntime", 1.1), ("openvino", 1.0)], [("openvino", 1.1, 0.8, 1.5)])
    (note,) = recommend.recommendation(candidates("onnxruntime", "openvino"), measured)
    assert note.startswith("fastest here, but not significant: m (openvino)")


@pytest.mark.parametrize(("high", "words"), [(0.52, ""), (1.2, "not all others")])
def test_the_first_may_be_the_fastest(high, words):
    measured = timed([("onnxruntime", 1.0), ("openvino", 2.0)], [("openvino", 0.5, 0.48, high)])
    (note,) = recommend.recommendation(candidates("onnxruntime", "openvino"), measured)
    assert note.startswith("fastest here: m (onnxruntime)") and words in note
    assert bool(words) == (";" in note)


def test_one_alone_is_said_to_be_alone():
    (note,) = recommend.recommendation(candidates("openvino"), timed([("openvino", 2.0)]))
    assert "openvino, the only one" in note


def test_runtimes_that_change_the_arithmetic_or_are_missing_are_named(monkeypatch):
    from compresskit.runtimes.onnxruntime import OnnxRuntime
    from compresskit.runtimes.openvino import OpenVino
    from compresskit.runtimes.torch import TorchRuntime

    monkeypatch.setattr(OpenVino, "missing", lambda self: None)
    monkeypatch.setattr(TorchRuntime, "missing", lambda self: None)
    monkeypatch.setattr(OnnxRuntime, "missing", lambda self: self.name if self.provider else None)
    found, notes = recommend.everywhere()
    absent = [name for name in names() if name.startswith("onnxruntime-")]
    assert [name for name in names() if name not in found] == ["openvino-bf16", "torch-compile", *absent]
    rounded, compiled, providers = notes
    assert "bfloat16" in rounded and "compiles in each process" in compiled
    assert all(name in providers for name in absent) and "doctor" in providers
    monkeypatch.setattr(OpenVino, "missing", lambda self: "openvino is not installed: pip install it")
    found, notes = recommend.everywhere()
    assert "openvino" not in found and notes[0] == "not tried: openvino is not installed: pip install it"
    assert all(get(name).missing() is None for name in found)


def test_a_file_that_nothing_opens_is_an_input_error(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(InputError, match=r"m \(onnxruntime\) does not run"):
        recommend.able([Candidate("m (onnxruntime)", path, "m.onnx")], batch=1, sequence=8)
