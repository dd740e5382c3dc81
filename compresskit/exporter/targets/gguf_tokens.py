"""A folder's tokenizer as GGUF has it: SentencePiece or byte-level BPE, special tokens and the chat template."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compresskit.checkpoint.files import contained, read_json
from compresskit.errors import InputError

NAME = "tokenizer.json"
_MOST = 1 << 28
_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = range(1, 7)
SPLITS = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+": "llama-bpe",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+": "qwen2",
}
"""How text is cut before the merges, to llama.cpp's name of it."""


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a tokenizer.

    Attributes:
        kind: ``llama`` (SentencePiece) or ``gpt2`` (BPE over bytes).
        pre: How text is cut first; llama.cpp's name.
        tokens: By id.
        scores: For SentencePiece: the higher, the sooner a pair becomes that token.
        types: What each is: 1 plain, 2 unknown, 3 control, 4 the user's, 5 unused, 6 a byte.
        space_prefix: A space is put in front of a text.
    """

    kind: str
    pre: str
    tokens: list[str]
    scores: list[float]
    types: list[int]
    space_prefix: bool = False


def open_vocabulary(folder: Path, size: int) -> Vocabulary:
    """The tokens of a folder's tokenizer, padded to the embedding.

    Args:
        folder: Holds tokenizer.json.
        size: Tokens of the embedding.

    Raises:
        InputError: There is none, it is of a kind that the format doesn't have, or has more tokens than the embedding.
    """
    path = folder / NAME
    if not path.is_file():
        raise InputError(
            f"gguf takes the tokenizer along, and {folder} has no {NAME}",
            f"AutoTokenizer.from_pretrained(FOLDER).save_pretrained({folder.name!r}) of transformers writes it",
        )
    return read_vocabulary(path, read_json(contained(folder, NAME, str(folder)), _MOST), size)


def add_tokenizer(writer: Any, folder: Path, size: int) -> None:
    """Put a folder's tokenizer into a file: tokens, merges, special tokens, what is put around a text, chat template.

    Args:
        writer: A ``gguf.GGUFWriter``.
        folder: Holds tokenizer.json.
        size: Tokens of the embedding.

    Raises:
        InputError: See :func:`open_vocabulary`.
    """
    import gguf
    from tokenizers import Tokenizer

    found = open_vocabulary(folder, size)
    writer.add_tokenizer_model(found.kind)
    writer.add_tokenizer_pre(found.pre)
    writer.add_token_list(found.tokens)
    if found.scores:
        writer.add_token_scores(found.scores)
        writer.add_add_space_prefix(found.space_prefix)
    writer.add_token_types(found.types)
    # It warns where files don't say what stands around a text; an encoded text says it below.
    logging.getLogger("gguf.vocab").setLevel(logging.CRITICAL)
    special = gguf.SpecialVocab(folder, load_merges=found.kind == "gpt2", n_vocab=size)
    around = Tokenizer.from_file(str(folder / NAME)).encode("a").ids
    for name, at in (("bos", 0), ("eos", -1)):
        special.add_special_token[name] = around[at] == special.special_token_ids.get(name)
    special.add_to_gguf(writer, quiet=True)


def read_vocabulary(path: Path, data: dict[str, Any], size: int) -> Vocabulary:
    """The tokens of a tokenizer.json, padded to the embedding.

    Raises:
        InputError: It is of a kind that the format doesn't have, or has more tokens than the embedding.
    """
    model = data.get("model") or {}
    vocabulary, added = model.get("vocab"), data.get("added_tokens") or []
    if model.get("type") != "BPE" or not isinstance(vocabulary, dict):
        raise InputError(f"{path}: gguf carries BPE and SentencePiece tokenizers, this is {model.get('type')}")
    ids = {number: text for text, number in vocabulary.items()} | {token["id"]: token["content"] for token in added}
    if max(ids) >= size:
        raise InputError(f"{path} has a token of number {max(ids)}, the model's embedding has {size}")
    bytes_ = bool(model.get("byte_fallback"))
    types = dict.fromkeys(ids, _NORMAL)
    for number, text in ids.items():
        if bytes_ and len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            types[number] = _BYTE
    types |= {token["id"]: _CONTROL if token.get("special") else _USER for token in added}
    if model.get("unk_token") in vocabulary:
        types[vocabulary[model["unk_token"]]] = _UNKNOWN
    tokens = [ids.get(number, f"[PAD{number}]") for number in range(size)]
    kinds = [types.get(number, _UNUSED) for number in range(size)]
    if bytes_:
        return Vocabulary("llama", "default", tokens, _scores(tokens, model), kinds, _prefixed(data))
    return Vocabulary("gpt2", _cut(path, data), tokens, [], kinds)


def _scores(tokens: list[str], model: dict[str, Any]) -> list[float]:
    """By rank: SentencePiece joins the pair first whose token scores highest, BPE the pair that was learnt first."""
    pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in model.get("merges") or [])
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(pairs):
        ranks.setdefault("".join(pair), rank)
    return [-float(ranks.get(token, len(ranks))) for token in tokens]


def _prefixed(data: dict[str, Any]) -> bool:
    text = json.dumps([data.get("normalizer"), data.get("pre_tokenizer")])
    return '"Prepend"' in text or '"prepend_scheme": "always"' in text or '"prepend_scheme": "first"' in text


def _cut(path: Path, data: dict[str, Any]) -> str:
    """llama.cpp's name of how a byte-level tokenizer cuts text."""
    first = data.get("pre_tokenizer") or {}
    steps = first.get("pretokenizers") or [first]
    splits = [step["pattern"].get("Regex") for step in steps if step.get("type") == "Split"]
    level = [step for step in steps if step.get("type") == "ByteLevel"]
    if level and not splits and len(steps) == 1 and level[0].get("use_regex", True):
        return "gpt-2"
    if len(splits) == 1 and splits[0] in SPLITS:
        return SPLITS[splits[0]]
    raise InputError(f"{path}: gguf has no name for the way in which this tokenizer cuts text before its merges")
