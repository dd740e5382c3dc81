"""Which tensors of a file are the model: nothing vanishes unsaid, and wrappers' names come off."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from compresskit.checkpoint.load import load
from compresskit.checkpoint.tensors import open_tensors
from compresskit.errors import InputError, UsageError

NET = "from torch import nn\ndef net():\n    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))\n"


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))


PLAIN = dict(net().state_dict())
OTHER = {name: value + 1 for name, value in PLAIN.items()}


def opened(tmp_path: Path, saved: Any, key: str | None = None) -> tuple[dict[str, torch.Tensor], str]:
    torch.save(saved, tmp_path / "m.pt")
    tensors = open_tensors(tmp_path / "m.pt", key=key)
    return dict(tensors.items()), " ".join(tensors.notes)


def same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize(
    ("beside", "named"),
    [
        ({"extra.weight": np.ones((8, 8), np.float32)}, "'extra.weight'"),
        ({"aux": {"weight": torch.ones(8, 8)}}, "'aux'"),
        ({"aux": {"deep": {"weight": torch.ones(8, 8)}}}, "'aux'"),
        ({"lists": [torch.ones(8)]}, "'lists'"),
        ({"optimizer": {"state": {0: {"m": torch.ones(8)}}}}, "'optimizer'"),
    ],
)
def test_an_entry_that_is_no_tensor_is_named(tmp_path: Path, beside: Any, named: str) -> None:
    found, notes = opened(tmp_path, {**PLAIN, **beside})
    assert same(found, PLAIN) and named in notes


@pytest.mark.parametrize(
    ("saved", "named"),
    [
        ({"model": PLAIN, "optimizer": {"state": {0: {"m": torch.ones(4, 8)}}}}, "'optimizer'"),
        ({"net": PLAIN, "optim_state": {"m": {"0": torch.ones(8)}}, "epoch": 3}, "'optim_state'"),
        ({"unet": PLAIN, "loss": torch.tensor(0.3)}, ""),
        ({"unet": PLAIN, "losses": torch.ones(20), "step": torch.tensor(3)}, ""),
        ({"unet": PLAIN, "optimizer": {"state": {0: {"m": torch.ones(8)}}}, "loss": torch.tensor(1.0)}, "'optimizer'"),
        ({"state_dict": {"unet": PLAIN, "loss": torch.tensor(0.3)}}, ""),
    ],
)
def test_the_state_dict_is_found_and_the_rest_is_named(tmp_path: Path, saved: Any, named: str) -> None:
    found, notes = opened(tmp_path, saved)
    assert same(found, PLAIN) and named in notes and bool(notes) == bool(named)


def test_which_of_several_was_taken_is_said_and_chosen(tmp_path: Path) -> None:
    saved = {"params": OTHER, "params_ema": PLAIN, "nested": {"a.b": {"model": PLAIN}}}
    found, notes = opened(tmp_path, saved)
    assert same(found, OTHER) and "'params'" in notes and "`key` takes 'params_ema'" in notes
    for key in ("params_ema", "nested.a.b.model", "nested.a.b"):
        assert same(opened(tmp_path, saved, key)[0], PLAIN)


@pytest.mark.parametrize("key", ["none", "params.none", "epoch", "params.0.weight", ""])
def test_a_key_that_leads_nowhere_is_the_command_lines_fault(tmp_path: Path, key: str) -> None:
    with pytest.raises(UsageError, match="under") as caught:
        opened(tmp_path, {"params": PLAIN, "epoch": 3}, key)
    assert "'params'" in str(caught.value.hint)


def test_a_key_is_for_files_that_hold_several(tmp_path: Path) -> None:
    save_file(PLAIN, tmp_path / "m.safetensors")
    with pytest.raises(UsageError, match="`key`"):
        load(tmp_path / "m.safetensors", key="model")


def averaged() -> dict[str, Any]:
    return dict(AveragedModel(net()).state_dict())


def prefixed(prefix: str, **more: Any) -> dict[str, Any]:
    return {**{prefix + name: value for name, value in PLAIN.items()}, **more}


WRAPPED = {
    "SWA": averaged(),
    "Lightning, a loss's weight": {"state_dict": prefixed("model.", **{"criterion.weight": torch.ones(8)})},
    "Lightning, net": {"state_dict": prefixed("net.", **{"metric.total": torch.ones(1)})},
    "Lightning, a name of its own": {"state_dict": prefixed("unet.", **{"criterion.weight": torch.ones(8)})},
    "Lightning, compiled": {"state_dict": prefixed("model._orig_mod.", **{"criterion.weight": torch.ones(8)})},
    "FSDP": prefixed("_fsdp_wrapped_module."),
    "FSDP inside": {name.replace("2.", "2._fsdp_wrapped_module."): v for name, v in PLAIN.items()},
    "checkpointing": {name.replace("2.", "2._checkpoint_wrapped_module."): v for name, v in PLAIN.items()},
    "compiled inside": {name.replace("2.", "2._orig_mod."): v for name, v in PLAIN.items()},
    "parallel inside": {name.replace("2.", "2.module."): v for name, v in PLAIN.items()},
    "all of them": prefixed("module._orig_mod._fsdp_wrapped_module.", n_averaged=torch.tensor(3)),
}


@pytest.mark.parametrize("saved", WRAPPED.values(), ids=WRAPPED)
def test_wrapped_models_load(tmp_path: Path, saved: Any) -> None:
    (tmp_path / "net.py").write_text(NET)
    torch.save(saved, tmp_path / "m.pt")
    model = load(tmp_path / "m.pt", arch=f"{tmp_path / 'net.py'}:net", input_shape=(1, 8))
    assert same(dict(model.module.state_dict()), PLAIN)
    assert ("criterion.weight" in " ".join(model.notes)) == ("criterion.weight" in saved.get("state_dict", {}))


def test_two_parts_that_would_fit_alike_are_refused(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET)
    torch.save({**prefixed("student."), **prefixed("teacher.")}, tmp_path / "m.pt")
    with pytest.raises(InputError, match="not those of this architecture"):
        load(tmp_path / "m.pt", arch=f"{tmp_path / 'net.py'}:net")


@pytest.mark.parametrize("named", ["folder", "index", "other index"])
def test_shards_without_a_config_are_a_bare_model(tmp_path: Path, named: str) -> None:
    (tmp_path / "net.py").write_text(NET)
    folder = tmp_path / "shards"
    folder.mkdir()
    stem = "diffusion_model" if named == "other index" else "model"
    files = {name: f"{stem}-{i % 2}.safetensors" for i, name in enumerate(PLAIN)}
    for file in set(files.values()):
        save_file({name: PLAIN[name] for name in PLAIN if files[name] == file}, folder / file)
    index = folder / f"{stem}.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": files}))
    place = folder if named == "folder" else index
    bare = load(place)
    assert bare.body == place and same(dict(open_tensors(place).items()), PLAIN)
    model = load(place, arch=f"{tmp_path / 'net.py'}:net", input_shape=(1, 8))
    assert same(dict(model.module.state_dict()), PLAIN)
