"""Rotations folded into the weights of a decoder: it computes the same, and outliers are spread over all columns.

"QuaRot: Outlier-Free 4-Bit Inference in Rotated LLMs" (Ashkboos et al., 2024), as far as nothing is computed at run
time: its stream of hidden states is rotated (R1 of "SpinQuant", Liu et al., 2024), and each head's values (R2). RMS
normalization gives rotated outputs for rotated inputs once its weights lie in the layers that read it. What writes to
the stream is multiplied on the side of its outputs, what reads it on that of its inputs. Left out: rotations of
activations inside attention and feed-forward, which an engine would have to compute, and SpinQuant's learning.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compresskit.checkpoint.tensors import Tensors
from compresskit.errors import UsageError, listing
from compresskit.facts.quantize import RotationFacts
from compresskit.ops.quantize.hadamard import Rotation

ROTATABLE = ("llama", "mistral", "qwen2", "qwen3", "mixtral", "qwen3_moe")
"""``model_type`` of decoders with RMS normalization in front of attention and feed-forward, and nothing else there."""
_HINT = f"leave `rotate` out; it takes causal language models of transformers of: {', '.join(ROTATABLE)}"
_TABLE, _NORM, _HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"


@dataclass(frozen=True)
class Turned:
    """How a tensor of the rotated model is made of one of the original.

    Attributes:
        source: Name of that tensor.
        norm: Name of the normalization weight that its columns are multiplied by; None for none.
        turns: Rotations, each with the axis that it turns.
        is_norm: It is such a weight itself: then it is ones.
    """

    source: str
    norm: str | None = None
    turns: tuple[tuple[int, Rotation], ...] = ()
    is_norm: bool = False

    def made(self, get: Callable[[str], Tensor]) -> Tensor:
        """The tensor in float32; one of float64 stays so.

        Args:
            get: Gives a tensor of the original by name.
        """
        value = get(self.source)
        value = value if value.dtype == torch.float64 else value.float()
        if self.is_norm:
            return torch.ones_like(value)
        if self.norm is not None:
            value = (value.double() * get(self.norm).double()).to(value.dtype)
        for axis, rotation in self.turns:
            value = rotation.turn(value, axis)
        return value


@dataclass(frozen=True)
class Plan:
    """A rotation of a model.

    Attributes:
        tensors: What becomes of each tensor that changes, by name.
        facts: What the card records of it.
    """

    tensors: Mapping[str, Turned]
    facts: RotationFacts


class RotatedTensors(Tensors):
    """The tensors of a model, each rotated when it is asked for.

    Args:
        tensors: Of the original, by the names of the module.
        plan: From :func:`plan_rotation`.
    """

    def __init__(self, tensors: Tensors, plan: Plan) -> None:
        self._tensors, self._plan = tensors, plan
        self.source, self.metadata, self.notes, self.ties = tensors.source, tensors.metadata, tensors.notes, {}

    def get(self, name: str) -> Tensor:
        """A tensor, rotated now, or as it is stored."""
        turned = self._plan.tensors.get(name)
        return self._tensors.get(name) if turned is None else turned.made(self._tensors.get)

    def release(self) -> None:
        """See :meth:`~compresskit.checkpoint.tensors.Tensors.release`."""
        self._tensors.release()


def plan_rotation(module: nn.Module, seed: int) -> Plan:
    """Decide what becomes of each tensor, without changing any.

    Args:
        module: May be on the meta device.
        seed: Of the random signs.

    Raises:
        UsageError: It is no model that can be rotated, or holds layers that are not those of its class.
    """
    decoder: Any = module
    kind = getattr(getattr(module, "config", None), "model_type", None)
    own = type(module).__module__.startswith("transformers.") and hasattr(module, "lm_head")
    if kind not in ROTATABLE or not own:
        raise UsageError(f"{type(module).__name__} can't be rotated: {_why_not(module, kind)}", _HINT)
    generator = torch.Generator().manual_seed(seed)
    parameters = dict(module.named_parameters(remove_duplicate=False))
    stream = Rotation.of(parameters[_TABLE].shape[1], generator)
    heads = Rotation.of(decoder.model.layers[0].self_attn.head_dim, generator)
    tied = parameters.get(_HEAD) is parameters.get(_TABLE)
    tensors = {_TABLE: Turned(_TABLE, turns=((-1, stream),))}
    for number in range(len(decoder.model.layers)):
        tensors |= _of_block(f"model.layers.{number}.", parameters, stream, heads)
    tensors[_NORM] = Turned(_NORM, is_norm=True)
    tensors[_HEAD] = Turned(_TABLE if tied else _HEAD, _NORM, ((-1, stream),))
    stays = {name for name in parameters if name.endswith(_STAYS)}
    if odd := [*(parameters.keys() - tensors.keys() - stays), *(tensors.keys() - parameters.keys())]:
        raise UsageError(
            f"{type(module).__name__} can't be rotated: its layers were changed, as {listing(sorted(odd))}", _HINT
        )
    facts = RotationFacts(
        kind="hadamard" if stream.is_hadamard else "orthogonal",
        size=stream.size,
        head=heads.size,
        seed=seed,
        untied=_HEAD.removesuffix(".weight") if tied else None,
    )
    return Plan(tensors, facts)


_STAYS = (
    "q_proj.bias", "k_proj.bias", "gate_proj.bias", "up_proj.bias", "q_norm.weight", "k_norm.weight", "lm_head.bias",
)  # fmt: skip
"""What neither reads the stream nor writes to it."""


def _of_block(at: str, there: Collection[str], stream: Rotation, heads: Rotation) -> dict[str, Turned]:
    """What becomes of the tensors of one block.

    Args:
        at: What their names begin with.
        there: Names of all parameters.
        stream: Turns the hidden states.
        heads: Turns the values of each head.
    """
    before, between = f"{at}input_layernorm.weight", f"{at}post_attention_layernorm.weight"
    reads, writes = (-1, stream), (-2, stream)
    found: dict[str, tuple[str | None, tuple[tuple[int, Rotation], ...]]] = {
        "self_attn.q_proj.weight": (before, (reads,)),
        "self_attn.k_proj.weight": (before, (reads,)),
        "self_attn.v_proj.weight": (before, (reads, (-2, heads))),
        "self_attn.v_proj.bias": (None, ((-1, heads),)),
        "self_attn.o_proj.weight": (None, ((-1, heads), writes)),
        "self_attn.o_proj.bias": (None, ((-1, stream),)),
        "mlp.gate.weight": (between, (reads,)),
        "mlp.gate_proj.weight": (between, (reads,)),
        "mlp.up_proj.weight": (between, (reads,)),
        "mlp.experts.gate_up_proj": (between, (reads,)),
        "mlp.down_proj.weight": (None, (writes,)),
        "mlp.down_proj.bias": (None, ((-1, stream),)),
        "mlp.experts.down_proj": (None, (writes,)),
    }
    named = {f"{at}{leaf}": turned for leaf, turned in found.items()}
    turned = {name: Turned(name, norm, turns) for name, (norm, turns) in named.items() if name in there}
    return turned | {norm: Turned(norm, is_norm=True) for norm in (before, between)}


@torch.no_grad()
def rotate(module: nn.Module, plan: Plan) -> None:
    """Rotate a module in memory; its weights are replaced one by one, and no old one is written to.

    Args:
        module: That :func:`plan_rotation` was given.
        plan: What it gave.
    """
    before = {name: value.data for name, value in module.named_parameters(remove_duplicate=False)}
    untie(module, plan.facts)
    parameters = dict(module.named_parameters())
    for name, turned in plan.tensors.items():
        parameters[name].data = turned.made(before.__getitem__).to(parameters[name].dtype)
        if before[name].dim() > 1 and name != _TABLE:  # that of a tied head, which comes last
            del before[name]


def untie(module: nn.Module, rotation: RotationFacts) -> None:
    """Give a head that had the weight of the embeddings one of its own, without values.

    Args:
        module: Of the original architecture, or untied already.
        rotation: What was recorded.
    """
    if rotation.untied is None:
        return
    head: Any = module.get_submodule(rotation.untied)
    head.weight = nn.Parameter(torch.empty_like(head.weight), requires_grad=head.weight.requires_grad)
    config: Any = getattr(module, "config", None)
    if config is not None:
        config.tie_word_embeddings = False


def _why_not(module: nn.Module, kind: object) -> str:
    if kind in ROTATABLE:
        return "it has no head for tokens, and its outputs would be rotated"
    if any(isinstance(layer, nn.LayerNorm) for layer in module.modules()):
        return "LayerNorm subtracts a mean, which no rotation keeps"
    if str(kind).startswith("gemma"):
        return "Gemma normalizes what its layers write, which no rotation keeps"
    return f"its architecture ({kind}) is none of those that are known to allow it"
