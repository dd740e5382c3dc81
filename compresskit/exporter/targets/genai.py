"""A folder for onnxruntime-genai: a decoder with a cache, built by that package's own builder from the module's codes.

The builder reads a folder that this writes first: codes and zero points as they are in the module, of the kind that it
calls ``olive``. It holds the whole model in memory, and keeps embeddings in float32.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from compresskit.errors import GateError, InputError
from compresskit.exporter.accuracy import set_accuracy_level
from compresskit.exporter.checked import LEVEL
from compresskit.exporter.targets.target import DENSE, Target, Written, copy_extras
from compresskit.exporter.targets.weights import Weight, check_shapes, weights_of
from compresskit.model import Model
from compresskit.ops.packed.grid import Packed, dequantize
from compresskit.ops.packed.layout import Grid
from compresskit.report import Gate
from compresskit.stage import Progress, silent

_PROMPT, _NEW = 24, 16
_FAR = 2e-3
"""How far logits may be from the module's, relative: kernels add in other orders, and products are taken in float32."""


class Genai(Target):
    """A folder with model.onnx, genai_config.json and the tokenizer."""

    name: ClassVar[str] = "genai"
    package: ClassVar[str] = "onnxruntime_genai"
    extra: ClassVar[str] = "genai"
    ending: ClassVar[str] = "-genai"
    marker: ClassVar[str | None] = "genai_config.json"
    architectures: ClassVar[tuple[str, ...]] = DENSE

    def reason_against(self, grid: Grid) -> str | None:
        """See :class:`Target`."""
        if not grid.format.equal_steps:
            return f"its builder knows no {grid.dtype}; quantize to 4 or 8 bits with equal steps"
        if grid.bits not in (4, 8):
            return f"{grid.bits} bits are not carried; quantize to 4 or 8"
        if grid.group_size not in (16, 32, 64, 128, 256):
            return "its builder takes groups of 16 to 256; give `group_size` 32"
        return None

    def write(self, model: Model, place: Path, progress: Progress = silent) -> Written:
        """See :class:`Target`. The gates: logits of a prompt, the cache against a whole pass, and greedy tokens."""
        found = weights_of(model.module, self.name)
        check_shapes(model.module, found, self.name)
        _check_whole(found)
        progress("writing for genai", 0, 3)
        with tempfile.TemporaryDirectory() as work:
            source = Path(work) / "source"
            source.mkdir()
            _write_source(model, found, source)
            progress("writing for genai", 1, 3)
            coded = any(isinstance(weight, Packed) for weight in found.values())
            _build(source, place, Path(work) / "cache", "int4" if coded else "fp32")
        progress("writing for genai", 2, 3)
        gates = prove(model.module, place)
        # The file was proven in float32; it rounds activations to 8 bit as our own ONNX files do.
        fast = set_accuracy_level(place / "model.onnx", LEVEL)
        notes = ["embeddings are float32 there: the builder has no other"]
        if fast:
            first = distances(model.module, place)[0]
            notes.append(f"packed matrix products round activations to 8 bit: {first:.2g} relative on random tokens")
        progress("writing for genai", 3, 3)
        return Written(gates, notes)


def _check_whole(found: dict[str, Weight]) -> None:
    """The builder takes all matrices as codes, or none.

    Raises:
        InputError: Names one that isn't, where others are.
    """
    matrices = {n: w for n, w in found.items() if len(w.shape) == 2 and "embed_tokens" not in n}
    floats = [name for name, weight in matrices.items() if not _fits(weight)]
    if floats and any(isinstance(weight, Packed) for weight in found.values()):
        weight = matrices[floats[0]]
        why = f"its {weight.shape[1]} columns don't fill groups" if isinstance(weight, Packed) else "it isn't quantized"
        raise InputError(
            f"genai can't carry {floats[0].removesuffix('.weight')} beside quantized layers: {why}",
            "quantize every Linear layer, in groups that divide its columns",
        )


def _write_source(model: Model, found: dict[str, Weight], folder: Path) -> None:
    """The folder that the builder reads."""
    from safetensors.torch import save_file

    data = json.loads((model.source / "config.json").read_text(encoding="utf-8"))
    packed = {
        name.removesuffix(".weight"): w for name, w in found.items() if isinstance(w, Packed) and _as_codes(name, w)
    }
    if packed:
        usual = Counter((w.grid.bits, w.grid.group_size) for w in packed.values()).most_common(1)[0][0]
        grids = {name: {"bits": w.grid.bits, "group_size": w.grid.group_size} for name, w in packed.items()}
        data["quantization_config"] = {
            "quant_method": "olive", "bits": usual[0], "group_size": usual[1], "symmetric": False,
            "overrides": {n: g for n, g in grids.items() if (g["bits"], g["group_size"]) != usual},
        }  # fmt: skip
    data["tie_word_embeddings"] = "lm_head.weight" not in found and "lm_head" not in packed
    tensors: dict[str, Tensor] = {}
    for name, weight in found.items():
        tensors.update(_tensors(name, weight))
    if data["tie_word_embeddings"]:  # one matrix, twice: as codes for the head, and the rows that are looked up
        table = found["model.embed_tokens.weight"]
        if _fits(table):
            tensors.update(_coded("lm_head", table))
            data["tie_word_embeddings"] = False
    copy_extras(model, folder)
    (folder / "config.json").write_text(json.dumps(data), encoding="utf-8")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def _fits(weight: Weight) -> bool:
    return isinstance(weight, Packed) and weight.shape[-1] % weight.grid.group_size == 0


