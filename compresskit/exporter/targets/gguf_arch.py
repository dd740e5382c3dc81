"""What llama.cpp must be told of an architecture, and how its tensors differ from those of transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from compresskit.errors import InputError
from compresskit.exporter.targets.weights import Weight, take_rows

Named = tuple[str, Weight]


@dataclass(frozen=True)
class Arch:
    """An architecture of llama.cpp.

    Attributes:
        name: Its entry of ``gguf.MODEL_ARCH``.
        interleaved: Rotary embeddings turn neighbours, not halves: rows of the queries and keys change places.
        add_one: Norms are stored with the 1 that the module adds to their weights.
        transposed: The linear layers are stored as (inputs, outputs).
        sliding: Some blocks see a window, as the config says.
    """

    name: str
    interleaved: bool = False
    add_one: bool = False
    transposed: bool = False
    sliding: bool = False


ARCHITECTURES = {
    "llama": Arch("LLAMA", interleaved=True),
    "mistral": Arch("LLAMA", interleaved=True),
    "mixtral": Arch("LLAMA", interleaved=True),
    "qwen2": Arch("QWEN2"),
    "qwen3": Arch("QWEN3"),
    "qwen3_moe": Arch("QWEN3MOE"),
    "gemma3_text": Arch("GEMMA3", add_one=True, sliding=True),
    "phi3": Arch("PHI3", sliding=True),
    "gpt2": Arch("GPT2", transposed=True),
}
"""By the ``model_type`` of a config."""


def add_metadata(writer: Any, config: Any, arch: Arch) -> None:
    """Sizes and constants of a model.

    Args:
        writer: A ``gguf.GGUFWriter``.
        config: Of transformers.
        arch: Of llama.cpp.

    Raises:
        InputError: The config has something that the format has no key for.
    """
    heads = config.num_attention_heads
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_vocab_size(config.vocab_size)
    writer.add_head_count(heads)
    if arch.name == "GPT2":
        writer.add_feed_forward_length(config.n_inner or 4 * config.hidden_size)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        if config.scale_attn_by_inverse_layer_idx or not config.scale_attn_weights:
            raise InputError("gguf has no key for the scale of this GPT-2's attention")
        return
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    _add_rope(writer, config, head)
    experts = getattr(config, "num_local_experts", None)
    if experts and getattr(config, "num_experts_per_tok", None):
        writer.add_expert_count(experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        if arch.name == "QWEN3MOE":
            writer.add_expert_feed_forward_length(config.moe_intermediate_size)
            if not config.norm_topk_prob or config.mlp_only_layers or config.decoder_sparse_step != 1:
                raise InputError("gguf carries a Qwen3-MoE whose blocks all route, with weights that sum to 1")
    _add_window(writer, config, arch)
    if arch.name == "GEMMA3" and config.query_pre_attn_scalar != head:
        raise InputError(f"gguf has no key for query_pre_attn_scalar {config.query_pre_attn_scalar}")


def _add_rope(writer: Any, config: Any, head: int) -> None:
    parameters = config.rope_parameters
    whole = parameters.get("full_attention", parameters)
    if "sliding_attention" in parameters:
        local = parameters["sliding_attention"]
        if local["rope_type"] != "default":
            raise InputError(f"gguf has no key for rope_type {local['rope_type']} of sliding attention")
        writer.add_rope_freq_base_swa(local["rope_theta"])
    writer.add_rope_freq_base(whole["rope_theta"])
    writer.add_rope_dimension_count(int(head * whole.get("partial_rotary_factor", 1.0)))
    kind = whole["rope_type"]
    if kind == "linear":
        import gguf

        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(whole["factor"])
    elif kind not in ("default", "llama3"):
        raise InputError(f"gguf: rotary embeddings of the kind '{kind}' are not carried", "llama3 and linear are")


def _add_window(writer: Any, config: Any, arch: Arch) -> None:
    window = getattr(config, "sliding_window", None)
    slides = [kind == "sliding_attention" for kind in getattr(config, "layer_types", None) or []]
    if not slides:  # then a window, if there is one, is that of every block
        slides = [bool(window) and window < config.max_position_embeddings]
    if not window or not any(slides):
        return
    if not arch.sliding:
        raise InputError(
            f"gguf has no sliding window for {config.model_type}",
            "for texts up to that length, set sliding_window to null in config.json",
        )
    writer.add_sliding_window(window)
    if arch.name == "GEMMA3" and slides != [(at + 1) % 6 != 0 for at in range(len(slides))]:
        raise InputError("gguf: of a Gemma3 every sixth block sees all, the others a window; this one differs")


def converted(found: dict[str, Weight], config: Any, arch: Arch) -> Iterator[Named]:
    """Weights as llama.cpp wants them, by names that the package's tensor map knows; one at a time."""
    for name, weight in found.items():
        fused = name.removesuffix(".weight")  # codes lie in a layer of their own
        if ".experts." in name and fused.rpartition(".")[2] in _FUSED:
            yield from _experts(fused, weight, config)
            continue
        yield name, _converted(name, weight, config, arch)
    parameters = getattr(config, "rope_parameters", None) or {}
    if parameters.get("rope_type") == "llama3":
        yield "rope_freqs.weight", _llama3_factors(config, parameters)


_FUSED = ("gate_up_proj", "down_proj")
_ROUTED = {"gate_up_proj": ("ffn_gate_exps", "ffn_up_exps"), "down_proj": ("ffn_down_exps",)}


def experts_of(config: Any) -> int:
    """Experts of a block; 0 where there are none."""
    return int(getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None) or 0)


def _experts(name: str, weight: Weight, config: Any) -> Iterator[Named]:
    """Fused experts ``(experts, rows, columns)``: gates and the way up lie one after the other.

    Codes keep all rows on one axis, ``(experts · rows, columns)``.
    """
    block = next(part for part in name.split(".") if part.isdigit())
    kinds = _ROUTED[name.rpartition(".")[2]]
    if isinstance(weight, Tensor):
        parts: list[Weight] = list(weight.chunk(len(kinds), dim=1))
    else:
        rows = torch.arange(weight.shape[0]).reshape(experts_of(config), len(kinds), -1)
        parts = [take_rows(weight, rows[:, at].flatten()) for at in range(len(kinds))]
    for kind, part in zip(kinds, parts, strict=True):
        yield f"blk.{block}.{kind}.weight", part


def _converted(name: str, weight: Weight, config: Any, arch: Arch) -> Weight:
    if arch.interleaved and ".self_attn." in name and name.split(".")[-2] in ("q_proj", "k_proj"):
        heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
        return take_rows(weight, _interleaved(weight.shape[0], heads))
    if arch.add_one and name.endswith("norm.weight") and isinstance(weight, Tensor):
        return weight + 1
    if arch.transposed and isinstance(weight, Tensor) and weight.dim() == 2 and ".h." in name:
        return weight.t()
    return weight


def _interleaved(rows: int, heads: int) -> Tensor:
    """Rows of queries or keys, from halves that turn together to neighbours that do."""
    return torch.arange(rows).reshape(heads, 2, rows // heads // 2).swapaxes(1, 2).reshape(-1)


def _llama3_factors(config: Any, parameters: dict[str, Any]) -> Tensor:
    """By what llama.cpp divides each frequency: float32 ``(head / 2,)``."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    plain = 1.0 / parameters["rope_theta"] ** (torch.arange(0, head, 2, dtype=torch.float32) / head)
    make: Callable[..., Any] = ROPE_INIT_FUNCTIONS["llama3"]
    scaled, _ = make(config, torch.device("cpu"))
    factors: Tensor = plain / scaled
    return factors
