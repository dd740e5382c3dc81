"""Small language models with tokenizers, as Hugging Face folders: random weights, every part of an architecture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

WORDS = [
    "It was a dark and stormy night; the rain fell in torrents.",
    "the king's men came, 12 of them,\n\n and wept",
] * 4
PROMPT = "It was the king's 123 night,\n\n and the rain came: it's over"
_SPECIAL = ["<unk>", "<s>", "</s>"]


def sentencepiece(size: int = 512) -> Tokenizer:
    """As Llama 2's: spaces as ▁, bytes where a piece is unknown, <s> in front."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    all_bytes = [f"<0x{code:02X}>" for code in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=_SPECIAL + all_bytes, show_progress=False)
    tokenizer.train_from_iterator(WORDS, trainer)
    data = json.loads(tokenizer.to_str())
    data["added_tokens"] = [token for token in data["added_tokens"] if token["content"] in _SPECIAL]
    tokenizer = Tokenizer.from_str(json.dumps(data))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def byte_level(cut: str, size: int = 512) -> Tokenizer:
    """As GPT-2's, Llama 3's or Qwen's: ``cut`` is llama.cpp's name of how text is cut first."""
    from compresskit.exporter.targets.gguf_tokens import SPLITS

    tokenizer = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=cut == "gpt-2")
    tokenizer.pre_tokenizer = level
    if cut != "gpt-2":
        pattern = next(Regex(pattern) for pattern, name in SPLITS.items() if name == cut)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(pattern, "isolated"), level])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(WORDS, trainer)
    return tokenizer


def add_tokenizer(folder: Path, cut: str = "") -> None:
    """Put a tokenizer into a folder: SentencePiece, or bytes that are cut in some way."""
    tokenizer = byte_level(cut) if cut else sentencepiece()
    tokenizer.save(str(folder / "tokenizer.json"))
    ends = ("<|endoftext|>",) * 2 if cut else ("<s>", "</s>")
    named = {"bos_token": ends[0], "eos_token": ends[1], "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))


_SIZES: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 512, "max_position_embeddings": 256,
}  # fmt: skip
_PIECES = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_BYTES = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
_ROPE = {
    "rope_type": "llama3", "rope_theta": 1e4, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
FOLDERS: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", {**_SIZES, **_PIECES}, ""),
    "llama-3": (
        "LlamaForCausalLM", "LlamaConfig",
        {**_SIZES, **_BYTES, "tie_word_embeddings": True, "rope_parameters": _ROPE}, "llama-bpe",
    ),
    "mistral": (
        "MistralForCausalLM", "MistralConfig", {**_SIZES, **_PIECES, "head_dim": 32, "sliding_window": None}, "",
    ),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", {**_SIZES, **_BYTES}, "qwen2"),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {**_SIZES, **_BYTES, "head_dim": 32}, "qwen2"),
    "gemma3": (
        "Gemma3ForCausalLM", "Gemma3TextConfig",
        {
            **_SIZES, **_PIECES, "num_hidden_layers": 6, "head_dim": 32, "query_pre_attn_scalar": 32,
            "sliding_window": 16,
        }, "",
    ),
    "fused": (
        "Phi3ForCausalLM", "Phi3Config",
        {**_SIZES, **_PIECES, "original_max_position_embeddings": 256, "sliding_window": None}, "",
    ),
    "gpt2": (
        "GPT2LMHeadModel", "GPT2Config",
        {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 512, "n_positions": 256, **_BYTES}, "gpt-2",
    ),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", {**_SIZES, **_PIECES, "num_local_experts": 4}, ""),
    "qwen3-moe": (
        "Qwen3MoeForCausalLM", "Qwen3MoeConfig",
        {
            **_SIZES, **_BYTES, "head_dim": 32, "moe_intermediate_size": 64, "num_experts": 4,
            "num_experts_per_tok": 2, "norm_topk_prob": True,
        }, "qwen2",
    ),
}  # fmt: skip
"""By name: class, config and how its tokenizer cuts text. What llama.cpp takes for Phi-3 by name needs its tokens."""


def make_folder(folder: Path, name: str, *, louder: float = 6, **sizes: Any) -> Path:
    """A folder of one of :data:`FOLDERS`, with weights so large that its greedy tokens vary.

    ``louder`` is by how much those of the blocks are, embeddings by 6; ``sizes`` replace some of the config.
    """
    import transformers

    kind, config, options, cut = FOLDERS[name]
    torch.manual_seed(1)
    module = getattr(transformers, kind)(getattr(transformers, config)(**{**options, **sizes}))
    with torch.no_grad():
        for place, parameter in module.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(louder if ".layers." in place else 6)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    module.save_pretrained(folder / name)
    add_tokenizer(folder / name, cut)
    return folder / name