def _as_codes(name: str, weight: Weight) -> bool:
    """Embeddings have no codes in the builder, nor has a matrix whose last group isn't full."""
    return "embed_tokens" not in name and _fits(weight)


def _tensors(name: str, weight: Weight) -> Iterator[tuple[str, Tensor]]:
    if _as_codes(name, weight):
        yield from _coded(name.removesuffix(".weight"), weight)
    else:
        yield name, (dequantize(weight) if isinstance(weight, Packed) else weight.float()).contiguous()


def _coded(name: str, weight: Weight) -> Iterator[tuple[str, Tensor]]:
    assert isinstance(weight, Packed)  # narrows the type
    groups = weight.scales.shape[1]
    points = weight.zeros
    if points is None:
        fill = weight.grid.middle if weight.grid.bits == 8 else weight.grid.middle * 17
        points = torch.full((weight.shape[0], weight.grid.__class__(weight.grid.bits).zero_bytes(groups)), fill)
    yield f"{name}.qweight", weight.codes.flatten(1).contiguous()
    yield f"{name}.scales", weight.scales.float().contiguous()
    yield f"{name}.qzeros", points.to(torch.uint8).contiguous()


def _build(source: Path, place: Path, cache: Path, precision: str) -> None:
    """Let the builder work in a process of its own: it prints, and keeps what it loads."""
    command = [
        sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(source), "-o", str(place), "-p", precision,
        "-e", "cpu", "-c", str(cache), "--extra_options", "accuracy_level=1",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not (place / "genai_config.json").is_file():
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise InputError(f"the builder of onnxruntime-genai gives up: {lines[-1] if lines else done.returncode}")


def distances(module: Any, folder: Path) -> tuple[float, float, int]:
    """How far a folder is from its module, on made-up numbers of tokens.

    Args:
        module: A transformers model, its layers packed or not; run anew for each token.
        folder: For onnxruntime-genai; each new token goes through its cache.

    Returns:
        The largest difference of the logits after the prompt and of all, over the largest logit; and how many of the
        likeliest tokens are the same.
    """
    import onnxruntime_genai

    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, module.config.vocab_size, (1, _PROMPT), generator=generator)
    steps = []
    with torch.inference_mode():
        for _ in range(_NEW):
            steps.append(module(tokens).logits[0, -1].float().numpy())
            tokens = torch.cat([tokens, torch.tensor([[int(steps[-1].argmax())]])], dim=1)
    logits = _fed(onnxruntime_genai, onnxruntime_genai.Model(str(folder)), tokens[0].tolist())
    off = [float(np.abs(a - b).max()) / float(np.abs(steps[0]).max()) for a, b in zip(logits, steps, strict=True)]
    return off[0], max(off), sum(int(a.argmax()) == int(b.argmax()) for a, b in zip(logits, steps, strict=True))


def prove(module: Any, folder: Path) -> list[Gate]:
    """The gates of a folder.

    Raises:
        GateError: Logits of the prompt are too far off, the cache gives others than a whole pass, or tokens differ.
    """
    first, cached, same = distances(module, folder)
    for what, value in (("the prompt", first), ("the cache", cached)):
        if value > _FAR:
            raise GateError(f"logits of {what} under onnxruntime-genai are {value:.2g} relative from the module's")
    if same < _NEW:
        raise GateError(f"{_NEW - same} of {_NEW} greedy tokens under onnxruntime-genai differ from the module's")
    limit = f"≤ {_FAR:g} relative"
    return [
        Gate(name="prefill logits", limit=limit, value=first, passed=True, reason=f"{_PROMPT} tokens, the module's"),
        Gate(name="cached logits", limit=limit, value=cached, passed=True, reason=f"{_NEW} steps, whole passes"),
        Gate(name="greedy tokens", limit=f"{_NEW} of {_NEW}", value=float(same), passed=True),
    ]


def _fed(genai: Any, model: Any, tokens: list[int]) -> list[np.ndarray]:
    """Logits after the prompt, and after each further token but the last."""
    params = genai.GeneratorParams(model)
    params.set_search_options(max_length=len(tokens) + 1, do_sample=False)
    run = genai.Generator(model, params)
    logits = []
    for part in (tokens[:_PROMPT], *([token] for token in tokens[_PROMPT:-1])):
        run.append_tokens(part)
        found = np.array(run.get_logits(), np.float32)
        logits.append(found.reshape(-1, found.shape[-1])[-1])
    return logits
