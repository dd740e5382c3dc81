"""Bundles and cards that were written while cards were of version 1: they load, and answer as they did then."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_material import Cli

import compresskit

FROZEN = Path(__file__).resolve().parent.parent / "frozen"
BUNDLES = {"gptq": "Words", "awq": "Words", "recipe": "Pictures", "lora": "Words"}
CARDS = sorted(path.stem for path in (FROZEN / "cards").glob("*.json"))
EXACT = 1e-6
"""Of the largest output: CPUs multiply in other orders."""


@pytest.fixture(scope="module")
def then() -> dict[str, np.ndarray]:
    return dict(np.load(FROZEN / "outputs.npz"))


def arch_of(name: str) -> str | None:
    return f"{FROZEN / 'nets.py'}:{BUNDLES[name]}" if name in BUNDLES else None


def inputs_of(name: str, then: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {key.rpartition("/")[2]: value for key, value in then.items() if key.startswith(f"{name}/inputs/")}


def answers(folder: Path, arch: str | None, inputs: dict[str, np.ndarray]) -> np.ndarray:
    module = compresskit.load(folder, arch=arch).module.eval()
    with torch.no_grad():
        found: Any = module(**{name: torch.from_numpy(array) for name, array in inputs.items()})
    return (found if isinstance(found, torch.Tensor) else found[0]).numpy()


def onnx_answers(path: Path, inputs: dict[str, np.ndarray]) -> np.ndarray:
    import onnxruntime

    return np.asarray(onnxruntime.InferenceSession(str(path)).run(None, inputs)[0])


def agree(now: np.ndarray, before: np.ndarray) -> bool:
    return now.shape == before.shape and float(np.abs(now - before).max()) <= EXACT * float(np.abs(before).max())


@pytest.mark.parametrize("name", [*BUNDLES, "hf"])
def test_the_module_answers_as_it_did(name: str, then: dict[str, np.ndarray]) -> None:
    if name == "hf":
        pytest.importorskip("transformers")
    assert agree(answers(FROZEN / name, arch_of(name), inputs_of(name, then)), then[f"{name}/module"])


@pytest.mark.parametrize("name", BUNDLES)
def test_a_further_stage_answers_as_it_did(
    name: str, then: dict[str, np.ndarray], cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(FROZEN / name, tmp_path / name)
    shutil.copy(FROZEN / "nets.py", tmp_path)
    monkeypatch.chdir(tmp_path)
    arch, inputs = f"nets.py:{BUNDLES[name]}", inputs_of(name, then)
    assert agree(onnx_answers(Path(name, "model.onnx"), inputs), then[f"{name}/onnx"])
    assert cli("export", name, "--arch", arch, "-o", "again.onnx", "--quiet").code == 0
    assert agree(onnx_answers(Path("again.onnx"), inputs), then[f"{name}/onnx"])
    merging = {"lora": ("lora", "merge", name), "recipe": ("factorize", name, "--merge")}.get(name)
    if merging:
        made = cli(*merging, "--arch", arch, "--no-export", "--no-bench", "--quiet", "-o", "merged")
        assert made.code in (0, 1), made.err
        assert agree(answers(Path("merged"), arch, inputs), then[f"{name}/merged"])


def test_a_shipped_file_is_evaluated(cli: Cli) -> None:
    data = FROZEN / "words.npz"
    found = cli("evaluate", FROZEN / "gptq", "--data", data, "--json", "-", "--quiet")
    assert found.code in (0, 1), found.err
    assert [model["name"] for model in json.loads(found.out)["models"]] == ["gptq"]


@pytest.mark.parametrize("name", CARDS)
def test_a_card_of_version_1_is_read_and_becomes_one_of_today(name: str) -> None:
    from compresskit.model import CARD_VERSION, Card
    from compresskit.runner.loading import history_facts

    data = json.loads((FROZEN / "cards" / f"{name}.json").read_text())
    card = Card.from_json(data)
    facts = history_facts(card, name)
    assert data["version"] == 1 and len(facts) == len(data["history"])
    now = json.loads(json.dumps(card.to_json()))
    assert now["version"] == CARD_VERSION and Card.from_json(now) == card
    assert all("beside" not in step["facts"] for step in now["history"])
    adapters = [getattr(fact, "adapters", None) is not None for fact in facts]
    assert adapters == [step["facts"].get("beside", False) for step in data["history"]]
