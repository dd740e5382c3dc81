"""Exit code 1 is for a missed gate, and for nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_material import ARCH, SHAPE, Cli

from compresskit.report import Report, Verdict

FOUR = ("quantize", "m.pt", *ARCH, *SHAPE, "--bits", "4", "--no-bench", "-o", "out")
COMPARE = ("compare", "m.onnx", "bundle", "--no-bench")
BARE = ("quantize", "m.pt", "--bits", "4", "-o", "out")

CASES = {
    "size missed": ((*BARE, "--max-size", "1KB"), 1, Verdict.FAIL),
    "size kept": ((*BARE, "--max-size", "1MB"), 0, Verdict.UNVERIFIED),
    "compare, size missed": ((*COMPARE, "--max-size", "1KB"), 1, Verdict.FAIL),
    "compare, nothing to verify with": (COMPARE, 0, Verdict.UNVERIFIED),
    "compare, no drop": ((*COMPARE, "--data", "d.npz", "--max-drop", "0pt"), 0, Verdict.PASS),
    "compare, broken": (("compare", "m.onnx", "broken.onnx", "--no-bench", "--data", "d.npz"), 1, Verdict.FAIL),
    "compare, broken within limits": (
        ("compare", "m.onnx", "broken.onnx", "--no-bench", "--data", "d.npz", "--max-drop", "100pt"), 0, Verdict.PASS),
    "compare, nan": (("compare", "m.onnx", "nan.onnx", "--no-bench", "--allow-nonfinite"), 1, Verdict.FAIL),
    "compare, larger": (("compare", "bundle", "m.onnx", "--no-bench", "--data", "d.npz"), 1, Verdict.FAIL),
    "far too fast": (
        ("bench", "m.onnx", "bundle", "--min-speedup", "1000", "--no-limits", "--processes", "2", "--rounds", "2"),
        1, Verdict.FAIL,
    ),
    "evaluate judges nothing": (("evaluate", "broken.onnx", "--data", "d.npz"), 0, Verdict.UNVERIFIED),
}  # fmt: skip


@pytest.fixture
def broken(here: Path) -> None:
    """Two files beside the good one: wrong weights, and NaN in them."""
    import numpy as np
    import onnx
    from onnx import numpy_helper

    for name, value in (("broken", 0.0), ("nan", np.nan)):
        model = onnx.load("m.onnx")
        for tensor in model.graph.initializer:
            array = numpy_helper.to_array(tensor)
            if array.ndim == 2:
                tensor.CopyFrom(numpy_helper.from_array(np.full_like(array, value), tensor.name))
        onnx.save(model, f"{name}.onnx")


@pytest.mark.usefixtures("broken")
@pytest.mark.parametrize("case", CASES)
def test_the_exit_code_says_whether_the_gates_held(cli: Cli, case: str) -> None:
    words, code, verdict = CASES[case]
    found = cli(*words, "--json", "-")
    report = Report.model_validate_json(found.out)
    assert (found.code, report.verdict, found.err) == (code, verdict, ""), report.gates
    assert any(gate.passed is False for gate in report.gates) == (code == 1)


@pytest.mark.usefixtures("here")
def test_what_missed_a_gate_is_written_all_the_same(cli: Cli) -> None:
    found = cli(*FOUR, "--max-size", "100B")
    assert found.code == 1 and found.out.startswith("FAIL") and "failed" in found.out and found.err == ""
    assert Report.model_validate_json(Path("out/report.json").read_bytes()).verdict is Verdict.FAIL


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(("asked", "code"), [(("--min-speedup", "1.0"), 1), ((), 0)])
def test_an_unproven_limit_fails_only_when_it_was_asked_for(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, asked: tuple[str, ...], code: int
) -> None:
    """A machine too noisy to decide, made up: the interval of the ratio holds 1."""
    _timed(monkeypatch, 1.0, 0.5, 2.0)
    found = cli("compare", "m.onnx", "bundle", "--data", "d.npz", *asked, "--json", "-")
    report = Report.model_validate_json(found.out)
    assert (found.code, report.verdict) == (code, Verdict.INCONCLUSIVE)


@pytest.mark.usefixtures("here")
def test_weights_of_few_bits_need_only_be_as_fast(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    _timed(monkeypatch, 0.96, 0.93, 0.98)
    found = cli("compare", "m.onnx", "bundle", "--data", "d.npz", "--json", "-")
    report = Report.model_validate_json(found.out)
    speed = next(gate for gate in report.gates if gate.name == "speed")
    assert (found.code, report.verdict) == (0, Verdict.PASS) and speed.limit == "as fast within 10 %"
    found = cli("compare", "bundle", "bundle", "--data", "d.npz", "--json", "-")
    assert all(gate.limit != speed.limit for gate in Report.model_validate_json(found.out).gates)


def _timed(monkeypatch: pytest.MonkeyPatch, value: float, low: float, high: float) -> None:
    """Any bench gives this ratio."""
    from compresskit.report import Measurement
    from compresskit.runner import judging
    from compresskit.runner.timing import Speed

    ratio = Measurement(model="bundle", name="speedup", value=value, unit="×", n=7, low=low, high=high)
    ratio = ratio.model_copy(update={"runtime": "onnxruntime", "batch": 1})
    monkeypatch.setattr(judging, "speed", lambda *_, **__: Speed([ratio]))


@pytest.mark.usefixtures("untouched")
def test_a_failed_parity_gate_writes_nothing(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from compresskit.exporter import checked
    from compresskit.exporter.parity import Parity

    monkeypatch.setattr(checked, "parity", lambda *_, **__: Parity(0.5, 0.5, 32, False, "output"))
    for words in (FOUR, ("export", "m.pt", *ARCH, *SHAPE, "-o", "out.onnx")):
        cli(*words).refused(1, "differs")
