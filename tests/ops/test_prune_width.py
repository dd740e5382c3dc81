"""Neurons and heads cut: those that cost least, and a folder that transformers loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compresskit.errors import InputError, UsageError
from compresskit.ops.calibration.moments import Moments, output_error
from compresskit.ops.prune.units import columns_of, prune_units
from compresskit.ops.prune.width import heads_left

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")  # those of transformers are not ours to mend
SIZES = {
    "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 40,
    "max_position_embeddings": 128,
}  # fmt: skip


def moments_of(columns: int, rank: int) -> Moments:
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(rank, columns, generator=generator)
    x = torch.randn(500, rank, generator=generator) @ mix + 0.05 * torch.randn(500, columns, generator=generator)
    return Moments((x.T @ x / 500)[None], x.mean(0)[None], 500)


@pytest.mark.parametrize("size", [1, 4])
def test_others_make_up_for_units_that_go(size: int) -> None:
    weight, moments = torch.randn(16, 64, generator=torch.Generator().manual_seed(1)), moments_of(64, 32)
    found, stays = prune_units(weight, moments, size, 48 // size)
    kept = columns_of(stays, size)
    assert stays == sorted(set(stays)) and len(stays) == 48 // size
    assert int((found != 0).any(0).sum()) == 48 == len(kept)
    plain = weight * torch.zeros(64).index_fill(0, kept, 1.0)
    small = weight * torch.zeros(64).index_fill(0, weight.square().sum(0).argsort()[16:], 1.0)
    error, masked, naive = (float(output_error(weight, w, moments).sum()) for w in (found, plain, small))
    assert error < 0.1 * min(masked, naive)


def test_a_unit_that_is_a_copy_goes_first_and_costs_nothing() -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(200, 12, generator=generator)
    x[:, 5] = 2 * x[:, 3]
    moments = Moments((x.T @ x / 200)[None], x.mean(0)[None], 200)
    weight = torch.randn(6, 12, generator=generator)
    found, stays = prune_units(weight, moments, 1, 11, damping=1e-6)
    assert len({3, 5} & set(stays)) == 1
    torch.testing.assert_close(x @ found.T, x @ weight.T, rtol=1e-2, atol=1e-2)


def folder(tmp_path: Path, name: str, **more: Any) -> tuple[Path, str]:
    """A small model of random weights, and calibration ids."""
    torch.manual_seed(0)
    kind = name.replace("ForCausalLM", "").replace("LMHead", "").removesuffix("Model") + "Config"
    config = getattr(transformers, kind)(**({"vocab_size": 40} if "n_embd" in more else SIZES), **more)
    getattr(transformers, name)(config).save_pretrained(tmp_path / "in")
    ids = np.random.default_rng(0).integers(0, 40, (16, 12))
    np.savez(tmp_path / "data.npz", input_ids=ids, attention_mask=np.ones_like(ids))
    return tmp_path / "in", str(tmp_path / "data.npz")


@pytest.mark.parametrize(
    ("name", "more", "options", "sizes"),
    [
        ("BertModel", {}, {"neurons": 0.5}, {"intermediate_size": 32}),
        ("GPT2LMHeadModel", {"n_embd": 32, "n_layer": 2, "n_head": 4}, {"neurons": 0.5}, {"n_inner": 64}),
        (
            "LlamaForCausalLM",
            {"num_key_value_heads": 2},
            {"neurons": 0.25, "heads": 0.5},
            {"intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8},
        ),
        ("LlamaForCausalLM", {"attention_bias": True}, {"neurons": 0.0, "heads": 0.5}, {"num_attention_heads": 2}),
    ],
)
def test_the_folder_that_comes_out_is_one_of_transformers(
    tmp_path: Path, name: str, more: dict[str, Any], options: dict[str, float], sizes: dict[str, int]
) -> None:
    from compresskit.data.opening import open_source
    from compresskit.runner.api import method, run
    from compresskit.runner.loading import load

    model, data = folder(tmp_path, name, **more)
    loaded = load(model)
    stage = method("prune.width", **options)
    run(loaded, [stage], tmp_path / "out", data=open_source(data), export=name == "BertModel", bench=False)
    again = getattr(transformers, name).from_pretrained(tmp_path / "out").eval()
    assert {key: getattr(again.config, key) for key in sizes} == sizes
    ids = torch.arange(12)[None]
    with torch.no_grad():
        wanted = loaded.body(input_ids=ids)[0]  # type: ignore[operator]
        torch.testing.assert_close(again(input_ids=ids)[0], wanted)
        torch.testing.assert_close(load(tmp_path / "out").body(input_ids=ids)[0], wanted)  # type: ignore[operator]


def test_the_number_of_heads_is_one_that_the_config_accepts() -> None:
    config = transformers.LlamaConfig(**SIZES)  # 3 of 4 heads don't divide its width of 32
    assert [heads_left(config, ratio)["num_attention_heads"] for ratio in (0.9, 0.75, 0.5, 0.25)] == [1, 1, 2, 4]


def test_what_a_config_cannot_tell_of_is_refused(tmp_path: Path) -> None:
    from compresskit.data.opening import open_source
    from compresskit.runner.api import method, run
    from compresskit.runner.loading import load

    model, data = folder(tmp_path, "BertModel")
    with pytest.raises(InputError, match="the config of BertModel can't tell of fewer heads"):
        run(load(model), [method("prune.width", heads=0.5)], tmp_path / "out", data=open_source(data), export=False)
    with pytest.raises(UsageError, match="needs calibration data"):
        run(load(model), [method("prune.width")], tmp_path / "out", export=False)
