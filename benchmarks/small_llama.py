"""A Llama of 5.8 M parameters with a byte-level BPE tokenizer, trained on the texts of the data folder.

The last tenth of each text is held out. Training is seeded, and goes on where it was killed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

TEXTS = ("tinyshakespeare.txt", "wikitext2_valid.txt", "wikitext2_test.txt")
HELD_OUT = 0.1
SHAPE: dict[str, Any] = {
    "vocab_size": 4096, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 8,
    "num_key_value_heads": 4, "max_position_embeddings": 1024, "tie_word_embeddings": True,
}  # fmt: skip
END = "<|endoftext|>"
LENGTH, BATCH, RATE = 256, 8, 2e-3
EVERY = 25
"""Steps from one checkpoint to the next."""


def trained(folder: Path, texts: Path, steps: int, say: Callable[[str], object] = print) -> Path:
    """The Hugging Face folder of the trained model; made where it isn't there yet.

    Args:
        folder: Where the model and the checkpoints lie, with its texts ``learnt.txt`` and ``held_out.txt``.
        texts: Folder of the texts.
        steps: Batches of 8 × 256 tokens.
        say: Told how far it is.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    done = folder / f"llama-{steps}"
    folder.mkdir(parents=True, exist_ok=True)
    parts = [(texts / name).read_text(encoding="utf-8") for name in TEXTS]
    cuts = [int(len(part) * (1 - HELD_OUT)) for part in parts]
    learnt = [part[:cut] for part, cut in zip(parts, cuts, strict=True)]
    held = "".join(part[cut:] for part, cut in zip(parts, cuts, strict=True))
    (folder / "held_out.txt").write_text(held, encoding="utf-8")
    (folder / "learnt.txt").write_text("".join(learnt), encoding="utf-8")
    if (done / "model.safetensors").is_file():
        return done
    tokenizer = tokenize(learnt)
    ids = np.concatenate([tokenizer(part)["input_ids"] for part in learnt])
    torch.manual_seed(0)
    module = LlamaForCausalLM(LlamaConfig(**SHAPE, bos_token_id=0, eos_token_id=0, attn_implementation="sdpa"))
    say(f"{sum(p.numel() for p in module.parameters()) / 1e6:.2f} M parameters, {len(ids)} tokens")
    teach(module, torch.from_numpy(ids), steps, folder / f"checkpoint-{steps}.pt", say)
    staging = folder / "writing"
    module.save_pretrained(staging)
    tokenizer.save_pretrained(staging)
    staging.rename(done)
    return done


def tokenize(texts: list[str]) -> Any:
    """A tokenizer learnt from texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SHAPE["vocab_size"], special_tokens=[END], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    bpe.train_from_iterator((line for text in texts for line in text.splitlines(keepends=True)), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=END, eos_token=END, clean_up_tokenization_spaces=False, model_max_length=1 << 20
    )


def teach(module: torch.nn.Module, ids: torch.Tensor, steps: int, kept: Path, say: Callable[[str], object]) -> None:
    """Train on random pieces of a text; a step's pieces follow from its number alone."""
    import torch

    optimizer = torch.optim.AdamW(module.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.1)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.05)
    first, spent = 0, 0.0
    if kept.is_file():
        state = torch.load(kept, weights_only=True)
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        rates.load_state_dict(state["rates"])
        first, spent = state["step"], state["spent"]
    begin = time.process_time() - spent
    for step in range(first, steps):
        starts = np.random.default_rng(step).integers(0, len(ids) - LENGTH, BATCH)
        batch = torch.stack([ids[start : start + LENGTH] for start in starts])
        loss = module(batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        rates.step()
        if (step + 1) % EVERY == 0 or step + 1 == steps:
            spent = time.process_time() - begin
            say(f"step {step + 1} of {steps}: loss {loss.item():.3f}, {spent:.0f} s of processors")
            state = {
                "module": module.state_dict(), "optimizer": optimizer.state_dict(), "rates": rates.state_dict(),
                "step": step + 1, "spent": spent,
            }  # fmt: skip
            torch.save(state, kept.with_suffix(".new"))
            kept.with_suffix(".new").replace(kept)
