"""Codes refined by gradients: nearer to the original, the same for a seed, and resumed from where a run was killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lm_folders import make_folder

import compresskit
from compresskit.data.opening import open_source
from compresskit.data.source import Source
from compresskit.errors import UsageError
from compresskit.stage import Context

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("lm"), "llama", louder=2)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Source:
    path = tmp_path_factory.mktemp("ids") / "ids.npz"
    np.savez(path, input_ids=np.random.default_rng(0).integers(3, 500, (64, 24)))
    return open_source(str(path))


def tuned(folder: Path, samples: Source, work: Path, seed: int = 0, **options: Any) -> Any:
    stage = compresskit.method("quantize.gptq", bits=2, exclude=("lm_head", "*embed*"), **options)
    return stage.run(compresskit.load(folder), Context(work, samples, seed=seed)).module


def off(module: Any, folder: Path) -> float:
    ids = torch.from_numpy(np.random.default_rng(1).integers(3, 500, (16, 24)))
    original: Any = compresskit.load(folder).module
    with torch.no_grad():
        before, after = original(input_ids=ids).logits, module(input_ids=ids).logits
    return float((after - before).norm() / before.norm())


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 4])
def test_tuned_codes_are_nearer_on_other_samples(folder: Path, samples: Source, tmp_path: Path, rank: int) -> None:
    plain, better = (tuned(folder, samples, tmp_path, tune=n, repair=rank) for n in (0, 60))
    assert off(better, folder) < 0.98 * off(plain, folder)
    before, after = plain.state_dict(), better.state_dict()
    assert before.keys() == after.keys()
    assert all(value.shape == after[name].shape and value.dtype == after[name].dtype for name, value in before.items())


def test_the_seed_decides_and_a_killed_run_goes_on(folder: Path, samples: Source, tmp_path: Path) -> None:
    kept = {"tune": 30, "checkpoint": tmp_path / "kept"}
    first = tuned(folder, samples, tmp_path, **kept).state_dict()
    last = max((tmp_path / "kept").iterdir())
    last.unlink()
    again = tuned(folder, samples, tmp_path, **kept).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    other = tuned(folder, samples, tmp_path, seed=1, **kept).state_dict()
    assert not all(torch.equal(value, other[name]) for name, value in first.items())


def test_only_equal_steps_are_tuned() -> None:
    with pytest.raises(UsageError, match="`tune` can't be combined with `weight_format` k-quant"):
        compresskit.method("quantize.gptq", tune=10, weight_format="k-quant")
