"""torch: the model as its author wrote it, run eagerly or compiled."""

from __future__ import annotations

import importlib.util
import inspect
import os
import shutil
from collections.abc import Callable, Mapping
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compresskit.errors import CompressKitError, InputError, MachineError, UsageError
from compresskit.runtimes.base import require

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from compresskit.model import InputSpec


class TorchRuntime:
    """Runs an ``nn.Module`` in inference mode.

    Args:
        loader: Gives the module for a path. Reading checkpoints lies above this layer, so the caller brings it.
        inputs: What the module takes, where known; a module itself doesn't say.
        compiled: Let ``torch.compile`` make kernels of it on the first call, for the shapes of that call; it needs a
            C++ compiler, and falls back to eager code, in parts, where it can't follow the module.
    """

    name = "torch"

    def __init__(
        self,
        loader: Callable[[Path], nn.Module] | None = None,
        inputs: tuple[InputSpec, ...] = (),
        compiled: bool = False,
    ) -> None:
        self.loader = loader
        self.inputs = inputs
        self.compiled = compiled
        if compiled:
            self.name = "torch-compile"

    def missing(self) -> str | None:
        """None when torch is installed, and a compiler where one is needed."""
        if importlib.util.find_spec("torch") is None:
            return "torch is not installed: pip install torch"
        compilers = (os.environ.get("CXX", ""), "c++", "g++", "clang++", "cl")
        if self.compiled and not any(shutil.which(name) for name in compilers if name):
            return "torch.compile finds no C++ compiler: install one (apt install g++), or name it in CXX"
        return None

    def prepare(self) -> Any:
        """Import the library.

        Raises:
            MachineError: It isn't installed.
        """
        require(self)
        import torch

        return torch

    def open(self, path: Path, threads: int = 0, device: str = "cpu") -> TorchSession:
        """Load a model.

        Args:
            path: Given to the loader.
            threads: Intra-op threads of the whole process; 0 leaves torch's choice.
            device: ``cpu``, ``cuda``, ``cuda:1``, ``mps`` …

        Raises:
            InputError: The loader refuses the file.
            MachineError: torch isn't installed or lacks the device.
            UsageError: There is no loader, or the device has no known name.
        """
        torch = self.prepare()
        if self.loader is None:
            raise UsageError("the torch runtime needs to know how to build the model", "give its class with `arch`")
        if threads:
            torch.set_num_threads(threads)
        where = _device(device)
        try:
            module = self.loader(path)
        except CompressKitError:
            raise
        except Exception as error:  # a user's factory may raise anything
            raise _wrapped(error, f"torch cannot load {path.name}") from error
        module = module.eval().to(where)
        return TorchSession(module, path.name, self.inputs, torch.compile(module) if self.compiled else None)


class TorchSession:
    """A module that is ready to run; ``outputs`` is known after the first run."""

    def __init__(
        self, module: nn.Module, name: str, inputs: tuple[InputSpec, ...], compiled: Callable[..., Any] | None = None
    ) -> None:
        self._module = compiled or module
        self._name = name
        self._keywords = _keywords(module)
        self._device = next((t.device for t in chain(module.parameters(), module.buffers())), "cpu")
        self.inputs = inputs
        self.outputs: tuple[str, ...] = ()

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One forward pass; arrays are given by keyword where ``forward`` has such a name, else in order.

        Raises:
            InputError: The module doesn't take these inputs, or gives no tensor.
            MachineError: Out of memory.
        """
        out = self._forward(self._tensors(feeds))
        found = flatten(out)
        if not found:
            raise InputError(f"{self._name} gave {type(out).__name__}, expected a tensor, or a dict or tuple of them")
        self.outputs = tuple(found)
        return {name: _array(tensor) for name, tensor in found.items()}

    def device_ms(self, feeds: dict[str, np.ndarray]) -> float | None:
        """Time of one forward pass on a CUDA device by its own events, without moving inputs; None on others.

        Raises:
            InputError, MachineError: As :meth:`run`.
        """
        if getattr(self._device, "type", "") != "cuda":
            return None
        import torch

        tensors = self._tensors(feeds)
        event: Any = torch.cuda.Event
        start, end = event(enable_timing=True), event(enable_timing=True)
        with torch.cuda.device(self._device):
            torch.cuda.synchronize()
            start.record()
            self._forward(tensors)
            end.record()
            torch.cuda.synchronize()
        return float(start.elapsed_time(end))

    def _tensors(self, feeds: dict[str, np.ndarray]) -> dict[str, Tensor]:
        import torch

        # copies: a module may write into its inputs, which another runtime may be reading
        return {name: torch.tensor(array, device=self._device) for name, array in feeds.items()}

    def _forward(self, tensors: dict[str, Tensor]) -> object:
        import torch

        try:
            with torch.inference_mode():
                return self._called(tensors)
        except Exception as error:
            raise _wrapped(error, f"torch cannot run {self._name}") from error

    def _called(self, tensors: dict[str, Tensor]) -> object:
        if self._keywords is None or all(name in self._keywords for name in tensors):
            return self._module(**tensors)
        return self._module(*tensors.values())


def flatten(out: object, name: str = "output") -> dict[str, Tensor]:
    """The tensors of a module's output, by name.

    A single tensor is ``output``; a dict's or a ModelOutput's go by their keys; those of a tuple or list are
    ``output_0``, ``output_1`` …, or ``output`` where there is only one; inner ones are joined with a dot.
    What isn't a tensor is left out.
    """
    import torch

    if isinstance(out, torch.Tensor):
        return {name: out}
    items: list[tuple[str, object]] = []
    if isinstance(out, Mapping):
        items = [(str(key) if name == "output" else f"{name}.{key}", value) for key, value in out.items()]
    elif isinstance(out, (tuple, list)):
        items = [(name if len(out) == 1 else f"{name}_{i}", value) for i, value in enumerate(out)]
    return {key: tensor for label, value in items for key, tensor in flatten(value, label).items()}


def _keywords(module: nn.Module) -> set[str] | None:
    """The names that ``forward`` takes by keyword; None when it takes any."""
    parameters = inspect.signature(module.forward).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def _array(tensor: Tensor) -> np.ndarray:
    import torch

    tensor = tensor.detach().cpu()
    array: np.ndarray = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return array


def _device(name: str) -> Any:
    import torch

    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"torch has no device '{name}'", "use cpu, cuda or mps") from error
    ready = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not ready.get(device.type, False):
        raise MachineError(f"this machine or this build of torch has no {device.type}", "use `device` cpu")
    return device


def _wrapped(error: Exception, what: str) -> InputError | MachineError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    text = f"{what}: {lines[0]}"
    if isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text:
        return MachineError(text, "close other programs, or use a smaller batch")
    return InputError(text)
