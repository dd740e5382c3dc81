"""Models a user might bring: quantize, export, bench, reload; or an error that says what isn't supported."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from cli_material import Cli, picture
from foreign_models import SHAPES, write_huggingface, write_user_models

import compresskit
from compresskit.report import Report, Verdict

slow = pytest.mark.slow


def user(name: str) -> tuple[str, ...]:
    data = () if name in SHAPES else ("--data", "ids.npz")
    return (f"{name}.pt", "--arch", f"user.py:{name}", *SHAPES.get(name, ()), *data)


GRU = ("gru.pt", "--arch", "gru_classifier.py:gru_classifier", "--data", "ids.npz", "--arch-args",
       '{"vocabulary": 96, "width": 32, "hidden": 32}')  # fmt: skip


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zoo")
    write_user_models(folder)
    return folder


@pytest.fixture
def brought(request: pytest.FixtureRequest, zoo: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """The MODEL argument and what goes with it; the current folder is where it lies."""
    monkeypatch.chdir(zoo)
    if isinstance(request.param, tuple):
        return request.param
    if not (zoo / request.param).exists():
        write_huggingface(zoo, request.param)
    return (request.param,)


def module_and_file_agree(bundle: Path, arch: dict[str, object]) -> None:
    """The bundle reloaded in torch gives what its ONNX file gives."""
    import torch

    from compresskit.benchmark.feeds import make_feeds
    from compresskit.runtimes import get

    model = compresskit.load(bundle, **arch)
    module = model.body
    assert isinstance(module, torch.nn.Module)
    feeds = make_feeds(model.card.inputs, {"batch": 3, "sequence": 7}, 1)
    found = get("onnxruntime").open(bundle / "model.onnx", 1, "cpu").run(feeds)
    with torch.no_grad():
        out = module(**{name: torch.from_numpy(array) for name, array in feeds.items()})
    first = out if isinstance(out, torch.Tensor) else next(v for v in out.values() if isinstance(v, torch.Tensor))
    want, have = first.numpy(), next(iter(found.values()))
    assert want.shape == have.shape
    assert np.linalg.norm(want - have) <= 0.05 * np.linalg.norm(want) + 1e-6


CASES = [
    pytest.param(user("Plain"), "4", id="cnn-4"),
    pytest.param(user("Plain"), "8", id="cnn-8", marks=slow),
    pytest.param("bert", "4", id="bert-4"),
    pytest.param("llama", "4", id="llama-4"),
    pytest.param(user("Tied"), "4", id="tied-4", marks=slow),
    *(pytest.param(m, b, id=f"{m}-{b}", marks=slow) for m, b in (("bert", "8"), ("llama", "8"))),
    *(pytest.param(m, b, id=f"{m}-{b}", marks=slow) for m in ("vit", "gpt2") for b in "48"),
    *(pytest.param(GRU, b, id=f"gru-{b}", marks=slow) for b in "48"),
    *(pytest.param(user("Attention"), b, id=f"attention-{b}", marks=slow) for b in "48"),
    pytest.param(user("Tied"), "8", id="tied-8", marks=slow),
]  # fmt: skip


@pytest.mark.parametrize(("brought", "bits"), CASES, indirect=["brought"])
def test_the_whole_way(cli: Cli, brought: tuple[str, ...], bits: str, tmp_path: Path) -> None:
    before = picture(Path())
    out = tmp_path / "out"
    # Data only tells the inputs' shapes here: the method is weight-only rounding.
    found = cli("quantize", *brought, "--bits", bits, "--method", "rtn", "--no-bench", "-o", out, "--json", "-")
    assert found.code == 0 and found.err == "", found
    report = Report.model_validate_json(found.out)
    assert report.verdict is Verdict.UNVERIFIED and report.coverage.done
    assert report.values("cosine")["out"].value > (0.9 if bits == "4" else 0.999)
    assert all(reason for reason in report.coverage.skipped.values())
    arch = dict(zip(("arch", "arch_args"), _arch(brought), strict=False))
    module_and_file_agree(out, arch)
    timed = cli("bench", out, "--processes", "2", "--rounds", "2", "--no-limits", "--json", "-")
    assert timed.code == 0 and timed.err == "" and Report.model_validate_json(timed.out).values("latency_p50")
    assert picture(Path()) == before


def _arch(brought: tuple[str, ...]) -> list[object]:
    import json

    if "--arch" not in brought:
        return []
    args = brought[brought.index("--arch-args") + 1] if "--arch-args" in brought else "{}"
    return [brought[brought.index("--arch") + 1], json.loads(args)]


@pytest.mark.parametrize(("brought", "said"), [
    pytest.param(user("Branching"), ("can't be exported", "branch"), id="branching"),
    pytest.param(user("Numpy"), ("can't be exported",), id="numpy"),
    pytest.param(("Parameterless.pt", "--arch", "user.py:Parameterless", "--input-shape", "1,4"), ("no tensors",),
                 id="parameterless"),
], indirect=["brought"])  # fmt: skip
def test_what_is_not_supported_is_said(
    cli: Cli, brought: tuple[str, ...], said: tuple[str, ...], tmp_path: Path
) -> None:
    before = picture(Path())
    out = tmp_path / "out"
    found = cli("quantize", *brought, "--bits", "4", "--no-bench", "-o", out)
    found.refused(found.code, *said)
    assert found.code in (2, 3)
    assert not out.exists() and not [n for n in os.listdir(tmp_path) if n != "zoo"]
    assert picture(Path()) == before


@pytest.mark.parametrize(
    ("sequence", "note"), [((), True), (("--sequence", "64"), False), (("--sequence", "65"), True)]
)
@pytest.mark.parametrize("brought", [pytest.param("bert", marks=slow)], indirect=True)
def test_no_more_tokens_are_timed_than_the_model_takes(
    cli: Cli, brought: tuple[str, ...], sequence: tuple[str, ...], note: bool
) -> None:
    found = cli("bench", *brought, *sequence, "--processes", "2", "--rounds", "2", "--no-limits", "--json", "-")
    assert found.code == 0 and found.err == "", found
    assert ("timed with 64 tokens" in str(Report.model_validate_json(found.out).notes)) == note


@pytest.mark.parametrize("brought", [pytest.param("bert", marks=slow)], indirect=True)
def test_int8_of_a_transformer_leaves_nothing_beside_its_output(
    cli: Cli, brought: tuple[str, ...], tmp_path: Path
) -> None:
    """onnxruntime's preprocessing writes its failures into the current folder."""
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 99, (16, 10))
    np.savez(tmp_path / "calib.npz", input_ids=ids, attention_mask=np.ones_like(ids), token_type_ids=np.zeros_like(ids))
    before = picture(Path())
    found = cli(
        "quantize", *brought, "--bits", "8", "--data", tmp_path / "calib.npz", "--no-bench", "-o", tmp_path / "o"
    )
    assert found.code in (0, 1) and found.err == "", found
    assert picture(Path()) == before
