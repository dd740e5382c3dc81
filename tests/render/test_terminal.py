from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from compresskit.render.console import make_console
from compresskit.render.terminal import print_report
from compresskit.report import Coverage, Gate, Measurement, ModelEntry, Report, Verdict

LONG = "a/very/long/folder/of/checkpoints/that/goes/on/and/on/resnet20_with_a_name_that_is_long_as_well.safetensors"
HOSTILE = "evil[bold red]\x1b[31m\x07\r\n\u202e:smile:.pt"


def draw(report: Report, width: int = 80, output: str = "") -> str:
    stream = io.StringIO()
    print_report(report, make_console(stream, width=width), output=output)
    return stream.getvalue()


def coloured(report: Report) -> str:
    stream = io.StringIO()
    console = Console(
        file=stream, width=80, force_terminal=True, color_system="standard", no_color=False, markup=False,
        emoji=False, highlight=False,
    )  # fmt: skip
    print_report(report, console)
    return stream.getvalue()


def letters(text: str) -> str:
    """Text without what wrapping may add."""
    return re.sub(r"\s", "", text)


def entry(name: str, path: str = "m.onnx", size: int = 1000) -> ModelEntry:
    return ModelEntry(name=name, path=path, bytes=size, sha256="0" * 64)


def test_the_verdict_comes_first_with_the_figures_that_matter(report: Report) -> None:
    first = draw(report, output="out/").splitlines()[0]
    assert first == "PASS  resnet20.th → out/  3.8× smaller, 2.1× faster, accuracy 91.72 % (+0.02)"


def test_the_table_has_every_figure(report: Report) -> None:
    text = draw(report)
    for figure in (
        "1.09 MB",
        "290 kB",
        "3.8×",
        "91.72 %",
        "(+0.02)",
        "cosine 0.9991",
        "0.200 ms",
        "2.05× [1.90, 2.20]",
    ):
        assert figure in text or letters(figure) in letters(text), figure


@pytest.mark.parametrize(
    ("verdict", "code"),
    [(Verdict.PASS, "32"), (Verdict.FAIL, "31"), (Verdict.INCONCLUSIVE, "33"), (Verdict.UNVERIFIED, "33")],
)
def test_the_verdict_is_coloured_on_a_terminal(report: Report, verdict: Verdict, code: str) -> None:
    assert coloured(report.model_copy(update={"verdict": verdict})).startswith(f"\x1b[1;{code}m{verdict.value}\x1b[0m")


def test_a_failed_gate_is_red(report: Report) -> None:
    gates = [Gate(name="max-drop", limit="0.5pt", value=3.2, passed=False, asked=True)]
    text = coloured(report.model_copy(update={"gates": gates, "verdict": Verdict.FAIL}))
    assert re.search(r"\x1b\[1;31mfailed", text)
    assert "max-drop: 3.2, limit 0.5pt" in text


