"""Whether what compresskit writes for Arm gives the same answers there; onnxruntime for Arm runs under QEMU.

ResNet-20 sees test images, MiniLM lines of text, in float32, with weights of 4 bits, and in 8 bit with ``--target
arm64``. Each file runs under this machine's onnxruntime, and under the same release for aarch64. Bars are of the first
output: float32 and 4 bit compute in float32 and may differ by rounding, 8 bit rounds activations, so that a value
between two steps may fall either way. There the distance from the float32 model may be a tenth larger than here.

The Arm Python is put together from Debian's packages and PyPI's wheels, in a folder that is gone afterwards. QEMU has
to be installed, in a recent release: onnxruntime 1.32 crashes under 7.2, and runs under 10.0. Emulated speed says
nothing about a device, so none is given.
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
EIGHT = ("--target", "arm64")
IMAGE_WAYS: dict[str, tuple[str | float, ...]] = {
    "8 bit, int8-static": ("--method", "int8-static", *EIGHT),
    "4 bit, rtn": ("--bits", 4, "--method", "rtn"),
}
TEXT_WAYS: dict[str, tuple[str | float, ...]] = {
    "8 bit, int8-static": ("--method", "int8-static", *EIGHT),
    "8 bit, int8-dynamic": ("--method", "int8-dynamic", *EIGHT),
    "4 bit, rtn": ("--bits", 4, "--method", "rtn"),
}


def main() -> None:
    bench = Bench("Arm", __doc__ or "", data=True)
    with workplace() as folder:
        python = arm_python(folder / "arm")
        for name, files, feeds in (images(bench, folder), texts(bench, folder)):
            given = folder / f"{name}.npz"
            np.savez(given, **feeds)  # type: ignore[arg-type]
            exact = output([sys.executable], files["float32"], given)
            for way, path in files.items():
                if bench.wants(case := f"{name} {way}"):
                    here, there = output([sys.executable], path, given), output(python, path, given)
                    compared(bench, case, exact, here, there, labels="ResNet" in name)
    bench.end()


def compared(bench: Bench, case: str, exact: np.ndarray, here: np.ndarray, there: np.ndarray, *, labels: bool) -> None:
    """Rows of one file: how far the two machines are apart, and both from the float32 model."""
    apart, ours, theirs = distance(there, here), distance(here, exact), distance(there, exact)
    about = f"from float32: x86 {ours:.4f}, Arm {theirs:.4f}"
    if "8 bit" in case:
        bench.row(
            f"{case}, distance from float32 over that on x86", f"≤ {MORE}×", f"{theirs / ours:.3f}×", len(here), about,
            theirs <= MORE * ours,
        )  # fmt: skip
    bar, passed = ("", None) if "8 bit" in case else (f"≤ {ROUNDING:g}", apart <= ROUNDING)
    bench.row(f"{case}, relative difference to x86", bar, f"{apart:.2g}", len(here), about, passed)
    if labels:
        same = float((here.argmax(-1) == there.argmax(-1)).mean())
        bar = f"≥ {100 * LEAST_SAME} %"
        bench.row(f"{case}, same class as on x86", bar, f"{100 * same:.1f} %", len(here), "", same >= LEAST_SAME)


def distance(found: np.ndarray, exact: np.ndarray) -> float:
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


def images(bench: Bench, folder: Path) -> tuple[str, dict[str, Path], dict[str, np.ndarray]]:
    """ResNet-20's files and normalized test images."""
    model, train = bench.data("models", "resnet20.th"), bench.data("cifar10", "train.npz")
    arch = ("--arch", "examples/cifar_resnet.py:resnet20", "--input-shape", "1,3,32,32")
    cli("export", model, *arch, "-o", folder / "resnet20.onnx")
    files = {"float32": folder / "resnet20.onnx"}
    for way, options in IMAGE_WAYS.items():
        out = folder / f"resnet20-{options[1]}"
        cli("quantize", model, *arch, *options, "--data", train, "--normalize", NORMALIZE, "--no-bench", "-o", out)
        files[way] = out / "model.onnx"
    mean, std = (np.array([float(x) for x in part.split(",")], np.float32) for part in NORMALIZE.split("/"))
    with np.load(bench.data("cifar10", "test.npz")) as arrays:
        x = (arrays["x"][: 20 if bench.quick else IMAGES].astype(np.float32) / 255 - mean) / std
    return "ResNet-20", files, {"input": np.ascontiguousarray(x.transpose(0, 3, 1, 2))}


def texts(bench: Bench, folder: Path) -> tuple[str, dict[str, Path], dict[str, np.ndarray]]:
    """MiniLM's files and tokens of real lines."""
    from transformers import AutoTokenizer

    lines = folder / "lines.txt"
    lines.write_text("\n".join(plain_lines(bench.data("text", "wikitext2_valid.txt"))), encoding="utf-8")
    cli("export", minilm(), "-o", folder / "minilm.onnx")
    files = {"float32": folder / "minilm.onnx"}
    for way, options in TEXT_WAYS.items():
        out = folder / f"minilm-{options[1]}"
        cli("quantize", minilm(), *options, "--data", lines, "--sequence", TOKENS, "--no-bench", "-o", out)
        files[way] = out / "model.onnx"
    shown = plain_lines(bench.data("text", "wikitext2_test.txt"))[: 4 if bench.quick else LINES // 4]
    found = AutoTokenizer.from_pretrained(minilm())(
        shown, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="np"
    )
    return "MiniLM", files, {name: np.asarray(values, np.int64) for name, values in found.items()}


def output(python: list[str], path: Path, given: Path) -> np.ndarray:
    """The first output of a file under a Python of one of the two machines."""
    kept = given.with_name("output.npy")
    subprocess.run([*python, "-c", RUN, str(path), str(given), str(kept)], check=True)
    found: np.ndarray = np.load(kept)
    return found


def arm_python(folder: Path) -> list[str]:
    """The words that start a Python for aarch64 with this machine's release of onnxruntime."""
    emulator = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if emulator is None or shutil.which("dpkg") is None:
        absent("qemu-aarch64, or Debian's package tools", "apt-get install qemu-user, in release 10 or later")
    root, state = folder / "root", folder / "apt"
    for place in (root, state / "lists" / "partial", state / "archives" / "partial"):
        place.mkdir(parents=True)
    (state / "status").touch()
    settings = folder / "apt.conf"
    settings.write_text(
        f'APT::Architecture "arm64";\nAPT::Architectures {{ "arm64"; }};\nAPT::Sandbox::User "root";\n'
        f'Dir::State "{state}";\nDir::State::status "{state}/status";\nDir::Cache "{state}";\n'
    )
    for words in (("update",), ("install", "--yes", "--download-only", "--no-install-recommends", "python3")):
        subprocess.run(
            ["apt-get", "-qq", *words], check=True, env={**os.environ, "APT_CONFIG": str(settings)},
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
    for package in (state / "archives").glob("*.deb"):
        subprocess.run(["dpkg", "-x", str(package), str(root)], check=True)
    python = [emulator, "-L", str(root), "-cpu", "max", str((root / "usr/bin/python3").resolve())]
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
