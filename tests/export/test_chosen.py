"""A token that is chosen at the end is the only one that the last layers compute."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compresskit.exporter.checked import export_checked
from compresskit.model import InputSpec

WIDTH, HEADS, TOKENS = 8, 2, 5


class Block(nn.Module):
    """Attention and a feed-forward layer with residuals; ``masked`` adds a mask that hides nothing, as transformers."""

    def __init__(self, masked: bool = False) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(3 * WIDTH, WIDTH)
        self.masked = masked

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        q, k, v = (
            part(h).view(-1, TOKENS, HEADS, WIDTH // HEADS).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        mask = (
            torch.ones(1, 1, TOKENS, 1, dtype=torch.bool).expand(x.shape[0], 1, TOKENS, TOKENS) if self.masked else None
        )
        met = F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).reshape(-1, TOKENS, WIDTH)
        x = x + self.out(met)
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Encoder(nn.Module):
    """Two blocks, of whose tokens one is read, or ``all``, or ``two``."""

    def __init__(self, reads: str, masked: bool = False) -> None:
        super().__init__()
        self.blocks, self.norm, self.head = (
            nn.Sequential(Block(masked), Block(masked)),
            nn.LayerNorm(WIDTH),
            nn.Linear(WIDTH, 3),
        )
        self.reads = reads

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        h = self.norm(self.blocks(x))
        if self.reads == "all":
            return self.head(h[:, 0]), h
        if self.reads == "two":
            return self.head(h[:, 0] + h[:, 1])
        return self.head(h[:, {"first": 0, "last": -1}[self.reads]])


def exported(module: nn.Module, path: Path) -> onnx.ModelProto:
    torch.manual_seed(0)
    export_checked(module.eval(), (InputSpec("x", "float32", ("batch", TOKENS, WIDTH)),), path)
    return onnx.load(path)


def tokens(path: Path, kind: str) -> list[int]:
    """Size of the token axis (the last but one) of each result of a kind of operator, at batch 2, in order."""
    graph = onnx.load(path)
    names = [node.output[0] for node in graph.graph.node if node.op_type == kind]
    graph.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).standard_normal((2, TOKENS, WIDTH), np.float32)
    return [value.shape[-2] for value in session.run(names, {"x": x})]


@pytest.mark.parametrize("reads", ["first", "last"])
def test_the_last_block_has_one_query_and_one_row(tmp_path: Path, reads: str) -> None:
    exported(Encoder(reads), tmp_path / "m.onnx")
    assert tokens(tmp_path / "m.onnx", "Gelu") == [TOKENS, 1]
    assert tokens(tmp_path / "m.onnx", "Softmax") == [TOKENS, 1]
    assert tokens(tmp_path / "m.onnx", "LayerNormalization") == [TOKENS, TOKENS, TOKENS, 1, 1]


@pytest.mark.parametrize("reads", ["all", "two"])
def test_what_other_tokens_are_read_of_is_computed_for_all(tmp_path: Path, reads: str) -> None:
    exported(Encoder(reads), tmp_path / "m.onnx")
    assert tokens(tmp_path / "m.onnx", "Gelu") == [TOKENS, TOKENS]
    assert tokens(tmp_path / "m.onnx", "Softmax") == [TOKENS, TOKENS]


def test_a_mask_that_hides_nothing_is_not_added(tmp_path: Path) -> None:
    kinds = {node.op_type for node in exported(Encoder("first", masked=True), tmp_path / "m.onnx").graph.node}
    assert not kinds & {"Where", "Expand"}
    assert tokens(tmp_path / "m.onnx", "Softmax") == [TOKENS, 1]
