"""What a stage gave is kept: the same command again needs no module, and anything else is computed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import compresskit
from compresskit.checkpoint import huggingface
from compresskit.data.opening import open_source
from compresskit.errors import GateError
from compresskit.exporter import kept
from compresskit.model import Model
from compresskit.recipe.limits import Limits
from compresskit.report import Report, Verdict
from compresskit.runner.cache import ABOUT, Cache
from compresskit.runner.judging import Measuring
from compresskit.runner.kept_runs import keeps, reading_key
from compresskit.runner.pipeline import run, run_again
from compresskit.runner.steps import Job


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    place = tmp_path_factory.mktemp("hf") / "m"
    torch.manual_seed(0)
    BertModel(BertConfig(**sizes, vocab_size=64)).save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def ran(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which ``m`` was quantized to ``a`` once, with the data ``x.npz``."""
    place = tmp_path_factory.mktemp("ran")
    shutil.copytree(folder, place / "m")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        ids(1)
        quantize("a")
    return place


@pytest.fixture(autouse=True)
def here(ran: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ran, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")


def ids(seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 64, (8, 6))
    np.savez("x.npz", input_ids=values)


def job(output: str, cache: str, data: bool, limits: Limits, options: dict[str, Any]) -> Callable[[Model], Job]:
    stage = compresskit.method("quantize.rtn", **{"bits": 4, **options})

    def job_of(model: Model) -> Job:
        source = open_source("x.npz", inputs=model.card.inputs) if data else None
        measuring = Measuring(bench=False, limits=limits)
        return Job.of([stage], Path(output), source, measuring, cache=Cache(Path(cache)), kept=reading_key(Path("m")))

    return job_of


def again(
    output: str, *, cache: str = "cache", data: bool = True, limits: Limits | None = None, **options: Any
) -> Report | None:
    return run_again(
        Path("m"), reading_key(Path("m")), Cache(Path(cache)), job(output, cache, data, limits or Limits(), options)
    )


def quantize(output: str, *, cache: str = "cache", limits: Limits | None = None, **options: Any) -> Report:
    model = compresskit.load("m")
    return run(model, job(output, cache, True, limits or Limits(), options)(model))


def files(folder: str) -> dict[str, bytes]:
    """What ships; report and page tell of the run."""
    names = ("model.onnx", "model.safetensors", "config.json", "compresskit.json")
    return {name: Path(folder, name).read_bytes() for name in names}


def test_the_same_again_needs_no_module(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the module was built")

    monkeypatch.setattr(huggingface, "read_config", refuse)
    report = again("b")
    assert report is not None and files("a") == files("b")
    assert sorted(path.name for path in Path("a").iterdir()) == sorted(path.name for path in Path("b").iterdir())
    first = Report.model_validate_json(Path("a", "report.json").read_bytes())
    assert first.gates[0].name == "ONNX parity"
    assert report.gates == first.gates
    assert [(m.name, m.value) for m in report.measurements] == [(m.name, m.value) for m in first.measurements]
    (more,) = (note for note in report.notes if note not in first.notes)
    assert "from the step cache" in more


def scaled() -> None:
    tensors = load_file("m/model.safetensors")
    save_file({name: tensor * 2 for name, tensor in tensors.items()}, "m/model.safetensors", {"format": "pt"})


def reconfigured() -> None:
    config = json.loads(Path("m/config.json").read_text(encoding="utf-8"))
    Path("m/config.json").write_text(json.dumps({**config, "layer_norm_eps": 1e-5}), encoding="utf-8")


def damaged() -> None:
    for place in Path("cache").glob(f"*/{ABOUT}"):
        (place.parent / "model.onnx").write_bytes(b"broken")


@pytest.mark.parametrize(
    ("change", "other"),
    [
        (scaled, {}),
        (reconfigured, {}),
        (damaged, {}),
        (lambda: ids(2), {}),
        (lambda: None, {"group_size": 16}),
        (lambda: None, {"limits": Limits(max_size="1MB")}),
        (lambda: None, {"data": False}),
    ],
    ids=["weights", "config", "damage", "data", "options", "limits", "without data"],
)
def test_anything_else_is_computed(change: Callable[[], object], other: dict[str, Any]) -> None:
    change()
    assert again("b", **other) is None


def test_limits_are_judged_each_time() -> None:
    limits = Limits(max_size="1kB")
    assert quantize("b", limits=limits).verdict is Verdict.FAIL
    report = again("c", limits=limits)
    assert report is not None and report.verdict is Verdict.FAIL


def test_a_refused_export_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: object) -> None:
        raise GateError("the ONNX file differs from the model")

    monkeypatch.setattr(kept.KeptGraph, "filled", wrong)
    with pytest.raises(GateError):
        quantize("b", bits=8)
    assert again("c", bits=8) is None


def test_a_cache_that_cannot_be_written_is_done_without() -> None:
    Path("file").write_text("", encoding="utf-8")
    assert quantize("b", cache="file/cache").verdict is not Verdict.FAIL
    assert again("c", cache="file/cache") is None


@pytest.mark.parametrize(
    ("name", "expected"), [("quantize.gptq", True), ("quantize.auto", True), ("prune.magnitude", False)]
)
def test_stages_that_quantize_are_kept(name: str, expected: bool) -> None:
    assert keeps(compresskit.method(name)) == expected
