"""Encoder-decoders: a quantized folder, or a refusal that says how to get one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import compresskit
from compresskit.errors import InputError


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
    compresskit.run(t5, [compresskit.method("quantize.rtn", bits=8)], tmp_path / "out", export=False)
    ids, decoded = torch.arange(3, 12)[None], torch.arange(5)[None]
    logits = []
    for path in (t5, tmp_path / "out"):
        with torch.no_grad():
            logits.append(compresskit.load(path).module(input_ids=ids, decoder_input_ids=decoded).logits)
    assert 0 < (logits[1] - logits[0]).norm() / logits[0].norm() < 0.05
    sizes = [(path / "model.safetensors").stat().st_size for path in (t5, tmp_path / "out")]
    assert sizes[1] < 0.4 * sizes[0]


@pytest.mark.slow
def test_its_export_is_refused_with_the_way_out(t5: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError) as refused:
        compresskit.run(t5, [compresskit.method("quantize.rtn", bits=8)], tmp_path / "out", bench=False)
    assert "`no_export` writes the folder" in (refused.value.hint or "")
    assert not (tmp_path / "out").exists()
