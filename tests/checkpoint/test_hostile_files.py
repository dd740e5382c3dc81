"""Files that block, lead elsewhere, or hold numbers and text that nothing can take: one typed error each."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from compresskit.checkpoint.bundle import read_card, seal
from compresskit.checkpoint.huggingface import read_config
from compresskit.checkpoint.shards import open_shards
from compresskit.checkpoint.tensors import open_tensors
from compresskit.data.opening import open_source
from compresskit.errors import CompressKitError, InputError, UsageError
from compresskit.model import Applied, Arch, Card, InputSpec
from compresskit.recipe.reading import read_recipe
from compresskit.report import NAME, Report, Verdict, read_report
from compresskit.runner.check import open_report
from compresskit.runner.loading import load


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_a_fifo_is_no_report_and_no_recipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / NAME)
    for path in (tmp_path, tmp_path / NAME):
        with pytest.raises(InputError, match="not a regular file"):
            read_report(path)
    with pytest.raises(UsageError):
        read_recipe(tmp_path / NAME)


def test_a_report_names_a_model_by_a_name_that_is_too_long(tmp_path: Path) -> None:
    seal(tmp_path, Card("onnx"))
    entry = {"name": "a", "path": "x" * 300, "bytes": 1, "sha256": "0"}
    report = Report(command="compare", verdict=Verdict.UNVERIFIED, models=[entry])
    (tmp_path / NAME).write_text(report.to_json(), encoding="utf-8")
    assert open_report(tmp_path).models[0].path == "x" * 300


@pytest.mark.parametrize("text", ["1" + "0" * 400, "-1" + "0" * 30, "1" * 5000, '"\\ud800"', "[" * 100_000])
def test_numbers_and_text_that_nothing_can_take(tmp_path: Path, text: str) -> None:
    """The documents beside weights: a card, a config, an index."""
    for name, read in (
        ("compresskit.json", read_card),
        ("config.json", read_config),
        ("model.safetensors.index.json", open_shards),
    ):
        (tmp_path / name).write_text(f'{{"a": {text}}}', encoding="utf-8")
        with pytest.raises(InputError, match="JSON"):
            read(tmp_path)


@pytest.mark.parametrize("place", ["../w.safetensors", "/etc/hostname", "a/../../w.safetensors", "C:\\w", "x" * 300])
def test_an_index_leads_nowhere_else(tmp_path: Path, place: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"w": torch.ones(2)}, tmp_path / "w.safetensors")
    index = {"weight_map": {"w": place}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(InputError, match="names the file"):
        open_shards(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"text_config": {"num_hidden_layers": 10**9}},
        {"n_layer": 10**7},
        {"n_layers": 10**7},
        {"depths": [2, 10**7]},
        {"vision": {"parts": [{"encoder_layers": 10**8}]}},
        {"num_local_experts": 10**6},
        {"num_labels": 10**9},
        {"hidden_size": 10**18},
        {"num_layers": 1e12},
    ],
)
def test_absurd_sizes_are_refused_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    import transformers

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", lambda *_, **__: pytest.fail("it was built"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", **change}), encoding="utf-8")
    with pytest.raises(InputError, match="is refused: "):
        read_config(tmp_path)


def test_an_ordinary_config_passes(tmp_path: Path) -> None:
    config = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_layer": 12}
    more = {"rope_theta": 10**11, "block_size": 131_072, "layer_norm_eps": 1e-5, "time_step_limit": [0.0, float("inf")]}
    (tmp_path / "config.json").write_text(json.dumps({**config, **more}), encoding="utf-8")
    read_config(tmp_path)


def test_a_name_with_half_a_character_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    header = b'{"\\ud800":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"x")
    with pytest.raises(InputError, match="not valid JSON"):
        open_tensors(path)


@pytest.mark.parametrize(
    "content", ["secret: word-of-pass\n", "steps: word-of-pass\n", "a: *word-of-pass\n", "seed: word-of-pass"]
)
def test_a_recipe_shows_nothing_of_a_file_from_elsewhere(tmp_path: Path, content: str) -> None:
    (tmp_path / "elsewhere").write_text(content, encoding="utf-8")
    folder = tmp_path / "recipes"
    folder.mkdir()
    recipe = folder / "r.yaml"
    recipe.write_text("include: ../elsewhere\nsteps: [quantize.rtn]\nmetric: zzz\n", encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        read_recipe(recipe)
    assert "word-of-pass" not in str(caught.value) and "secret" not in str(caught.value)
    shutil.move(tmp_path / "elsewhere", folder / "base.yaml")
    recipe.write_text("include: base.yaml\nsteps: [quantize.rtn]\nmetric: zzz\n", encoding="utf-8")
    with pytest.raises(UsageError):
        read_recipe(recipe)


@pytest.mark.parametrize("size", [-5, 0, 10**20, 1.5, None, [1]])
def test_an_input_of_a_shape_that_cannot_be(tmp_path: Path, size: Any) -> None:
    card = Card("onnx", Arch("onnx"), (InputSpec("x", "float32", ("batch", 4)),))
    seal(tmp_path, card)
    path = tmp_path / "compresskit.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    data["inputs"][0]["shape"][1] = size
    path.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(InputError, match=r"compresskit\.json"):
        read_card(tmp_path)


@pytest.mark.parametrize(
    "facts",
    [{}, {"layers": None}, {"layers": {"0": {"bits": -1}}}, {"layers": [1]}, {"layers": {"0": {"rank": 10**12}}}],
)
@pytest.mark.parametrize("name", ["quantize.rtn", "prune.structured", "prune.depth", "factorize.svd", "no.such", ""])
def test_a_history_that_does_not_fit_its_model(tmp_path: Path, facts: dict[str, Any], name: str) -> None:
    code = "from torch import nn\ndef net():\n    return nn.Sequential(nn.Linear(4, 3))\n"
    (tmp_path / "net.py").write_text(code, encoding="utf-8")
    folder = tmp_path / "bundle"
    folder.mkdir()
    save_file({"0.weight": torch.ones(3, 4), "0.bias": torch.ones(3)}, folder / "model.safetensors")
    seal(folder, Card("torch", Arch("python", "net.py:net"), history=(Applied(name, {}, facts),)))
    try:
        load(folder, arch=f"{tmp_path / 'net.py'}:net")
    except CompressKitError:
        return
    assert not facts.get("layers")  # nothing was to be done


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
@pytest.mark.parametrize("name", ["x.npz", "x.csv", "x.jsonl", "x.txt"])
def test_a_fifo_is_no_data(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match="not a regular file"):
        open_source(str(tmp_path / name))
