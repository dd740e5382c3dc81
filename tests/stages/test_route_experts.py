"""``route --method experts``: the experts that add the most stay, and the model still is one of transformers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compresskit.errors import InputError
from compresskit.ops.route.mixtures import Use, keep_experts, merging, router_of, used
from compresskit.ops.structure.experts import mixtures

transformers = pytest.importorskip("transformers")
NAME = "model.layers.0.mlp.experts"


def made(experts: int = 4) -> Any:
    torch.manual_seed(0)
    config = transformers.MixtralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=experts, num_experts_per_tok=1,
    )  # fmt: skip
    module = transformers.MixtralForCausalLM(config).eval()
    module.config.use_cache = False
    for parameter in module.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return module


def batches() -> list[dict[str, torch.Tensor]]:
    made_ = torch.Generator().manual_seed(0)
    return [{"input_ids": torch.randint(0, 64, (8, 16), generator=made_)} for _ in range(2)]


def forward(module: Any, batch: dict[str, torch.Tensor]) -> Any:
    return module(**batch)


def silent(_what: str, _done: int, _total: int) -> None:
    pass


@torch.no_grad()
def test_an_expert_that_gets_no_token_goes_without_a_change() -> None:
    module = made()
    for name in mixtures(module):
        router_of(module, name).get_parameter("weight")[2] = 0  # its logit is 0, another one is above that
        router_of(module, name).get_parameter("weight")[0] = -router_of(module, name).get_parameter("weight")[1]
    found = used(module, batches(), forward, silent)
    assert all(use.tokens.sum() == 256 and use.tokens[2] == 0 for use in found.values())
    before = forward(module, batches()[0]).logits
    for name in found:
        keep_experts(module, name, [0, 1, 3])
    assert torch.equal(forward(module, batches()[0]).logits, before)


@torch.no_grad()
def test_the_score_is_the_mean_of_gate_times_norm() -> None:
    module = made()
    loud = copy.deepcopy(module)
    loud.get_submodule(NAME).get_parameter("down_proj")[1] *= 10
    one, two = (used(net, batches(), forward, silent)[NAME].scores("reap", 0) for net in (module, loud))
    assert two[1] == pytest.approx(10 * float(one[1]), rel=1e-4)
    assert two[[0, 2, 3]].tolist() == pytest.approx(one[[0, 2, 3]].tolist())


def test_merged_experts_are_means_weighted_by_their_tokens() -> None:
    router = torch.nn.Linear(2, 3, bias=False)
    with torch.no_grad():
        router.weight.copy_(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]))
    weights = merging(router, Use(torch.tensor([3.0, 1.0, 5.0]), torch.ones(3)), [0, 2])
    assert weights.tolist() == [[0.75, 0.25, 0.0], [0.0, 0.0, 1.0]]


def source(folder: Path, rows: int = 32) -> Any:
    import compresskit

    np.savez(folder / "d.npz", input_ids=np.random.default_rng(0).integers(0, 64, (rows, 16)))
    return compresskit.open_data(folder / "d.npz")


@pytest.mark.parametrize("merge", [False, True])
def test_a_folder_with_half_of_its_experts_is_loaded_again(tmp_path: Path, merge: bool) -> None:
    import compresskit

    made().save_pretrained(tmp_path / "moe")
    model = compresskit.load(tmp_path / "moe")
    stage = compresskit.method("route.experts", keep=0.5, merge=merge)
    from compresskit.stage import Context

    done = stage.run(model, Context(work=tmp_path, data=source(tmp_path)))
    (applied,) = done.card.history
    assert applied.facts["config"] == {"num_local_experts": 2}
    assert done.module.get_submodule(NAME).get_parameter("down_proj").shape[0] == 2
    assert any("as fast as before" in note for note in applied.facts["notes"])
    done.module.save_pretrained(tmp_path / "half")
    again = transformers.MixtralForCausalLM.from_pretrained(tmp_path / "half").eval()
    ids = batches()[0]["input_ids"]
    with torch.no_grad():
        assert torch.allclose(again(input_ids=ids).logits, done.module(input_ids=ids).logits, atol=1e-5)


def test_experts_that_the_data_hardly_use_are_told(tmp_path: Path) -> None:
    import compresskit
    from compresskit.stage import Context

    made().save_pretrained(tmp_path / "moe")
    done = compresskit.method("route.experts").run(
        compresskit.load(tmp_path / "moe"), Context(work=tmp_path, data=source(tmp_path, 2))
    )
    assert any("saw fewer than 32 tokens" in note for note in done.card.history[0].facts["notes"])


def test_options_of_dense_models_are_refused(tmp_path: Path) -> None:
    import compresskit
    from compresskit.errors import UsageError
    from compresskit.stage import Context

    made().save_pretrained(tmp_path / "moe")
    with pytest.raises(UsageError, match="`experts` is for dense models"):
        compresskit.method("route.experts", experts=4).run(
            compresskit.load(tmp_path / "moe"), Context(work=tmp_path, data=source(tmp_path))
        )


def test_what_has_no_experts_to_lose_is_refused(tmp_path: Path) -> None:
    import compresskit
    from compresskit.stage import Context

    made(2).save_pretrained(tmp_path / "moe")
    model = compresskit.load(tmp_path / "moe")
    with pytest.raises(InputError, match="none can go"):
        compresskit.method("route.experts", keep=0.9).run(model, Context(work=tmp_path, data=source(tmp_path)))
