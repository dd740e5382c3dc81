"""The examples of docs/python.md run as they stand there, one after the other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import compresskit

PAGE = Path(__file__).resolve().parents[2] / "docs" / "python.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)
NET = """
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.first, self.last = nn.Conv2d(1, 8, 3), nn.Linear(288, 32), nn.Linear(32, 10)

    def forward(self, x):
        return self.last(self.first(self.conv(x).relu().flatten(1)).relu())
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The names that the page's examples leave, run in a folder like the demo's; its net is smaller."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "net.py").write_text(NET)
    names: dict[str, Any] = {}
    exec(NET, names)
    torch.manual_seed(0)
    net = names["Net"]().eval()
    torch.save(net.state_dict(), folder / "digits.pt")
    for name, count in (("train", 96), ("test", 64)):
        x = torch.rand(count * 4, 1, 8, 8)
        top = net(x).topk(2).values
        clear = (top[:, 0] - top[:, 1]).argsort(descending=True)[:count]
        np.savez(folder / f"{name}.npz", x=x[clear].numpy(), y=net(x[clear]).argmax(1).numpy())
    found: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for place, block in enumerate(BLOCK.findall(PAGE.read_text(encoding="utf-8"))):
            exec(compile(block, f"{PAGE.name}, block {place}", "exec"), found)
            found[f"report {place}"] = found.get("report")
    return found


def test_every_public_verb_has_an_example() -> None:
    page = PAGE.read_text(encoding="utf-8")
    verbs = [name for name in compresskit.__all__ if name.islower() and not name.startswith("_")]
    assert [name for name in verbs if f"compresskit.{name}" not in page] == []


def test_examples_do_what_they_say(said: dict[str, Any]) -> None:
    reports = [said[key] for key in sorted(k for k in said if k.startswith("report ")) if said[key] is not None]
    assert said["found"]["totals"]["parameters"] == 80 + 288 * 32 + 32 + 330
    # 64 samples can't prove what the demo's can.
    assert "FAIL" not in {report.verdict.value for report in reports}
    assert len(said["latency"].unit) > 0 and said["latency"].value > 0
    assert said["report"].values("accuracy")
