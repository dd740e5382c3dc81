"""Language models: greedy tokens of the engines on the same codes, perplexity against llama.cpp's Q4_K_M, decode speed.

Greedy tokens and perplexity are of a Llama of 5.8 M parameters that is trained here first, once (``small_llama.py``; an
hour on one core; ``--keep`` names a folder where it stays for the next run, and where a killed training goes on). What
the engines are compared with is the module of transformers with the codes' values in float32. Perplexity is over the
held-out text in windows of 256 tokens, 192 apart. Both 4-bit models are measured as float32 values of their codes by
the same program; the bytes are those of the tensors. What llama.cpp's own files hold at fewer bits is compared with
K-quants that ``auto`` mixes, in no more bytes. These files are made by llama.cpp's ``llama_model_quantize``:
``LLAMA_CPP_LIBS`` names a folder with libllama and libggml (a build, or those in the npm package
``@node-llama-cpp/linux-x64``). Decode speed is of random weights in the shape of a model of 125 M parameters.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import Bench, absent, cli, figure, interval
from small_llama import trained

STEPS = 900
WINDOW = ("--window", 256, "--stride", 192, "--runtime", "torch")
LENGTH, WINDOWS = 256, 100
PROMPT, NEW, PROMPTS = 32, 64, 20
SHAPE: dict[str, Any] = {
    "vocab_size": 50304, "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12,
    "num_attention_heads": 12, "num_key_value_heads": 12, "max_position_embeddings": 1024, "tie_word_embeddings": True,
}  # fmt: skip
FILE_TYPES = {"Q2_K": 10, "Q3_K_M": 12, "Q4_K_M": 15}
"""Their numbers in llama.cpp."""


def main() -> None:
    bench = Bench("language", __doc__ or "", data=True, keep=True)
    texts = bench.data("text")
    with bench.kept() as place:
        model = trained(place, texts, 2 if bench.quick else STEPS)
        if bench.wants("greedy"):
            greedy(bench, place, model)
        if bench.wants("perplexity"):
            perplexity(bench, place, model)
        if bench.wants("k-quants"):
            k_quants(bench, place, model)
        if bench.wants("decode"):
            decode(bench, place, model)
    bench.end()


def greedy(bench: Bench, place: Path, model: Path) -> None:
    """Tokens of llama.cpp and onnxruntime-genai against the module, on the same codes.

    As shipped, both round the activations of packed products to 8 bit. What is left without that is measured too:
    llama.cpp on the codes' values in float32, genai with products in float32.
    """
    from compresskit.exporter.accuracy import set_accuracy_level

    out = place / "coded"
    cli(
        "quantize", model, "--bits", 4, "--symmetric", "--method", "gptq", "--data", place / "learnt.txt", "--sequence",
        256, "--no-export", "--to", "gguf", "--to", "genai", "-o", out, "--force",
    )  # fmt: skip
    values = dense(out, model, place / "values")
    cli("export", values, "--to", "gguf", "-o", place / "values.gguf", "--force")
    shutil.copytree(place / "coded-genai", place / "exact-genai", dirs_exist_ok=True)
    set_accuracy_level(place / "exact-genai" / "model.onnx", 1)
    others = {
        "coded.gguf": "llama.cpp", "values.gguf": "llama.cpp, activations in float32", "coded-genai": "genai",
        "exact-genai": "genai, activations in float32",
    }  # fmt: skip
    report = cli(
        "compare", values, *(place / name for name in others), "--data", place / "held_out.txt",
        "--generate", f"{PROMPT},{NEW}", "--prompts", PROMPTS,
    )  # fmt: skip
    for index, (name, engine) in enumerate(others.items(), 1):
        note = next(note for note in report.notes if note.startswith(f"{name} under"))
        whole = re.findall(r"(\d+) of (\d+)", note)[0]
        agreement, first = figure(report, "greedy_agreement", index), figure(report, "first_difference", index)
        bench.row(
            f"trained, 4 bit gptq, greedy {NEW} tokens are the module's, {engine}", f"{PROMPTS} of {PROMPTS}",
            f"{whole[0]} of {whole[1]}", agreement.n,
            f"{agreement.value:.1f} % of all tokens, first other one after {first.value:g} (median)",
            whole[0] == whole[1],
        )  # fmt: skip


def perplexity(bench: Bench, place: Path, model: Path) -> None:
    """gptq with bits by layer against Q4_K_M, at equal bytes."""
    held = place / "held_out.txt"
    theirs, size = of_llama_cpp(place, model, "Q4_K_M")
    out, own = within(bench, place, model, size, place / "ours")
    found = {
        name: figure(cli("evaluate", folder, "--data", held, *WINDOW), "perplexity")
        for name, folder in (("float32", model), ("Q4_K_M of llama.cpp", theirs), ("gptq + auto", out))
    }
    sizes = {"float32": size_of(model), "Q4_K_M of llama.cpp": size, "gptq + auto": own}
    for name, value in found.items():
        bar = f"< {found['Q4_K_M of llama.cpp'].value:.3f}" if name == "gptq + auto" else ""
        bench.row(
            f"trained, perplexity, {name}", bar, f"{value.value:.3f}", value.n,
            f"{interval(value, 3)}; {sizes[name] / 1e6:.3f} MB",
            value.value < found["Q4_K_M of llama.cpp"].value if bar else None,
        )  # fmt: skip


def k_quants(bench: Bench, place: Path, model: Path) -> None:
    """gptq with types by layer against the files that llama.cpp makes, at equal bytes.

    Perplexities differ by less than their noise where the loss is small: the divergence from the original tells more.
    """
    held = place / "held_out.txt"
    for kind in FILE_TYPES:
        theirs, size = of_llama_cpp(place, model, kind)
        out, own = within(bench, place, model, size, place / f"ours-{kind}", "--weight-format", "k-quant")
        names = f"{kind} of llama.cpp", f"gptq + auto of K-quants in the bytes of {kind}"
        found = [figure(cli("evaluate", folder, "--data", held, *WINDOW), "perplexity") for folder in (theirs, out)]
        apart = divergences(model, (theirs, out), held)
        for at, (name, nbytes) in enumerate(zip(names, (size, own), strict=True)):
            bar = f"< {found[0].value:.3f}" if at else ""
            bench.row(
                f"trained, perplexity, {name}", bar, f"{found[at].value:.3f}", found[at].n,
                f"{interval(found[at], 3)}; {nbytes / 1e6:.3f} MB", found[at].value < found[0].value if at else None,
            )  # fmt: skip
            bar = f"< {apart[0][0]:.5f}" if at else ""
            bench.row(
                f"trained, KL divergence from float32, {name}", bar, f"{apart[at][0]:.5f}", WINDOWS,
                f"± {apart[at][1]:.5f} (1.96 standard errors of windows)", apart[at][0] < apart[0][0] if at else None,
            )  # fmt: skip


def divergences(model: Path, others: Sequence[Path], held: Path) -> list[tuple[float, float]]:
    """Mean KL divergence of the next token's distribution from that of a model, in nats, with 1.96 standard errors."""
    import torch
    from transformers import AutoTokenizer

    import compresskit

    ids = torch.tensor(AutoTokenizer.from_pretrained(model)(held.read_text(encoding="utf-8"))["input_ids"])
    original, *modules = (compresskit.load(path).module.eval() for path in (model, *others))
    windows = ids[: len(ids) // LENGTH * LENGTH].reshape(-1, LENGTH)
    windows = windows[:: len(windows) // WINDOWS][:WINDOWS]
    found: list[list[float]] = [[] for _ in others]
    with torch.inference_mode():
        for window in windows:
            wanted = original(window[None]).logits[0].log_softmax(-1)
            for values, module in zip(found, modules, strict=True):
                given = module(window[None]).logits[0].log_softmax(-1)
                values.append(float((wanted.exp() * (wanted - given)).sum(-1).mean()))
    means = [torch.tensor(values) for values in found]
    return [(float(v.mean()), 1.96 * float(v.std()) / len(v) ** 0.5) for v in means]


def within(bench: Bench, place: Path, model: Path, size: int, out: Path, *options: Any) -> tuple[Path, int]:
    """A bundle of gptq with bits by layer whose tensors take at most as many bytes, and how many they take.

    ``--resume`` takes that of an earlier run.
    """
    numbers = sum(value.numel() for value in weights(model).values())
    bits = 8 * size / numbers
    if bench.options.resume and (out / "model.safetensors").is_file() and size_of(out) <= size:
        return out, size_of(out)
    while True:
        cli(
            "quantize", model, "--bits", 4, "--target-bits", round(bits, 2), "--data", place / "learnt.txt",
            "--sequence", 256, "--no-export", "-o", out, "--force", *options,
        )  # fmt: skip
        own = size_of(out)
        if own <= size:
            return out, own
        bits -= max(0.02, 8 * (own - size) / numbers)


def decode(bench: Bench, place: Path, model: Path) -> None:
    """New tokens a second, of 4-bit codes under both engines over transformers in float32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = place / "shape-125M"
    if not (folder / "config.json").is_file():
        import torch

        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(**SHAPE, bos_token_id=0, eos_token_id=0)).save_pretrained(folder)
        for file in model.glob("tokenizer*"):
            shutil.copy(file, folder)
    out = place / "fast"
    cli("quantize", folder, "--bits", 4, "--symmetric", "--method", "rtn", "--no-export", "--to", "gguf", "--to",
        "genai", "-o", out, "--force")  # fmt: skip
    counts = ("--processes", 2, "--rounds", 1) if bench.quick else ("--processes", 5, "--rounds", 3)
    report = cli(
        "bench", folder, place / "fast.gguf", place / "fast-genai", "--generate", "64,64", "--threads", 1, *counts
    )
    better = max((1, 2), key=lambda index: figure(report, "decode", index).value)
    for index in range(3):
        rate = figure(report, "decode", index)
        ratio = None if index == 0 else figure(report, "decode_speedup", index)
        bench.row(
            f"125 M shape, decode under {rate.runtime}, {'float32' if index == 0 else '4 bit'}, 1 thread",
            "≥ 3×" if index == better else "",
            f"{rate.value:.1f}/s" if ratio is None else f"{ratio.value:.2f}×", rate.n,
            interval(rate, 1) if ratio is None else f"{interval(ratio)}; {rate.value:.1f} tokens/s",
            None if ratio is None or index != better else ratio.value >= 3,
        )  # fmt: skip


def weights(folder: Path) -> dict[str, Any]:
    """The tensors of a folder's file, by name."""
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def size_of(folder: Path) -> int:
    """Bytes of the tensors of a folder's file."""
    return sum(value.numel() * value.element_size() for value in weights(folder).values())


def dense(bundle: Path, model: Path, place: Path) -> Path:
    """A folder with the values of a bundle's codes in float32."""
    import compresskit
    from compresskit.exporter.targets.weights import weights_of
    from compresskit.ops.packed.grid import Packed, dequantize

    found = weights_of(compresskit.load(bundle).module, "transformers")
    return plain({n: dequantize(w) if isinstance(w, Packed) else w for n, w in found.items()}, model, place)


def plain(tensors: dict[str, Any], model: Path, place: Path) -> Path:
    """A folder of a model with other weights."""
    from transformers import AutoModelForCausalLM

    module = AutoModelForCausalLM.from_pretrained(model)
    missing, unexpected = module.load_state_dict(tensors, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        absent(f"tensors {missing}", f"there are {unexpected}")
    shutil.copytree(model, place, dirs_exist_ok=True)
    module.save_pretrained(place)
    return place


def of_llama_cpp(place: Path, model: Path, kind: str) -> tuple[Path, int]:
    """llama.cpp's own file of a model: a folder with its values in float32, and the bytes of its tensors."""
    import gguf
    from transformers import AutoModelForCausalLM

    source, made = place / "model.gguf", place / f"{kind.lower()}.gguf"
    cli("export", model, "--to", "gguf", "-o", source, "--force")
    quantize(source, made, FILE_TYPES[kind])
    size = sum(int(tensor.n_bytes) for tensor in gguf.GGUFReader(made).tensors)
    loaded = AutoModelForCausalLM.from_pretrained(place, gguf_file=made.name)
    return plain(
        {name: value.float() for name, value in loaded.state_dict().items()}, model, place / f"theirs-{kind}"
    ), size


class _Params(ctypes.Structure):
    """The first of ``llama_model_quantize_params``, and more room than any version's others take."""

    _fields_ = (("threads", ctypes.c_int32), ("kind", ctypes.c_int32), ("rest", ctypes.c_char * 248))


def quantize(source: Path, made: Path, kind: int) -> None:
    """``llama_model_quantize`` to a file type."""
    folder = Path(os.environ.get("LLAMA_CPP_LIBS", ""))
    files = [
        next(iter(sorted(folder.glob(f"{name}*.so*"))), None) for name in ("libggml-base", "libggml.", "libllama.")
    ]
    if None in files or "LLAMA_CPP_LIBS" not in os.environ:
        absent("libllama of llama.cpp", "name its folder in LLAMA_CPP_LIBS")
    *_, library = (ctypes.CDLL(str(file), mode=ctypes.RTLD_GLOBAL) for file in files)
    library.llama_model_quantize_default_params.restype = _Params
    params = library.llama_model_quantize_default_params()
    params.kind, params.threads = kind, 1
    quiet = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
    library.llama_log_set(quiet, None)
    if library.llama_model_quantize(str(source).encode(), str(made).encode(), ctypes.byref(params)):
        absent("a quantized file", "llama.cpp can't make one")


if __name__ == "__main__":
    main()
