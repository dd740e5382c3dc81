"""Weights and samples of the frozen bundles."""

import numpy as np
import torch
from nets import Pictures, Words
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
rng = np.random.default_rng(0)
words, pictures = Words(), Pictures()
with torch.no_grad():
    words.words.weight *= torch.logspace(-1, 1, 32)  # a few inputs far larger than the others
torch.save(words.state_dict(), "words.pt")
torch.save(pictures.state_dict(), "pictures.pt")
ids = rng.integers(0, 24, (64, 6))
np.savez("words.npz", x=ids, y=ids[:, 0])
images = rng.normal(size=(64, 1, 8, 8)).astype("float32")
np.savez("pictures.npz", x=images, y=rng.integers(0, 4, 64))
sizes = {"vocab_size": 24, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32}
bert = BertConfig(**sizes, num_hidden_layers=3, max_position_embeddings=16, type_vocab_size=2)
BertModel(bert).save_pretrained("bert")
ids, ones = rng.integers(0, 24, (32, 8)), np.ones((32, 8), "int64")
np.savez("bert.npz", input_ids=ids, attention_mask=ones)
llama = LlamaConfig(
    **sizes | {"hidden_size": 64, "intermediate_size": 96},
    num_hidden_layers=2,
    max_position_embeddings=32,
    tie_word_embeddings=True,
)
LlamaForCausalLM(llama).save_pretrained("llama")
np.savez("llama.npz", input_ids=ids, attention_mask=ones)