@pytest.mark.parametrize("no_color", [None, "1"])
def test_no_escape_codes_when_not_a_terminal(
    report: Report, no_color: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if no_color:
        monkeypatch.setenv("NO_COLOR", no_color)
    assert "\x1b" not in draw(report)


def test_no_color_is_obeyed_on_a_terminal(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    stream = Terminal()
    print_report(report, make_console(stream, width=80))
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]", stream.getvalue())


def big_report() -> Report:
    measurements = []
    for name in ("original", LONG, "int8"):
        measurements.append(Measurement(model=name, name="accuracy", value=91.7, unit="%"))
        for runtime in ("onnxruntime", "torch"):
            for batch in (1, 8):
                for figure, value in (("latency_p50", 12.3), ("latency_p95", 13.0), ("latency_p99", 133.0)):
                    measurements.append(Measurement(model=name, name=figure, value=value, runtime=runtime, batch=batch))
                measurements.append(
                    Measurement(model=name, name="speedup", value=1.5, low=1.4, high=1.6, runtime=runtime, batch=batch)
                )
            measurements.append(Measurement(model=name, name="peak_memory", value=1.5e8, runtime=runtime))
    return Report(
        command="bench",
        verdict=Verdict.INCONCLUSIVE,
        models=[entry("original", size=9_000_000), entry(LONG, LONG, 20_000_000), entry("int8", size=3_000_000)],
        measurements=measurements,
        gates=[Gate(name="min-speedup", limit="1.1×", value=None, passed=None, reason="too noisy: " + LONG)],
        coverage=Coverage(done={LONG: "int8"}, skipped={LONG: LONG}),
        notes=[LONG, "words and words " * 20],
    )


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_nothing_is_wider_than_the_terminal(width: int) -> None:
    lines = draw(big_report(), width, output=LONG).splitlines()
    assert max(len(line) for line in lines) <= width


@pytest.mark.parametrize("width", [80, 60])
def test_nothing_is_cut(width: int) -> None:
    """Every name, path and reason is there in full, if over several lines."""
    text = letters(draw(big_report(), width, output=LONG))
    assert text.count(letters(LONG)) >= 4  # reason of the gate, layer's reason, note, output
    assert "10.00x" not in text
    for figure in ("onnxruntime,batch1", "torch,batch8", "150MB", "[1.40,1.60]", "2.2×bigger"):
        assert figure in text, figure


@pytest.mark.parametrize("where", ["model", "path", "gate", "reason", "note", "layer", "metric", "output"])
def test_text_from_files_is_neither_markup_nor_control(where: str) -> None:
    name = HOSTILE if where == "model" else "base"
    report = Report(
        command="quantize",
        verdict=Verdict.PASS,
        models=[entry(name, HOSTILE if where == "path" else "base.pt")],
        measurements=[Measurement(model=name, name=HOSTILE if where == "metric" else "accuracy", value=1.5)],
        gates=[Gate(name=HOSTILE if where == "gate" else "size", limit="1", value=1.0, passed=True)],
        coverage=Coverage(skipped={HOSTILE if where == "layer" else "x": HOSTILE if where == "reason" else "y"}),
        notes=[HOSTILE if where == "note" else "none"],
    )
    text = draw(report, 200, HOSTILE if where == "output" else "")
    assert r"evil[bold red]\x1b[31m\x07\r\n\u202e:smile:.pt" in text
    assert not re.search(r"[\x00-\x09\x0b-\x1f\u202e]", text)


def test_skipped_layers_are_counted_by_reason(report: Report) -> None:
    text = draw(report)
    assert "20 layers changed: 19 int8, 1 int4 group 32" in text
    assert "9 layers unchanged (has no weight matrix): 'norm0', 'norm1', 'norm2' and 6" in text
    assert "1 layer unchanged (excluded by a pattern): 'head'" in text


def test_layers_are_counted_by_type_and_bits(report: Report) -> None:
    done = {
        **{f"c{i}": "Conv2d 4 bit, group 32" for i in range(3)},
        "fc": "Linear 4 bit, group 32",
        "e": "Embedding, half",
    }
    text = draw(report.model_copy(update={"coverage": Coverage(done=done)}))
    assert "5 layers changed: 1 Embedding, half, 3 Conv2d and 1 Linear at 4 bit, group 32" in text
    done = {"a": "matrix 4 bit, group 32", "b": "matrix 4 bit, group 32", "c": "kernel 8 bit"}
    text = draw(report.model_copy(update={"coverage": Coverage(done=done)}))
    assert "3 layers changed: 2 matrices at 4 bit, group 32, 1 kernel at 8 bit" in text


def test_the_model_that_others_are_held_against_is_not_counted(report: Report) -> None:
    models = [ModelEntry(name=name, path=name, bytes=1, sha256="0") for name in ("digits.pt", "int8", "int4")]
    assert "2 models against digits.pt" in draw(report.model_copy(update={"models": models}))
    models = [ModelEntry(name=f"m ({name})", path="m", bytes=1, sha256="0") for name in ("ort", "torch", "openvino")]
    assert "2 models against m (ort)" in draw(report.model_copy(update={"models": models}))


def test_many_reasons_are_counted_not_dropped(report: Report) -> None:
    skipped = {f"layer{i}": f"reason {i}" for i in range(30)}
    text = draw(report.model_copy(update={"coverage": Coverage(skipped=skipped)}))
    assert "24 layers unchanged for other reasons: see report.json" in text


def test_unverified_says_what_would_prove_it(report: Report) -> None:
    unverified = report.model_copy(update={"verdict": Verdict.UNVERIFIED})
    assert "--eval-data" in draw(unverified)
    assert "give --data with labels" in draw(unverified.model_copy(update={"command": "compare"}))


def test_slower_and_bigger_are_said_so() -> None:
    report = Report(
        command="quantize",
        verdict=Verdict.FAIL,
        models=[entry("a", "a.pt", 1000), entry("b", "b.onnx", 2000)],
        measurements=[Measurement(model="b", name="speedup", value=0.5, low=0.45, high=0.55)],
    )
    assert draw(report).splitlines()[0] == "FAIL  a.pt → b.onnx  2.0× bigger, 2.0× SLOWER"


@pytest.mark.parametrize(
    ("low", "high", "said"), [(0.98, 1.03, "as fast"), (0.9, 1.2, "speed unclear"), (1.02, 1.06, "1.04× faster")]
)
def test_a_speedup_whose_interval_holds_one_is_no_speedup(low: float, high: float, said: str) -> None:
    speedup = Measurement(model="b", name="speedup", value=1.04, low=low, high=high)
    report = Report(
        command="quantize", verdict=Verdict.PASS, models=[entry("a"), entry("b")], measurements=[speedup]
    )  # fmt: skip
    assert said in draw(report).splitlines()[0]


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_stream_that_lacks_the_characters_gets_stand_ins(report: Report, encoding: str) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, newline="\n")
    print_report(report, make_console(stream, width=80), output="out/")
    stream.flush()
    assert raw.getvalue().decode(encoding).startswith("PASS  resnet20.th -> out/")


def test_a_report_without_models_or_figures_is_drawn() -> None:
    assert draw(Report(command="doctor", verdict=Verdict.PASS, models=[])).strip() == "PASS  doctor"
    empty = Report(command="evaluate", verdict=Verdict.PASS, models=[entry("a", "a.pt", 0), entry("b", "b.pt", 0)])
    assert "a.pt" in draw(empty)


def test_figures_without_limits_are_called_measured() -> None:
    report = Report(command="compresskit bench", verdict=Verdict.UNVERIFIED, models=[entry("a"), entry("b")])
    assert draw(report).splitlines()[0].startswith("MEASURED")
    assert "--eval-data" not in draw(report)


def test_one_file_under_two_runtimes_is_told_apart_by_name() -> None:
    models = [
        ModelEntry(name=f"a ({engine})", path="a.onnx", bytes=10, sha256="0") for engine in ("onnxruntime", "torch")
    ]
    report = Report(command="compresskit bench", verdict=Verdict.UNVERIFIED, models=models)
    assert "a (onnxruntime) → a (torch)" in draw(report).splitlines()[0]
