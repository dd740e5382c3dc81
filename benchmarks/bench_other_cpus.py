"""Whether what compresskit writes gives the same answers on other CPUs: onnxruntime runs under QEMU, for Arm and AVX2.

ResNet-20 sees test images, MiniLM lines of text, in float32, with weights of 4 bits, and in 8 bit with the ``--target``
of each CPU. Each file runs under this machine's onnxruntime, and under the same release on the emulated CPU: a 64-bit
Arm, or Haswell, which has AVX2 and no VNNI. Bars are of the first output: float32 and 4 bit may differ by rounding,
8 bit rounds activations, so that a value between two steps may fall either way. There the distance from the float32
model may be a tenth larger than here. A file for VNNI stands beside those for AVX2, where products saturate.

The Arm Python is put together from Debian's packages and PyPI's wheels, in a folder that is gone afterwards. QEMU has
to be installed, in a recent release: onnxruntime 1.32 crashes under 7.2 for Arm, and runs under 10.0. Emulated speed
says nothing about a device, so none is given.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnxruntime
from bench_minilm import LINES, TOKENS, plain_lines
from cifar import NORMALIZE
from harness import Bench, absent, cli, minilm, workplace

IMAGES, LEAST_SAME = 200, 0.995
ROUNDING, MORE = 1e-4, 1.1
FAMILIES = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64", "manylinux_2_17_aarch64")
WHEELS = ("numpy", "onnxruntime", "protobuf", "flatbuffers", "packaging")
RUN = """
import sys
import numpy as np
import onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
with np.load(sys.argv[2]) as given:
    feeds = {one.name: given[one.name] for one in session.get_inputs()}
np.save(sys.argv[3], session.run(None, feeds)[0])
"""
FOUR: dict[str, tuple[str, ...]] = {"4 bit, rtn": ("--bits", "4", "--method", "rtn")}
TARGETS = {"Arm": ("arm64",), "AVX2": ("x86-avx2", "x86-vnni")}
METHODS = {"ResNet-20": ("int8-static",), "MiniLM": ("int8-static", "int8-dynamic")}


def main() -> None:
    bench = Bench("other CPUs", __doc__ or "", data=True)
    with workplace() as folder:
        pythons = {"Arm": arm_python(folder / "arm"), "AVX2": [emulator("x86_64"), "-cpu", "Haswell", sys.executable]}
        for name, make in (("ResNet-20", images), ("MiniLM", texts)):
            cases = [f"{cpu}, {name} {way}" for cpu in pythons for way in ("float32", *ways(name))]
            if not any(map(bench.wants, cases)):
                continue
            files, feeds = make(bench, folder)
            given = folder / f"{name}.npz"
            np.savez(given, **feeds)  # type: ignore[arg-type]
            here = {way: output([sys.executable], path, given) for way, path in files.items()}
            for cpu, python in pythons.items():
                for way, path in files.items():
                    case = f"{cpu}, {name} {way}"
                    if bench.wants(case) and ("for" not in way or way.rpartition(" ")[2] in TARGETS[cpu]):
                        there = output(python, path, given)
                        compared(bench, case, here["float32"], here[way], there, labels=name == "ResNet-20")
    bench.end()


def ways(name: str) -> dict[str, tuple[str, ...]]:
    """Options of each quantized file of a model."""
    targets = dict.fromkeys(target for those in TARGETS.values() for target in those)
    eight: dict[str, tuple[str, ...]] = {f"8 bit, {method} for {target}": ("--method", method, "--target", target)
             for method in METHODS[name] for target in targets}  # fmt: skip
    return eight | FOUR


def compared(bench: Bench, case: str, exact: np.ndarray, here: np.ndarray, there: np.ndarray, *, labels: bool) -> None:
    """Rows of one file: how far the two machines are apart, and both from the float32 model."""
    apart, ours, theirs = distance(there, here), distance(here, exact), distance(there, exact)
    about = f"from float32: here {ours:.4f}, there {theirs:.4f}"
    if "8 bit" in case:
        told = TARGETS[case.partition(",")[0]][0] in case
        bar, passed = (f"≤ {MORE}×", theirs <= MORE * ours) if told else ("", None)
        value = f"{theirs / ours:.3f}×"
        bench.row(f"{case}, distance from float32 over that with VNNI", bar, value, len(here), about, passed)
    else:
        bench.row(
            f"{case}, relative difference", f"≤ {ROUNDING:g}", f"{apart:.2g}", len(here), about, apart <= ROUNDING
        )
    if labels:
        same = float((here.argmax(-1) == there.argmax(-1)).mean())
        exempt = "8 bit" in case and "x86-vnni" in case
        bar, passed = ("", None) if exempt else (f"≥ {100 * LEAST_SAME} %", same >= LEAST_SAME)
        bench.row(f"{case}, same class", bar, f"{100 * same:.1f} %", len(here), "", passed)


def distance(found: np.ndarray, exact: np.ndarray) -> float:
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


def images(bench: Bench, folder: Path) -> tuple[dict[str, Path], dict[str, np.ndarray]]:
    """ResNet-20's files and normalized test images."""
    model, train = bench.data("models", "resnet20.th"), bench.data("cifar10", "train.npz")
    arch = ("--arch", "examples/cifar_resnet.py:resnet20", "--input-shape", "1,3,32,32")
    cli("export", model, *arch, "-o", folder / "resnet20.onnx")
    files = {"float32": folder / "resnet20.onnx"}
    for way, options in ways("ResNet-20").items():
        out = folder / f"resnet20-{len(files)}"
        cli("quantize", model, *arch, *options, "--data", train, "--normalize", NORMALIZE, "--no-bench", "-o", out)
        files[way] = out / "model.onnx"
    mean, std = (np.array([float(x) for x in part.split(",")], np.float32) for part in NORMALIZE.split("/"))
    with np.load(bench.data("cifar10", "test.npz")) as arrays:
        x = (arrays["x"][: 20 if bench.quick else IMAGES].astype(np.float32) / 255 - mean) / std
    return files, {"x": np.ascontiguousarray(x.transpose(0, 3, 1, 2))}


