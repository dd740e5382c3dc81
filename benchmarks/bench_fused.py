"""Transformers in float32, exported by this program, by torch, by optimum at O2 and through onnxslim.

MiniLM as it ships, and the shapes of ViT-Tiny and DeiT-Tiny with random weights: 224×224, patches of 16, width 192, 3
heads, 12 blocks. All files are run under onnxruntime with one thread, in turns within a process. What counts is the CPU
time of a call, which a busy machine doesn't change much; an observation is the median ratio of a process. O2 fuses
attention and layer normalizations into onnxruntime's own operators.

optimum and onnxslim are peers that are not among this project's dependencies, and optimum wants a transformers of its
own: ``--peers`` names an interpreter that has them.

    python -m venv peers && peers/bin/pip install 'optimum-onnx[onnxruntime]' onnxslim
    python benchmarks/bench_fused.py --peers peers/bin/python
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from harness import ROOT, Bench, command, minilm, workplace

from compresskit.benchmark import stats

MODEL = """\
import sys, torch, transformers
kind, out = sys.argv[1:]
torch.manual_seed(0)
shape = dict(hidden_size=192, num_hidden_layers=12, num_attention_heads=3, intermediate_size=768)
config = getattr(transformers, f"{kind}Config")(**shape)
model = getattr(transformers, f"{kind}ForImageClassification")(config)
for one in model.parameters():
    one.data.add_(torch.randn_like(one), alpha=0.05 if one.ndim < 2 else 0)  # a bias of zeros is left out by some
model.save_pretrained(out)
"""
PLAIN = """\
import sys, torch, transformers
folder, out = sys.argv[1:]
batch = torch.export.Dim("batch")
if (model := transformers.AutoModel.from_pretrained(folder).eval()).main_input_name == "input_ids":
    names, axes = ["input_ids", "attention_mask"], {0: batch, 1: torch.export.Dim("sequence", max=512)}
    given, shapes = (torch.ones(2, 16, dtype=torch.int64),) * 2, (axes, axes)
else:
    model = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    names, given, shapes = ["pixel_values"], (torch.rand(2, 3, 224, 224),), ({0: batch},)
torch.onnx.export(model, given, f"{out}/torch.onnx", dynamo=True, dynamic_shapes=shapes, input_names=names,
                  external_data=False)
"""
SCRIPT = """\
import json, pathlib, sys
from optimum.exporters.onnx import main_export
folder, out = sys.argv[1:]
config = json.loads(pathlib.Path(folder, "config.json").read_text())
task = "image-classification" if "patch_size" in config else "feature-extraction"
main_export(folder, output=f"{out}/optimum", task=task, library_name="transformers", no_post_process=True,
            do_validation=False)
"""
O2 = """\
import sys
from optimum.onnxruntime import AutoOptimizationConfig, ORTOptimizer
folder, out = sys.argv[1:]
ORTOptimizer.from_pretrained(f"{out}/optimum").optimize(AutoOptimizationConfig.O2(), save_dir=f"{out}/o2")
"""
SLIM = """\
import sys, onnx, onnxslim
folder, out = sys.argv[1:]
for name in ("torch", "optimum/model"):
    onnx.save(onnxslim.slim(f"{out}/{name}.onnx"), f"{out}/{name}-slim.onnx")
