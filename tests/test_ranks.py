"""Processes that share layers: who computes which, and that each is what one process has."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from two_ranks import COSTS, everything, layer, told
from warm import Warm

from compresskit.ranks import ALONE

EXPECTED = [[name, told(layer(name))] for name in COSTS]


def launch(warm: Warm, size: int, *arguments: str) -> list[tuple[int, Any, str]]:
    """Exit code, result and errors of each process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size), "OMP_NUM_THREADS": "1"}
    started = [
        warm.start(
            ("-m", "two_ranks", *arguments), cwd=Path(__file__).parent, env={**os.environ, **place, "RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for rank in range(size)
    ]  # fmt: skip
    found = []
    for process in started:
        assert process.stdout is not None and process.stderr is not None
        code = process.wait(timeout=120)
        out, err = process.stdout.read(), process.stderr.read()
        process.stdout.close()
        process.stderr.close()
        found.append((code, json.loads(out) if out else None, err))
    return found


@pytest.mark.parametrize(("size", "shares"), [(2, ["acde", "b"]), (3, ["ad", "b", "ce"])])
def test_each_layer_is_computed_once_and_arrives_in_order(warm_torch: Warm, size: int, shares: list[str]) -> None:
    found = launch(warm_torch, size)
    assert [code for code, _, _ in found] == [0] * size, found
    for number, (_, got, _) in enumerate(found):
        assert got["rank"] == number
        assert "".join(got["computed"]) == "".join(got["made"]) == shares[number]
        assert got["collected"] == (json.loads(json.dumps(EXPECTED)) if number == 0 else [])
        others = [part for name, part in EXPECTED if name not in got["made"]]
        assert got["taken"] == json.loads(json.dumps(others))


@pytest.mark.parametrize(("layer", "broken"), [("b", 1), ("c", 0)])
def test_an_error_of_one_ends_all(warm_torch: Warm, layer: str, broken: int) -> None:
    found = launch(warm_torch, 2, layer)
    assert all(code != 0 and got is None for code, got, _ in found)
    assert "ValueError: as asked" in found[broken][2]
    assert "ValueError" not in found[1 - broken][2] and "the connection to the other processes" in found[1 - broken][2]


def test_one_process_computes_everything_itself() -> None:
    found = everything()
    assert json.loads(json.dumps(found["collected"])) == json.loads(json.dumps(EXPECTED))
    assert found["computed"] == found["made"] == list(COSTS) and found["taken"] == []
    assert (ALONE.rank, ALONE.size) == (0, 1)


def test_one_process_imports_nothing_for_it() -> None:
    code = "import sys; from compresskit.ranks import joined\nwith joined(): assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "WORLD_SIZE": "1"})