def texts(bench: Bench, folder: Path) -> tuple[dict[str, Path], dict[str, np.ndarray]]:
    """MiniLM's files and tokens of real lines."""
    from transformers import AutoTokenizer

    lines = folder / "lines.txt"
    lines.write_text("\n".join(plain_lines(bench.data("text", "wikitext2_valid.txt"))), encoding="utf-8")
    cli("export", minilm(), "-o", folder / "minilm.onnx")
    files = {"float32": folder / "minilm.onnx"}
    for way, options in ways("MiniLM").items():
        out = folder / f"minilm-{len(files)}"
        cli("quantize", minilm(), *options, "--data", lines, "--sequence", TOKENS, "--no-bench", "-o", out)
        files[way] = out / "model.onnx"
    shown = plain_lines(bench.data("text", "wikitext2_test.txt"))[: 4 if bench.quick else LINES // 10]
    found = AutoTokenizer.from_pretrained(minilm())(
        shown, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="np"
    )
    return files, {name: np.asarray(values, np.int64) for name, values in found.items()}


def output(python: list[str], path: Path, given: Path) -> np.ndarray:
    """The first output of a file under a Python of one of the two machines."""
    kept = given.with_name("output.npy")
    done = subprocess.run(
        [*python, "-c", RUN, str(path), str(given), str(kept)], check=False, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{path} failed:\n{done.stderr}")
    found: np.ndarray = np.load(kept)
    return found


def emulator(cpu: str) -> str:
    """The path of QEMU for programs of a CPU."""
    found = shutil.which(f"qemu-{cpu}") or shutil.which(f"qemu-{cpu}-static")
    if found is None:
        absent(f"qemu-{cpu}", "apt-get install qemu-user, in release 10 or later")
    return found


def arm_python(folder: Path) -> list[str]:
    """The words that start a Python for aarch64 with this machine's release of onnxruntime."""
    if shutil.which("dpkg") is None:
        absent("Debian's package tools", "run it on Debian or Ubuntu")
    root, state = folder / "root", folder / "apt"
    for place in (root, state / "lists" / "partial", state / "archives" / "partial"):
        place.mkdir(parents=True)
    (state / "status").touch()
    settings = folder / "apt.conf"
    settings.write_text(
        f'APT::Architecture "arm64";\nAPT::Architectures {{ "arm64"; }};\nAPT::Sandbox::User "root";\n'
        f'Dir::State "{state}";\nDir::State::status "{state}/status";\nDir::Cache "{state}";\n'
    )
    for words in (
        ("update",),
        ("install", "--yes", "--download-only", "--no-install-recommends", "python3", "libstdc++6"),
    ):
        subprocess.run(
            ["apt-get", "-qq", *words], check=True, env={**os.environ, "APT_CONFIG": str(settings)},
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
    for package in (state / "archives").glob("*.deb"):
        subprocess.run(["dpkg", "-x", str(package), str(root)], check=True)
    python = [emulator("aarch64"), "-L", str(root), "-cpu", "max", str((root / "usr/bin/python3").resolve())]
    asked = [*python, "-c", "import sys; print('%d%d' % sys.version_info[:2])"]
    version = subprocess.run(asked, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    return ["env", f"PYTHONPATH={wheels(folder, version)}", *python]


def wheels(folder: Path, version: str) -> Path:
    """A folder of Arm packages for one version of Python, ``311``."""
    pinned = {"onnxruntime": onnxruntime.__version__, "numpy": np.__version__}
    names = [f"{name}=={pinned[name]}" if name in pinned else name for name in WHEELS]
    families = [word for name in FAMILIES for word in ("--platform", name)]
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", *families,
         "--python-version", version, "--dest", folder / "wheels", *names], check=True,
    )  # fmt: skip
    for wheel in (folder / "wheels").glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder / "site")
    return folder / "site"


if __name__ == "__main__":
    main()
