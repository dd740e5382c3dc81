"""Models as users bring them, tiny and with random weights: Hugging Face folders, and state dicts with their class."""

from __future__ import annotations

from pathlib import Path

USER_CODE = '''\
import torch
from torch import nn
from torch.nn import functional as F


class Plain(nn.Module):
    """A plain CNN."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1, groups=4), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
        )
        self.classifier = nn.Linear(128, 10)

    def forward(self, images):
        return self.classifier(torch.flatten(self.features(images), 1))


class Attention(nn.Module):
    """torch's own attention, whose fused projection is no layer."""

    def __init__(self):
        super().__init__()
        self.inside = nn.Linear(16, 64)
        self.attention = nn.MultiheadAttention(64, 4, batch_first=True)
        self.outside = nn.Linear(64, 8)

    def forward(self, x):
        h = self.inside(x)
        return self.outside(self.attention(h, h, h, need_weights=False)[0])


class Tied(nn.Module):
    """A language model whose head is its embedding."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(96, 64)
        self.mix = nn.Linear(64, 64)
        self.head = nn.Linear(64, 96, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids):
        return self.head(torch.tanh(self.mix(self.embedding(ids))))


class Branching(nn.Module):
    """Its way depends on the values: no graph can hold that."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x):
        return self.one(x) if x.sum() > 0 else self.two(x)


class Foreign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return torch.from_numpy(x.detach().numpy() * 2)


class Numpy(nn.Module):
    """It leaves torch half-way."""

    def __init__(self):
        super().__init__()
        self.one = nn.Linear(64, 64)

    def forward(self, x):
        return Foreign.apply(self.one(x))


class Parameterless(nn.Module):
    def forward(self, x):
        return F.relu(x)
'''

SHAPES = {
    "Plain": ("--input-shape", "1,3,16,16"),
    "Attention": ("--input-shape", "1,5,16"),
    "Branching": ("--input-shape", "1,64"),
    "Numpy": ("--input-shape", "1,64"),
}


def write_user_models(folder: Path) -> None:
    """``user.py`` with a ``NAME.pt`` for each of its modules, and the GRU of the examples; ids.npz for token models."""
    import importlib.util

    import numpy as np
    import torch

    (folder / "user.py").write_text(USER_CODE, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("foreign_user_code", folder / "user.py")
    assert spec and spec.loader
    user = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(user)
    torch.manual_seed(0)
    for name in ("Plain", "Attention", "Tied", "Branching", "Numpy", "Parameterless"):
        torch.save(getattr(user, name)().state_dict(), folder / f"{name}.pt")
    example = Path(__file__).resolve().parents[2] / "examples" / "gru_classifier.py"
    (folder / "gru_classifier.py").write_bytes(example.read_bytes())
    spec = importlib.util.spec_from_file_location("foreign_gru", example)
    assert spec and spec.loader
    gru = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(gru)
    torch.save(gru.gru_classifier(96, 32, 32, 4).state_dict(), folder / "gru.pt")
    np.savez(folder / "ids.npz", ids=np.random.default_rng(0).integers(0, 96, (8, 12)))


def write_huggingface(folder: Path, name: str) -> Path:
    """A tiny random model of transformers, saved as its users save it."""
    import torch
    import transformers as t

    small = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 96}
    torch.manual_seed(0)
    model = {
        "bert": lambda: t.BertModel(t.BertConfig(vocab_size=99, max_position_embeddings=64, **small)),
        "llama": lambda: t.LlamaForCausalLM(
            t.LlamaConfig(vocab_size=99, max_position_embeddings=64, num_key_value_heads=2, **small)
        ),
        "vit": lambda: t.ViTForImageClassification(t.ViTConfig(image_size=32, patch_size=8, num_labels=5, **small)),
        "gpt2": lambda: t.GPT2LMHeadModel(t.GPT2Config(vocab_size=99, n_positions=64, n_embd=64, n_layer=1, n_head=4)),
        "t5": lambda: t.T5ForConditionalGeneration(
            t.T5Config(vocab_size=99, d_model=64, d_kv=16, d_ff=96, num_layers=1, num_heads=4)
        ),
    }[name]()
    path = folder / name
    model.save_pretrained(path)
    return path
