"""Adapters on disk: what is read, what is refused, and two made one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from compresskit.errors import InputError, UsageError
from compresskit.ops.lora.adapter import merge
from compresskit.ops.lora.combine import METHODS, combine
from compresskit.ops.lora.folder import about, base_hash, read_adapter, terms_of, write_adapter

CONFIG: dict[str, Any] = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": ["0"], "bias": "none"}


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Sequential(nn.Linear(5, 4)))


def factors(seed: int = 0, rank: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "0.lora_A.weight": torch.randn(rank, 6, generator=generator),
        "0.lora_B.weight": torch.randn(5, rank, generator=generator),
    }


def written(folder: Path, config: dict[str, Any] = CONFIG, base: str | None = None, **how: Any) -> Path:
    write_adapter(folder, {**CONFIG, **config}, factors(**how), base)
    return folder


def change(folder: Path) -> Tensor:
    found = read_adapter(folder)
    term = terms_of(found.config, found.tensors, net())["0"]
    assert term.up is not None and term.down is not None
    return term.up @ term.down


def test_what_is_written_is_read(tmp_path: Path) -> None:
    base = base_hash(net())
    found = read_adapter(written(tmp_path / "a", base=base))
    assert found.base == base and found.kind == "LORA" and found.layers() == ["0"] and found.numel() == 22
    torch.testing.assert_close(change(tmp_path / "a"), 3 * factors()["0.lora_B.weight"] @ factors()["0.lora_A.weight"])
    told = about(found)
    assert told["layers"] == {"0": {"rank": 2, "scale": 3.0, "parameters": 22}} and told["base_sha256"] == base
    again = written(tmp_path / "b", base=base)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (again / name).read_bytes()


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"peft_type": "LOHA"}, "of the kind 'LOHA'"),
        ({"r": -1}, "r and lora_alpha must be numbers"),
        ({"lora_alpha": math.inf}, "r and lora_alpha must be numbers"),
        ({"lora_alpha": "2"}, "r and lora_alpha must be numbers"),
        ({"alpha_pattern": {"(a+)+$": 2}}, "names were expected"),
        ({"alpha_pattern": [1]}, "must be names with numbers"),
        ({"bias": "all"}, "trained biases too"),
        ({"modules_to_save": ["head"]}, "uses unknown settings: 'modules_to_save'"),
        ({"layer_replication": [[0, 4]]}, "unknown settings"),
        ({"init_lora_weights": "pissa_niter_4"}, "changed the base"),
    ],
)
def test_a_config_that_would_be_read_wrongly_is_refused(config: dict, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said.replace("(", r"\(")):
        read_adapter(written(tmp_path / "a", config))


@pytest.mark.parametrize("text", ["", "[1]", "{", "[" * 100_000, '{"peft_type": null}'])
def test_a_damaged_config_is_refused(text: str, tmp_path: Path) -> None:
    folder = written(tmp_path / "a")
    (folder / "adapter_config.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError):
        read_adapter(folder)


def test_only_whole_safetensors_are_read(tmp_path: Path) -> None:
    folder = written(tmp_path / "a")
    file = folder / "adapter_model.safetensors"
    whole = file.read_bytes()
    for damaged in (whole[:-8], whole[:40], b"", b"\x80\x04K\x01.", b"\xff" * 64):
        file.write_bytes(damaged)
        with pytest.raises(InputError):
            read_adapter(folder)
    file.unlink()
    torch.save(factors(), folder / "adapter_model.bin")
    with pytest.raises(InputError, match="is a pickle, which is not read"):
        read_adapter(folder)
    with pytest.raises(InputError, match="holds no adapter"):
        read_adapter(tmp_path)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"0.lora_A.weight": torch.ones(2, 6)}, "has no tensor '0.lora_B.weight'"),
        ({"0.lora_A.weight": torch.ones(2, 7), "0.lora_B.weight": torch.ones(5, 2)}, r"is \[2, 7\] \(down\)"),
        ({"0.lora_A.weight": torch.ones(2, 6), "0.lora_B.weight": torch.ones(5, 3)}, r"its other factor \[5, 3\]"),
        ({"9.lora_A.weight": torch.ones(2, 6), "9.lora_B.weight": torch.ones(5, 2)}, "no layer '9'"),
        ({"1.lora_A.weight": torch.ones(2, 6), "1.lora_B.weight": torch.ones(5, 2)}, "'1' is a Sequential"),
        ({"0.lora_A.weight": torch.ones(()), "0.lora_B.weight": torch.ones(5, 2)}, "hold something"),
        ({"0.lora_A.weight": torch.ones(0, 6), "0.lora_B.weight": torch.ones(5, 0)}, "hold something"),
        ({"0.lora_A.weight": torch.ones(2, 6, dtype=torch.int64)}, "should be floating point"),
        ({"0.lora_A.weight": torch.full((2, 6), math.nan)}, "NaN or infinite"),
        ({"0.weight": torch.ones(5, 6)}, "no adapter known here has: '0.weight'"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tensors: dict[str, Tensor], said: str, tmp_path: Path) -> None:
    folder = written(tmp_path / "a")
    save_file({f"base_model.model.{n}": t for n, t in tensors.items()}, folder / "adapter_model.safetensors")
    module = net()
    before = base_hash(module)
    with pytest.raises(InputError, match=said):
        found = read_adapter(folder)
        merge(module, terms_of(found.config, found.tensors, module))
    assert base_hash(module) == before


def test_the_hash_is_of_the_values_and_their_names() -> None:
    module = net()
    before = base_hash(module)
    assert before == base_hash(net()) and len(before) == 64
    with torch.no_grad():
        module.get_parameter("0.bias")[0] += 1
    assert base_hash(module) != before


@pytest.mark.parametrize("method", METHODS)
def test_two_adapters_become_one(method: str, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    a, b = written(tmp_path / "a", seed=1), written(tmp_path / "b", {"r": 3, "use_rslora": True}, seed=2, rank=3)
    density = {} if method in ("cat", "svd") else {"density": 1.0}
    config, tensors, base = combine([read_adapter(a), read_adapter(b)], (0.25, -0.5), method, **density)
    write_adapter(tmp_path / "c", config, tensors, base)
    wanted = 0.25 * change(a) - 0.5 * change(b)
    found = change(tmp_path / "c")
    rank = 5 if method == "cat" else 3
    assert tensors["0.lora_A.weight"].shape == (rank, 6) and config["r"] == rank
    if method == "ties":  # where signs differ, the larger side stands alone
        assert bool((found.isfinite()).all()) and float((found - wanted).norm()) > 0.1
        return
    u, s, vh = torch.linalg.svd(wanted)
    best = (u[:, :rank] * s[:rank]) @ vh[: min(rank, 5)] if rank < 5 else wanted
    torch.testing.assert_close(found, best, atol=1e-5, rtol=1e-5)


def test_a_whole_rank_keeps_a_sum_exactly(tmp_path: Path) -> None:
    a, b = written(tmp_path / "a", seed=1), written(tmp_path / "b", seed=2)
    config, tensors, base = combine([read_adapter(a), read_adapter(b)], (1, 1), "svd", rank=4)
    write_adapter(tmp_path / "c", config, tensors, base)
    torch.testing.assert_close(change(tmp_path / "c"), change(a) + change(b), atol=1e-5, rtol=1e-5)


def test_what_can_not_be_combined_is_refused(tmp_path: Path) -> None:
    a, b = written(tmp_path / "a", base="a" * 64), written(tmp_path / "b", base="b" * 64)
    first, second = read_adapter(a), read_adapter(b)
    with pytest.raises(InputError, match="different bases"):
        combine([first, second], (1, 1), "cat")
    with pytest.raises(UsageError, match="cat has the sum of all ranks"):
        combine([first, first], (1, 1), "cat", rank=3)
    write_adapter(tmp_path / "i", {"peft_type": "IA3"}, {"0.ia3_l": torch.ones(5, 1)}, None)
    with pytest.raises(InputError, match="not a plain LoRA"):
        combine([first, read_adapter(tmp_path / "i")], (1, 1), "cat")


def test_adapters_of_layers_whose_names_end_alike_keep_their_scales(tmp_path: Path) -> None:
    def of(folder: str, ranks: dict[str, int]) -> Path:
        draws = torch.Generator().manual_seed(len(ranks))
        tensors = {}
        for layer, rank in ranks.items():
            tensors[f"{layer}.lora_A.weight"] = torch.randn(rank, 6, generator=draws)
            tensors[f"{layer}.lora_B.weight"] = torch.randn(5, rank, generator=draws)
        rank = max(ranks.values())
        config = {
            **CONFIG,
            "r": rank,
            "lora_alpha": rank,
            "target_modules": sorted(ranks),
            "exclude_modules": ["other"],
        }
        write_adapter(tmp_path / folder, config, tensors, None)
        return tmp_path / folder

    module = nn.ModuleDict({"out": nn.Linear(6, 5), "b": nn.ModuleDict({"out": nn.Linear(6, 5)})})
    first, second = read_adapter(of("a", {"out": 8, "b.out": 8})), read_adapter(of("b", {"b.out": 4}))
    config, tensors, _ = combine([first, second], (0.5, 2.0), "cat")
    assert config["target_modules"] == r"(?:b\.out|out)" and not {"rank_pattern", "exclude_modules"} & set(config)
    terms = terms_of(config, tensors, module)
    parts = [terms_of(each.config, each.tensors, module) for each in (first, second)]
    change = {name: term.up @ term.down for name, term in terms.items()}
    torch.testing.assert_close(change["out"], 0.5 * parts[0]["out"].up @ parts[0]["out"].down)
    both = 0.5 * parts[0]["b.out"].up @ parts[0]["b.out"].down + 2 * parts[1]["b.out"].up @ parts[1]["b.out"].down
    torch.testing.assert_close(change["b.out"], both)


def test_what_cannot_be_combined_is_refused(tmp_path: Path) -> None:
    known = read_adapter(written(tmp_path / "a"))
    for method in METHODS:
        with pytest.raises(UsageError, match="finite"):
            combine([known, known], (math.nan, 1), method)
