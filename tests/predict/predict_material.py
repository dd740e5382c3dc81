"""Small models with all that surrounds real ones: a tokenizer, labels, pooling, pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers

import compresskit

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "cat", "dog", "sat", "ran", "on", "mat", "a", "far", "away"]
TEXTS = ["the cat sat on the mat", "a dog ran far away", "cat"]


def tokenizer(folder: Path) -> None:
    """As all-MiniLM's: its own padding and truncation are of one training run, and must not be obeyed."""
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    made.enable_padding(length=24)
    made.save(str(folder / "tokenizer.json"))
    kept = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 30, "pad_token": "[PAD]",
            "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(kept))


def bert(folder: Path, kind: str, layers: int = 2, width: int = 16, **more: Any) -> Path:
    """A Hugging Face folder of a random BERT."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=width, num_hidden_layers=layers, num_attention_heads=2,
        intermediate_size=2 * width, max_position_embeddings=2 * width, initializer_range=0.4, **more,
    )  # fmt: skip
    getattr(transformers, kind)(config).eval().save_pretrained(folder)
    tokenizer(folder)
    return folder


def classifier(folder: Path) -> Path:
    """A Hugging Face folder of a classifier of texts, with labels."""
    return bert(folder, "BertForSequenceClassification", num_labels=3, id2label={0: "bad", 1: "fair", 2: "good"})


def sentences(folder: Path, layers: int = 2, width: int = 16) -> Path:
    """A sentence-transformers folder."""
    bert(folder, "BertModel", layers, width)
    kinds = ["Transformer", "Pooling", "Normalize"]
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    told = {"embedding_dimension": width, "pooling_mode": "mean"}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(told))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 6, "do_lower_case": false}')
    (folder / "README.md").write_text("---\nlicense: apache-2.0\nlanguage: en\ntags:\n- x\n---\n# A model\n")
    return folder


NET = """\
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 4, 3), nn.Linear(144, 3)

    def forward(self, x):
        return self.last(self.conv(x).relu().flatten(1))
"""


def pictures(folder: Path) -> None:
    """In a folder: net.py, m.pt, and pictures of three classes that aren't of the net's size."""
    from PIL import Image

    names: dict[str, Any] = {}
    exec(NET, names)
    (folder / "net.py").write_text(NET)
    torch.manual_seed(0)
    torch.save(names["Net"]().state_dict(), folder / "m.pt")
    draw = np.random.default_rng(0)
    for kind in ("cat", "dog", "fox"):
        (folder / "pictures" / kind).mkdir(parents=True)
        for number in range(3):
            pixels = draw.integers(0, 255, (10, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "pictures" / kind / f"{number}.png")


def bundles(place: Path, names: Mapping[str, str], normalize: str) -> None:
    """Models and their 8-bit bundles in a folder: of sentences, of classes of texts, and of pictures.

    Args:
        place: Also gets ``pictures``, a folder of class folders.
        names: What the bundle of each model is called: of ``st``, ``cls`` and ``m.pt``.
        normalize: Of the pictures.
    """
    sentences(place / "st")
    classifier(place / "cls")
    pictures(place)
    for source in ("st", "cls"):
        eight = [compresskit.method("quantize.rtn", bits=8, group_size=16)]
        compresskit.run(place / source, eight, place / names[source], bench=False)
    compresskit.run(
        place / "m.pt", [compresskit.method("quantize.rtn", bits=8)], place / names["m.pt"],
        arch=f"{place}/net.py:Net", input_shape=(1, 3, 8, 8), eval_data=place / "pictures", normalize=normalize,
        bench=False,
    )  # fmt: skip
