"""A card that someone changed: each field of each fact, in many ways. It is refused by name, or nothing changes."""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_material import Cli
from test_frozen_bundles import BUNDLES, CARDS, FROZEN, arch_of, inputs_of

import compresskit
from compresskit.errors import InputError, UsageError
from compresskit.model import Card
from compresskit.runner.loading import history_facts

GONE = object()
NESTED: Any = json.loads("[" * 900 + "]" * 900)
VALUES: list[Any] = [
    GONE, None, -5, 0, 1, 10**20, 10**400, 2.5, float("nan"), float("inf"), True, False, "", "nowhere", "\ud800",
    "x" * 100_000, [], {}, [1, 2, 3], [[]], {"x": 1}, {"\ud800": None}, NESTED,
]  # fmt: skip
KEYS = ["", "nowhere", "__class__", "\ud800", "a.b", "x" * 100_000]
SOME = int(os.environ.get("TAMPERED_CARDS", "60"))
"""Changes of a bundle that are tried on the loader, drawn by a seed."""


def places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in JSON; of a list and of like entries (layers) the first and one more."""
    items = list(data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ())
    alike = all(isinstance(value, dict) for _, value in items) and len({tuple(value) for _, value in items}) == 1
    if isinstance(data, list) or alike:
        items = [items[i] for i in sorted({0, len(items) - 1}) if items]
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


def changed(data: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy with one value replaced or taken out."""
    found = copy.deepcopy(data)
    holder = found
    for key in path[:-1]:
        holder = holder[key]
    if value is GONE:
        del holder[path[-1]]
    else:
        holder[path[-1]] = value
    return found


def renamed(data: Any, path: tuple[Any, ...], name: str) -> Any:
    """A copy with another key."""
    found = copy.deepcopy(data)
    holder = found
    for key in path[:-1]:
        holder = holder[key]
    if isinstance(holder, dict):
        holder[name] = holder.pop(path[-1])
    return found


def changes(data: Any) -> Iterator[tuple[str, Any]]:
    """Cards that differ from the given one in one thing, and what that is."""
    for path in places(data):
        if path[0] != "files" and path[:2] != ("arch", "args"):  # hashes, and what the user's own code is called with
            where = ".".join(map(str, path))
            yield from ((f"{where} = {str(value)[:40]!a}", changed(data, path, value)) for value in VALUES)
            yield from ((f"{where} -> {name[:40]!a}", renamed(data, path, name)) for name in KEYS)


@pytest.mark.parametrize("name", CARDS)
def test_changed_facts_are_refused_or_read(name: str) -> None:
    data = json.loads((FROZEN / "cards" / f"{name}.json").read_text())
    rng, refused = random.Random(name), 0
    tried = list(places(data["history"]))
    for path in rng.sample(tried, min(60, len(tried))):
        for value in rng.sample(VALUES, 8):
            try:
                history_facts(Card.from_json({**data, "history": changed(data["history"], path, value)}), name)
            except InputError as error:
                refused += 1
                assert len(str(error)) < 1000
    assert refused > 100


@pytest.mark.parametrize("name", BUNDLES)
def test_a_changed_card_is_refused_or_loads_as_before(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    shutil.copytree(FROZEN / name, folder)
    path, data = folder / "compresskit.json", json.loads((FROZEN / name / "compresskit.json").read_text())
    inputs = {k: torch.from_numpy(v) for k, v in inputs_of(name, dict(np.load(FROZEN / "outputs.npz"))).items()}
    before = compresskit.load(folder, arch=arch_of(name)).module.eval()(**inputs)
    refused = 0
    for what, card in random.Random(name).sample(every := list(changes(data)), min(SOME, len(every))):
        path.write_text(json.dumps(card))
        try:
            module = compresskit.load(folder, arch=arch_of(name)).module.eval()
        except UsageError as error:  # the card's stage may be of a package that isn't installed here
            refused += 1
            assert "there is no method" in error.message and ".name" in what, what
        except InputError as error:
            refused += 1
            assert "compresskit.json" in str(error) or name in str(error) or "'" in str(error), what
        else:
            assert torch.equal(module(**inputs), before), what
    assert refused > min(SOME, len(every)) / 3


@pytest.mark.parametrize(
    ("name", "field", "value", "words"),
    [
        ("gptq", "layers.wide.bits", 5, "layer 'wide': there is no such grid"),
        ("gptq", "layers.wide.bits", 16, "layers.wide.bits: Input should be less than or equal to 8, found 16"),
        ("gptq", "layers.wide.shape", [10**20, 32], "layers.wide.shape.0"),
        ("gptq", "layers.wide.repair", 200, "layers.wide: Value error, a repair of rank 200"),
        ("gptq", "layers.wide.sqnr", "loud", "layers.wide.sqnr: Input should be a valid number, found 'loud'"),
        ("gptq", "ties.head", "nowhere", "can't share the weight of 'nowhere'"),
        ("recipe", "layers.blocks&1&first.out", [16, -8], "layers.blocks.1.first.out.1"),
        ("recipe", "rewritten.blocks&0", [{"pad": 0}], "rewritten.blocks.0.0.in"),
        ("lora", "adapters.wide.parts.down", [1 << 30, 32], "far larger than its layer"),
        ("lora", "adapters.wide.parts.sideways", [2, 32], "adapters.wide.parts.sideways"),
        ("lora", "adapters", GONE, "adapters: Field required"),
        ("lora", "unheard", 1, "unheard: an unknown key"),
    ],
)
def test_the_error_names_the_field(name: str, field: str, value: Any, words: str, tmp_path: Path) -> None:
    shutil.copytree(FROZEN / name, tmp_path / name)
    card = tmp_path / name / "compresskit.json"
    where = ("history", 0, "facts", *(part.replace("&", ".") for part in field.split(".")))
    card.write_text(json.dumps(changed(json.loads(card.read_text()), where, value)))
    with pytest.raises(InputError) as error:
        compresskit.load(tmp_path / name, arch=arch_of(name))
    assert words in error.value.message


@pytest.mark.parametrize(
    "command",
    [
        ("inspect", "lora"),
        ("inspect", "lora", "--arch", "nets.py:Words"),
        ("bench", "lora"),
        ("evaluate", "lora", "--data", "words.npz"),
        ("compare", "lora", "lora"),
        ("lora", "merge", "lora", "--arch", "nets.py:Words", "-o", "out"),
        ("export", "lora", "--arch", "nets.py:Words", "-o", "out.onnx"),
        ("verify", "lora"),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("field", ["adapters", "layers", "training"])
def test_every_command_refuses_a_changed_card(
    command: tuple[str, ...], field: str, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in ("lora", "nets.py", "words.npz"):
        (shutil.copytree if part == "lora" else shutil.copy)(FROZEN / part, tmp_path / part)
    monkeypatch.chdir(tmp_path)
    card = Path("lora/compresskit.json")
    card.write_text(json.dumps(changed(json.loads(card.read_text()), ("history", 0, "facts", field), [{}])))
    cli(*command).refused(3, field if command[0] != "verify" else "lora")
