"""What a runtime is: something that opens a model file and runs it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from compresskit.errors import MachineError

if TYPE_CHECKING:
    import numpy as np

    from compresskit.model import InputSpec


class Session(Protocol):
    """A model that is ready to run."""

    inputs: tuple[InputSpec, ...]
    outputs: tuple[str, ...]

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One forward pass: arrays by input name to arrays by output name."""
        ...


class Runtime(Protocol):
    """A way to run models, by name; importing its module imports no engine."""

    name: str

    def missing(self) -> str | None:
        """None when it can run here, else one line that says what to install."""
        ...

    def prepare(self) -> object:
        """Import the engine's library, so that its time isn't part of a model's load time.

        Raises:
            MachineError: The engine isn't installed, or doesn't load here.
        """
        ...

    def open(self, path: Path, threads: int = 0, device: str = "cpu") -> Session:
        """Load a model.

        Raises:
            InputError: The engine refuses the file.
            MachineError: The engine isn't installed or lacks the device.
        """
        ...


def require(runtime: Runtime) -> None:
    """Go on only where the runtime is installed.

    Raises:
        MachineError: It isn't; says what to install.
    """
    if reason := runtime.missing():
        raise MachineError(reason)
