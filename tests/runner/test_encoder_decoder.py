"""Encoder-decoders: a quantized folder computes what the original does, about."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import compresskit


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=128, d_model=64, d_kv=16, d_ff=128, num_layers=1, num_heads=4, decoder_start_token_id=0
    )
    folder = tmp_path_factory.mktemp("ed") / "t5"
    transformers.T5ForConditionalGeneration(config).save_pretrained(folder)
    return folder


def test_its_folder_is_quantized(t5: Path, tmp_path: Path) -> None:
    compresskit.run(t5, [compresskit.method("quantize.rtn", bits=8)], tmp_path / "out")
    ids, decoded = torch.arange(3, 12)[None], torch.arange(5)[None]
    logits = []
    for path in (t5, tmp_path / "out"):
        with torch.no_grad():
            logits.append(compresskit.load(path).module(input_ids=ids, decoder_input_ids=decoded).logits)
    assert 0 < (logits[1] - logits[0]).norm() / logits[0].norm() < 0.05
    sizes = [(path / "model.safetensors").stat().st_size for path in (t5, tmp_path / "out")]
    assert sizes[1] < 0.4 * sizes[0]
