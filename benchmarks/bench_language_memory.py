"""Private memory and time of quantizing a large language model's folder: weights alone, and gptq block by block.

The models have the shapes of known ones and random weights in bfloat16, in shards. Private memory is what the process
alone holds and the system can't take back: ``RssAnon`` of Linux, read every 20 ms. Pages of the mapped shards come on
top in the resident size, which is told beside it. ``--keep`` names a folder where the models stay for the next run.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from harness import Bench, absent, command

GB = 1e9
SAMPLES, TOKENS = 16, 256
WAYS: dict[str, tuple[float, tuple[str, ...], bool]] = {
    "--bits 4": (1.5, ("--bits", "4"), False),
    "--bits 8": (1.5, ("--bits", "8"), False),
    "--method nf4": (1.5, ("--method", "nf4"), False),
    f"gptq, {SAMPLES} × {TOKENS} tokens": (3.0, ("--method", "gptq", "--bits", "4"), True),
}
"""By what is done: the bar in GB, options, and whether it takes data."""
SHAPES: dict[str, dict[str, Any]] = {
    "30 M": {
        "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 4, "num_attention_heads": 8,
        "num_key_value_heads": 4, "vocab_size": 16000,
    },
    "1.1 B": {
        "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32,
        "num_key_value_heads": 4, "vocab_size": 32000,
    },
    "3 B": {
        "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24,
        "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True,
    },
}  # fmt: skip
MAKE = """
import json, sys, torch
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
from compresskit.checkpoint.shard_writer import ShardWriter
folder, shape = Path(sys.argv[1]), json.loads(sys.argv[2])
folder.mkdir(parents=True, exist_ok=True)
config = LlamaConfig(**shape, architectures=["LlamaForCausalLM"], dtype="bfloat16")
with torch.device("meta"):
    module = LlamaForCausalLM(config)
module.tie_weights()
writer, seen, made = ShardWriter(folder, {"format": "pt"}, 1 << 29), set(), {}
torch.manual_seed(0)
for name, value in module.state_dict(keep_vars=True).items():
    if id(value) not in seen:
        seen.add(id(value))
        if value.shape not in made:  # one for each shape: those of all blocks are the same
            made[value.shape] = torch.ones(value.shape).bfloat16()
            if value.dim() > 1:
                made[value.shape].normal_(std=0.02)
        writer.add(name, made[value.shape])
writer.finish(list(module.state_dict()))
config.save_pretrained(folder)
"""


def main() -> None:
    bench = Bench("language memory", __doc__ or "", keep=True)
    if not Path("/proc/self/status").is_file():
        absent("the private memory of another process, which only Linux tells this way", "run it on Linux")
    with bench.kept() as place:
        for name, shape in SHAPES.items():
            if (name == "30 M") != bench.quick or not any(bench.wants(f"{name}, {what}") for what in WAYS):
                continue
            folder = place / name.replace(" ", "")
            if not (folder / "config.json").is_file():
                subprocess.run([sys.executable, "-c", MAKE, folder, json.dumps(shape)], check=True)
            size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
            ids = np.random.default_rng(0).integers(3, shape["vocab_size"], (SAMPLES, TOKENS))
            np.savez(place / "ids.npz", input_ids=ids)
            data = ("--data", str(place / "ids.npz"), "--samples", str(SAMPLES), "--sequence", str(TOKENS))
            for what, (bar, options, more) in WAYS.items():
                if not bench.wants(f"{name}, {what}"):
                    continue
                out = place / "out"
                given = (*options, *(data if more else ()))
                private, resident, seconds = measured(
                    command("quantize", folder, *given, "--no-export", "-q", "-o", out, "--force")
                )
                left = size / sum(file.stat().st_size for file in out.glob("*.safetensors"))
                bench.row(
                    f"{name}, {what}, private memory", f"≤ {bar} GB", f"{private / GB:.2f} GB", 1,
                    f"resident {resident / GB:.2f} GB, {seconds:.0f} s, {left:.2f}× smaller", private <= bar * GB,
                )  # fmt: skip
    bench.end()


def measured(words: list[str]) -> tuple[int, int, float]:
    """(peak of private bytes, peak of resident bytes, seconds) of a process."""
    begin, private, resident = time.monotonic(), 0, 0
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        found = status(process.pid)
        private, resident = max(private, found.get("RssAnon", 0)), max(resident, found.get("VmHWM", 0))
        time.sleep(0.02)
    if process.returncode not in (0, 1):
        sys.exit(f"{' '.join(words)} ended with exit code {process.returncode}")
    return private, resident, time.monotonic() - begin


def status(pid: int) -> dict[str, int]:
    """The sizes that the system tells of a process, in bytes; empty once it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return {}
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith(" kB")}


if __name__ == "__main__":
    main()
