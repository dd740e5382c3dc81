"""Small models of the kinds that users bring, and a packer that knows nothing of the product's algorithms."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compresskit.model import InputSpec
from compresskit.ops.packed.grid import Grid, Packed, pack
from compresskit.ops.packed.modules import PackedEmbedding, PackedLinear, packed_twin, set_module
from compresskit.ops.packed.nf4 import nf4_grid

IMAGE = (InputSpec("x", "float32", ("batch", 3, 16, 16)),)
SIZES = (64, 50)
WIDTHS = ((2, True), (3, False), (4, False), (4, True), (8, False))
GRIDS = [Grid(b, g, s) for b, s in WIDTHS for g in (0, 32, 24)]
GRIDS += [Grid(2, 16), Grid(3, 16, True), Grid(4, 48), nf4_grid(32), nf4_grid(24)]
CONV_GRIDS = (Grid(2, 0), Grid(3, 0), Grid(3, 16, True), Grid(4, 0), Grid(4, 32, True), Grid(8, 0), nf4_grid(16))


def ids(name: str, high: int) -> InputSpec:
    return InputSpec(name, "int64", ("batch", "sequence"), high)


class Cnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 12, 3, stride=2, padding=1, padding_mode="reflect", groups=2)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        return self.head(torch.relu(self.second(x)).mean((2, 3)))


class Recurrent(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 6)
        options = {"batch_first": True, "bidirectional": kind != "RNN", "num_layers": 2}
        if kind == "RNN":
            options |= {"nonlinearity": "relu", "bias": False}
        self.core = getattr(nn, kind)(6, 5, **options)
        self.head = nn.Linear(5 if kind == "RNN" else 10, 3)

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        out, state = self.core(self.embed(ids))
        return {"logits": self.head(out[:, -1]), "state": state[0] if isinstance(state, tuple) else state}


def transformer(kind: str) -> tuple[nn.Module, tuple[InputSpec, ...]]:
    import transformers as tf

    common = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    text = (ids("input_ids", 40), ids("attention_mask", 2))
    if kind == "bert":
        config = tf.BertConfig(vocab_size=40, max_position_embeddings=24, **common)
        return tf.BertModel(config), (*text, ids("token_type_ids", 2))
    if kind == "llama":
        config = tf.LlamaConfig(
            vocab_size=40, max_position_embeddings=64, num_key_value_heads=2, tie_word_embeddings=True, **common
        )
        return tf.LlamaForCausalLM(config), text
    if kind == "gpt2":
        config = tf.GPT2Config(
            vocab_size=40, n_embd=32, n_layer=1, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=0
        )
        return tf.GPT2LMHeadModel(config), text
    config = tf.ViTConfig(image_size=16, patch_size=8, **common)
    return tf.ViTForImageClassification(config), (InputSpec("pixel_values", "float32", ("batch", 3, 16, 16)),)


def make(kind: str) -> tuple[nn.Module, tuple[InputSpec, ...]]:
    torch.manual_seed(0)
    if kind == "cnn":
        module, inputs = Cnn(), IMAGE
    elif kind in ("GRU", "LSTM", "RNN"):
        module, inputs = Recurrent(kind), (ids("ids", 20),)
    else:
        module, inputs = transformer(kind)
    return module.eval(), inputs


def packed(shape: tuple[int, ...], grid: Grid, seed: int = 0) -> Packed:
    """Random codes, scales and zero points: every code occurs, none was rounded from anything."""
    g = torch.Generator().manual_seed(seed)
    columns = int(torch.tensor(shape[1:]).prod())
    groups, size, _ = grid.layout(columns)

    def random(*dims: int) -> Tensor:
        return torch.randint(0, grid.largest + 1, dims, generator=g, dtype=torch.uint8)

    scales = (torch.rand(shape[0], groups, generator=g) * 0.01 + 0.001).half()
    zeros = None if grid.symmetric else pack(random(shape[0], groups), grid.bits)
    return Packed(pack(random(shape[0], groups, size), grid.bits), scales, zeros, shape, grid)


def pack_all(module: nn.Module, grid: Grid, conv: Grid | None = None) -> nn.Module:
    """Every Linear, Embedding and Conv packed; tied weights stay tied."""
    made: dict[int, Packed] = {}
    for name, layer in list(module.named_modules()):
        if type(layer) in (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d):
            chosen = conv or Grid(grid.bits, 0, grid.symmetric) if "Conv" in type(layer).__name__ else grid
            if id(layer.weight) not in made:
                made[id(layer.weight)] = packed(tuple(layer.weight.shape), chosen, len(made))
            set_module(module, name, packed_twin(layer, made[id(layer.weight)]))
    return module


class Many(nn.Module):
    """One layer for each width and grid, all fed from one input."""

    def __init__(self, kind: type[nn.Module], grids: list[Grid]) -> None:
        super().__init__()
        self.layers = nn.ModuleDict()
        for seed, (width, grid) in enumerate((w, g) for w in SIZES for g in grids):
            if kind is nn.Linear:
                layer: nn.Module = PackedLinear(nn.Linear(width, 7, bias=seed % 2 == 0), packed((7, width), grid, seed))
            else:
                layer = PackedEmbedding(nn.Embedding(9, width), packed((9, width), grid, seed))
            self.layers[f"{width}_{grid.bits}_{grid.group_size}_{grid.symmetric}_{grid.format.name}"] = layer

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        if x.is_floating_point():
            return {name: layer(x[..., : layer.in_features]) for name, layer in self.layers.items()}
        return {name: layer(x) for name, layer in self.layers.items()}


class Convs(nn.Module):
    """A net of two convolutions for each grid."""

    def __init__(self) -> None:
        super().__init__()
        self.nets = nn.ModuleList(pack_all(Cnn(), Grid(grid.bits, 32), grid) for grid in CONV_GRIDS)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(net(x) for net in self.nets)


class Tied(nn.Module):
    def __init__(self, shared: Packed) -> None:
        super().__init__()
        self.embed = PackedEmbedding(nn.Embedding(500, 48), shared)
        self.head = PackedLinear(nn.Linear(48, 500, bias=False), shared)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.embed(ids))


def corrected(grid: Grid) -> PackedLinear:
    """A layer that also scales its inputs and adds a low-rank term."""
    g = torch.Generator().manual_seed(0)
    layer = PackedLinear(nn.Linear(512, 384), packed((384, 512), grid))
    layer.input_scale = torch.rand(512, generator=g) + 0.5
    layer.repair_in = (torch.randn(16, 512, generator=g) * 0.05).half()
    layer.repair_out = (torch.randn(384, 16, generator=g) * 0.05).half()
    return layer
