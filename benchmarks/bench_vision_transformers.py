"""ViT-Tiny and DeiT-Tiny shapes in float32, exported by this program, by torch, by optimum at O2 and through onnxslim.

Random weights; 224×224, patches of 16, width 192, 3 heads, 12 blocks. All files are run under onnxruntime with one
thread, in turns within a process. What counts is the CPU time of a call, which a busy machine doesn't change; an
observation is the median ratio of a process.

optimum and onnxslim are peers that are not among this project's dependencies, and optimum wants a transformers of its
own: ``--peers`` names an interpreter that has them.

    python -m venv peers && peers/bin/pip install 'optimum-onnx[onnxruntime]' onnxslim
    python benchmarks/bench_vision_transformers.py --peers peers/bin/python
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from harness import ROOT, Bench, command, workplace

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
model = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
axes = ({0: torch.export.Dim("batch")},)
torch.onnx.export(model, (torch.rand(2, 3, 224, 224),), f"{out}/torch.onnx", dynamo=True, dynamic_shapes=axes,
                  input_names=["pixel_values"], external_data=False)
"""
SCRIPT = """\
import sys
from optimum.exporters.onnx import main_export
folder, out = sys.argv[1:]
main_export(folder, output=f"{out}/optimum", task="image-classification", no_post_process=True, do_validation=False)
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
batch, rounds, *files = sys.argv[1:]
options = onnxruntime.SessionOptions()
options.intra_op_num_threads, options.log_severity_level = 1, 3
sessions = [onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"]) for file in files]
x = {"pixel_values": numpy.random.default_rng(0).standard_normal((int(batch), 3, 224, 224), numpy.float32)}
times = []
for turn in range(int(rounds) + 1):
    taken = {}
    for place in numpy.random.permutation(len(sessions)):
        start = time.process_time()
        sessions[place].run(None, x)
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
KINDS = {"ViT-Tiny": "ViT", "DeiT-Tiny": "DeiT"}
BATCHES, BAR = (1, 8), 1.05
PROCESSES, ROUNDS = 7, 5


def main() -> None:
    bench = Bench("vision transformers", __doc__ or "", peers=True)
    with workplace() as place:
        for name, kind in KINDS.items():
            if bench.wants(name):
                _model(bench, name, kind, place / kind)
    bench.end()


def _model(bench: Bench, name: str, kind: str, place: Path) -> None:
    place.mkdir()
    folder, ours = place / "model", place / "ours.onnx"
    _ran([sys.executable, "-c", MODEL, kind, str(folder)])
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
    for batch in BATCHES:
        _race(bench, f"{name}, batch {batch}", batch, ours, files)


def _race(bench: Bench, case: str, batch: int, ours: Path, files: dict[str, Path]) -> None:
    ratios: list[list[float]] = []
    for _ in range(2 if bench.quick else PROCESSES):
        words = [sys.executable, "-c", RACE, str(batch), str(ROUNDS), str(ours), *map(str, files.values())]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
        times = np.array(json.loads(done.stdout))
        ratios.append(np.median(times[:, 1:] / times[:, :1], axis=0).tolist())
    found = {peer: stats.estimate(values) for peer, values in zip(files, zip(*ratios, strict=True), strict=True)}
    for peer, ratio in found.items():
        bench.row(f"{case}, over {peer}", "", f"{ratio.value:.3f}×", ratio.n, _interval(ratio))
    if bench.options.peers is not None:
        best = min(found, key=lambda peer: found[peer].value)
        ratio = found[best]
        bench.row(f"{case}, over the best of the peers", f"≥ {BAR:g}×", f"{ratio.value:.3f}×", ratio.n,
                  f"{_interval(ratio)}, {best}", ratio.value >= BAR)  # fmt: skip


def _interval(ratio: stats.Estimate) -> str:
    return f"95 %: {ratio.low:.3f} to {ratio.high:.3f}"


def _ran(words: list[str]) -> None:
    """Run a step; what it has to say is shown where it fails, and its file is then missing."""
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stderr[-600:], file=sys.stderr)


if __name__ == "__main__":
    main()
