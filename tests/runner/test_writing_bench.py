"""Timing of language models that write: in processes of their own, in turns, with figures that add up."""

from __future__ import annotations

from pathlib import Path

import pytest
from lm_folders import make_folder

import compresskit
from compresskit.errors import InputError, UsageError
from compresskit.render.rows import timings
from compresskit.runner.targets import export_to
from compresskit.runner.writing_bench import bench_writing


@pytest.mark.slow
def test_models_that_write_are_timed(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    pytest.importorskip("xllamacpp")
    from compresskit.exporter.targets import get

    folder = make_folder(tmp_path, "llama")
    file = tmp_path / "llama.gguf"
    export_to(compresskit.load(folder), get("gguf"), file)
    report = bench_writing([folder, file], 20, 6, threads=1, rounds=3, processes=2)
    figures = {(m.model, m.name): m for m in report.measurements}
    assert len(figures) == 9 and not report.gates
    for name, engine in (("llama", "transformers"), ("llama.gguf", "llama.cpp")):
        first, prefill, decode = (figures[name, what] for what in ("first_token", "prefill", "decode"))
        assert {m.runtime for m in (first, prefill, decode)} == {engine}
        assert 0 < first.value < 60_000 and decode.value > 1 and first.n == 2
        assert prefill.value == pytest.approx(20 / first.value * 1e3, rel=1e-6)
        assert figures[name, "peak_memory"].value > 10e6
    ratio = figures["llama.gguf", "decode_speedup"]
    assert ratio.value == pytest.approx(
        figures["llama.gguf", "decode"].value / figures["llama", "decode"].value, rel=0.5
    )
    table = next(t for t in timings(report) if "decode/s" in t.header)
    assert [line[:2] for line in table.lines] == [("llama", "transformers"), ("llama.gguf", "llama.cpp")]
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(40))
    with pytest.raises(InputError, match="can't open"):
        bench_writing([tmp_path / "bad.gguf"], 20, 6, processes=1)


def test_sizes_and_names_are_checked(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="same name"):
        bench_writing([tmp_path / "a.gguf", tmp_path / "b" / "a.gguf"], 8, 8)
    with pytest.raises(UsageError, match="2 new tokens"):
        bench_writing([tmp_path / "a.gguf"], 8, 1)
    with pytest.raises(UsageError, match="can't open"):
        bench_writing([tmp_path / "a.gguf"], 8, 8, engines=["genai"])
