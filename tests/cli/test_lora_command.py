"""lora on the command line: training, merge, list and combine, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_material import ARCH, SHAPE, Cli

pytest.importorskip("peft")
QUICK = ("--epochs", 1, "--rank", 2, "--no-bench", "--no-export", "--quiet", "--threads", 1)


@pytest.fixture
def tuned(cli: Cli, here: Path) -> Path:
    found = cli("lora", "m.pt", *ARCH, *SHAPE, *QUICK, "--data", "d.npz", "-o", "tuned", "--json", "-")
    assert found.code == 0, found
    applied = json.loads(found.out)["history"][-1]
    assert applied["name"] == "lora.lora" and set(applied["facts"]["layers"]) == {"first", "head"}
    return here


def test_merge_takes_an_adapter_or_what_lies_beside(cli: Cli, tuned: Path) -> None:
    for words, out in ((("m.pt", "tuned/adapter"), "one"), (("tuned",), "two"), (("m.pt", "tuned"), "three")):
        found = cli("lora", "merge", *words, *ARCH, *SHAPE, "--no-bench", "--no-export", "--quiet", "-o", out)
        assert found.code == 0, found
    weights = [(tuned / out / "model.safetensors").stat().st_size for out in ("one", "two", "three")]
    assert max(weights) - min(weights) < 1000  # the header tells the history
    assert cli("quantize", "tuned", *ARCH, "-o", "q").code == 2
    again = cli("quantize", "two", *ARCH, "--method", "rtn", "--no-export", "--quiet", "-o", "q")
    assert again.code == 0, again


def test_merge_is_no_model_and_help_tells(cli: Cli, tuned: Path) -> None:
    (tuned / "merge").write_bytes((tuned / "m.pt").read_bytes())
    found = cli("lora", "./merge", *ARCH, *SHAPE, *QUICK, "--data", "d.npz", "-o", "out")
    assert found.code == 0, found
    cli("lora", "merge", "-o", "out2").refused(2, "MODEL")
    text = cli("lora", "--help").out
    assert all(f"compresskit lora {name}:" in text for name in ("merge", "list", "combine", "route"))
    for name in ("merge", "list", "combine", "route"):
        found = cli("lora", name, "--help")
        assert found.code == 0 and f"Usage: compresskit lora {name}" in found.out


def test_list_and_combine(cli: Cli, tuned: Path) -> None:
    found = cli("lora", "list", "tuned", "--json", "-")
    told = json.loads(found.out)
    assert told["kind"] == "lora" and set(told["layers"]) == {"first", "head"} and len(told["base_sha256"]) == 64
    assert "first" in cli("lora", "list", "tuned/adapter").out
    words = ("lora", "combine", "tuned", "tuned/adapter", "--weights", ".25", ".75")
    assert cli(*words, "--method", "cat", "-o", "both").code == 0
    assert json.loads(cli("lora", "list", "both", "--json", "-").out)["layers"]["head"]["rank"] == 4
    cli(*words, "-o", "both").refused(2, "both")
    cli(*words, "--method", "mean", "-o", "third").refused(2, "cat, svd, ties, dare")
    merged = cli("lora", "merge", "m.pt", "both", *ARCH, *SHAPE, "--no-export", "--quiet", "-o", "sum")
    assert merged.code == 0, merged


def test_route_takes_adapters_behind_the_model(cli: Cli, tuned: Path) -> None:
    words = ("--no-bench", "--no-export", "--quiet", "-o", "routed", "--json", "-")
    found = cli("lora", "route", "m.pt", "tuned", "tuned/adapter", *ARCH, *SHAPE, *words)
    assert found.code == 0, found
    facts = json.loads(found.out)["history"][-1]["facts"]
    assert facts["adapters"] == ["tuned", "tuned/adapter"] and facts["layers"]["head"]["ranks"] == [2, 2]
    cli("lora", "route", "m.pt", "tuned", *ARCH, *SHAPE, "-o", "x").refused(2, "two or more are needed")
    cli("lora", "merge", "routed", *ARCH, *SHAPE, "-o", "x").refused(2, "nothing can")


def test_what_does_not_go_together_is_refused(cli: Cli, tuned: Path) -> None:
    cli("lora", "m.pt", *ARCH, *SHAPE, "-o", "x").refused(2, "needs training data")
    cli("lora", "m.pt", *ARCH, *SHAPE, "--data", "d.npz", "--rank", 64, "-o", "x").refused(2, "above the matrix")
    cli("lora", "m.pt", *ARCH, *SHAPE, "--data", "d.npz", "--method", "prompt", "-o", "x").refused(3, "prompt tuning")
    cli("lora", "merge", "m.pt", *ARCH, *SHAPE, "-o", "x").refused(2, "no adapter beside")
    cli("lora", "merge", "m.pt", "d.npz", *ARCH, *SHAPE, "-o", "x").refused(3, "holds no adapter")
    cli("lora", "list", "bundle").refused(3, "holds no adapter")
    config = tuned / "tuned" / "adapter" / "adapter_config.json"
    config.write_text("{", encoding="utf-8")
    cli("lora", "merge", "m.pt", "tuned", *ARCH, *SHAPE, "-o", "x").refused(3, "not valid JSON")
    assert not (tuned / "x").exists()
