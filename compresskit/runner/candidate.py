"""One model that is measured: its file, what it is called, and how to run it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from compresskit.benchmark.run import Spec
from compresskit.checkpoint.shards import shards_of
from compresskit.checkpoint.tensors import INDEX
from compresskit.model import InputSpec
from compresskit.report import ModelEntry
from compresskit.runtimes import get, runs_modules
from compresskit.runtimes.base import Session
from compresskit.runtimes.by_sample import by_sample
from compresskit.runtimes.onnxfile import scan

Int8Arithmetic = Literal["native", "clipped", "exact"]
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Candidate:
    """A model on disk and a runtime to run it with.

    Attributes:
        name: In tables and in the report; unique among the models of one report.
        path: What the runtime opens.
        shown: The path as the user knows it.
        inputs: What goes in; empty where the runtime reads it off the file.
        task: From the model's card.
        runtime: Name of the runtime.
        threads: Threads of one operator; 0 is the runtime's choice.
        device: Device, as the runtime names it.
        parameters: Number of parameters of the original architecture, where known.
        macs: Multiply-accumulates of one sample, where known.
        int8_arithmetic: How onnxruntime multiplies 8-bit integers when the model is opened in this process: as this
            machine does, clipped as on x86 without VNNI, or exactly; the last two are emulated and never timed.
        bytes: What counts as its size; None is its files'.
        loader_args: For the torch runtime: keyword arguments of :func:`compresskit.runner.loading.load_module`.
        promises_speed: It should be faster than the model that it is compared with; else as fast will do.
        may_slow: It takes more time for what it gains.
        varies: It takes more or less time from input to input.
        promises_size: It should be no larger than that model.
    """

    name: str
    path: Path
    shown: str
    inputs: tuple[InputSpec, ...] = ()
    task: str = "unknown"
    runtime: str = "onnxruntime"
    threads: int = 0
    device: str = "cpu"
    parameters: int | None = None
    macs: int | None = None
    int8_arithmetic: Int8Arithmetic = "native"
    bytes: int | None = None
    loader_args: dict[str, Any] = field(default_factory=dict)
    promises_speed: bool = True
    may_slow: bool = False
    varies: bool = False
    promises_size: bool = True

    def entry(self) -> ModelEntry:
        """The model's line in the report; bytes and hash include external data."""
        digest, size = hashlib.sha256(), 0
        for part in files_of(self.path):
            with part.open("rb") as stream:
                while chunk := stream.read(_CHUNK):
                    digest.update(chunk)
                    size += len(chunk)
        return ModelEntry(
            name=self.name,
            path=self.shown,
            bytes=size if self.bytes is None else self.bytes,
            parameters=self.parameters,
            macs=self.macs,
            sha256=digest.hexdigest(),
        )

    def open(self) -> Session:
        """Ready to run, in this process; its inputs have a row a sample, whatever the batch axes of the model.

        Raises:
            InputError: The runtime refuses the file.
            MachineError: The runtime isn't installed.
        """
        if runs_modules(self.runtime):
            from compresskit.runner.loading import load_module

            loader = partial(load_module, **self.loader_args)
            return get(self.runtime, loader=loader, inputs=self.inputs).open(self.path, self.threads, self.device)
        runtime = get(self.runtime)
        if self.runtime == "onnxruntime" and self.int8_arithmetic != "native":
            from compresskit.runtimes.saturating import SaturatingOnnxRuntime

            runtime = SaturatingOnnxRuntime(clips=self.int8_arithmetic == "clipped")
        return by_sample(runtime.open(self.path, self.threads, self.device), self.inputs)

    def spec(self, sizes: dict[str, int], samples: Mapping[int, Path] = {}) -> Spec:
        """What the bench needs to open the model in a process of its own; ``samples`` are real inputs by batch size."""
        loader = "compresskit.runner.loading:load_module" if runs_modules(self.runtime) else ""
        return Spec(
            self.name, self.path, self.runtime, self.threads, self.device, self.inputs, sizes, loader,
            self.loader_args, samples,
        )  # fmt: skip


def files_of(path: Path) -> Iterator[Path]:
    """The files of a model in a fixed order: the file with its external data or shards, or those of a folder."""
    if path.is_dir():
        kinds = (".safetensors", ".bin", ".json", ".onnx", ".data")
        yield from sorted(p for p in path.iterdir() if p.is_file() and p.suffix in kinds and p.name != "report.json")
        return
    yield path
    if path.name.endswith(INDEX):
        yield from shards_of(path)
    if path.suffix.lower() == ".onnx" and path.is_file():
        folder = path.parent.resolve()
        beside = {(path.parent / name).resolve(): path.parent / name for name in scan(path).beside}
        yield from sorted(own for real, own in beside.items() if real.is_relative_to(folder) and real.is_file())