"""
RACE = """\
import json, sys, time
import numpy, onnxruntime
batch, tokens, rounds, *files = sys.argv[1:]
options = onnxruntime.SessionOptions()
options.intra_op_num_threads, options.log_severity_level = 1, 3
sessions = [onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"]) for file in files]
made = numpy.random.default_rng(0)
text = {name: numpy.ones((int(batch), int(tokens)), numpy.int64) for name in ("attention_mask", "token_type_ids")}
text["input_ids"] = made.integers(999, 2999, (int(batch), int(tokens)))
x = {**text, "pixel_values": made.standard_normal((int(batch), 3, 224, 224), numpy.float32)}
feeds = [{one.name: x[one.name] for one in session.get_inputs()} for session in sessions]
times = []
for turn in range(int(rounds) + 1):
    taken = {}
    for place in numpy.random.permutation(len(sessions)):
        start = time.process_time()
        sessions[place].run(None, feeds[place])
        taken[place] = time.process_time() - start
    times.append([taken[place] for place in range(len(sessions))])
print(json.dumps(times[1:]))
"""
FILES = {
    "optimum O2": "o2/model_optimized.onnx",
    "onnxslim of torch's": "torch-slim.onnx",
    "onnxslim of optimum's": "optimum/model-slim.onnx",
    "torch": "torch.onnx",
}
PROCESSES, SECONDS = 7, 3


class Case(NamedTuple):
    """A model.

    Attributes:
        kind: Of its classes in transformers; empty for MiniLM.
        sizes: Batch and tokens of a call; no tokens for images.
        peers: The bar: over the fastest file of these.
        least: That many times as fast.
    """

    kind: str
    sizes: tuple[tuple[int, int], ...]
    peers: tuple[str, ...]
    least: float


CASES = {
    "MiniLM": Case("", ((1, 16), (1, 128), (8, 128)), ("optimum O2",), 1.03),
    "ViT-Tiny": Case("ViT", ((1, 0), (8, 0)), tuple(FILES), 1.05),
    "DeiT-Tiny": Case("DeiT", ((1, 0), (8, 0)), tuple(FILES), 1.05),
}


def main() -> None:
    bench = Bench("fused", __doc__ or "", peers=True)
    with workplace() as place:
        for name, case in CASES.items():
            if bench.wants(name):
                _model(bench, name, case, place / name)
    bench.end()


def _model(bench: Bench, name: str, case: Case, place: Path) -> None:
    place.mkdir()
    folder, ours = place / "model", place / "ours.onnx"
    if case.kind:
        _ran([sys.executable, "-c", MODEL, case.kind, str(folder)])
    else:
        folder = minilm()
    _ran(command("export", folder, "-o", ours, "--quiet"))
    _ran([sys.executable, "-c", PLAIN, str(folder), str(place)])
    if bench.options.peers is None:
        print("  without --peers only torch's own export is compared with")
    else:
        for code in (SCRIPT, O2, SLIM):
            _ran([str(bench.options.peers), "-c", code, str(folder), str(place)])
    files = {peer: place / file for peer, file in FILES.items() if (place / file).exists()}
    for peer in FILES.keys() - files.keys():
        print(f"  no file of {peer} for {name}")
    for batch, tokens in case.sizes:
        size = f"{batch}×{tokens} tokens" if tokens else f"batch {batch}"
        _race(bench, f"{name}, {size}", case, (batch, tokens), {"ours": ours, **files})


def _race(bench: Bench, name: str, case: Case, size: tuple[int, int], files: dict[str, Path]) -> None:
    ratios: list[list[float]] = []
    for _ in range(2 if bench.quick else PROCESSES):
        times = np.array(_turns(size, 3, files))
        rounds = int(np.clip(SECONDS / times.sum(axis=1).mean(), 5, 200))
        times = np.array(_turns(size, rounds, files))
        ratios.append(np.median(times[:, 1:] / times[:, :1], axis=0).tolist())
    peers = [peer for peer in files if peer != "ours"]
    found = {peer: stats.estimate(values) for peer, values in zip(peers, zip(*ratios, strict=True), strict=True)}
    for peer, ratio in found.items():
        bench.row(f"{name}, over {peer}", "", f"{ratio.value:.3f}×", ratio.n, _interval(ratio))
    known = [peer for peer in found if peer in case.peers]
    if bench.options.peers is not None and known:
        best = min(known, key=lambda peer: found[peer].value)
        ratio = found[best]
        bench.row(
            f"{name}, over the best of {len(known)} peers", f"≥ {case.least:g}×", f"{ratio.value:.3f}×", ratio.n,
            f"{_interval(ratio)}, {best}", ratio.value >= case.least,
        )  # fmt: skip


def _turns(size: tuple[int, int], rounds: int, files: dict[str, Path]) -> list[list[float]]:
    """CPU seconds of a call, for each turn and file."""
    words = [sys.executable, "-c", RACE, *map(str, (*size, rounds)), *map(str, files.values())]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    found: list[list[float]] = json.loads(done.stdout)
    return found


def _interval(ratio: stats.Estimate) -> str:
    return f"95 %: {ratio.low:.3f} to {ratio.high:.3f}"


def _ran(words: list[str]) -> None:
    """Run a step; what it has to say is shown where it fails, and its file is then missing."""
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stderr[-600:], file=sys.stderr)


if __name__ == "__main__":
    main()
