"""``compresskit inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from compresskit.cli import options as shared

if TYPE_CHECKING:
    from compresskit.model import Model

Rows = Annotated[int, typer.Option("--rows", min=1, help="Most layers to show; the largest are.")]
Spectrum = Annotated[
    bool,
    typer.Option(
        "--spectrum",
        help="Show the rank of each Linear layer and convolution, and what energy a budget keeps; needs the "
        "architecture.",
    ),
]


def command(
    model: shared.ModelArg,
    arch: shared.Arch = None,
    arch_args: shared.ArchArgs = None,
    input_shape: shared.InputShape = None,
    rows: Rows = 40,
    spectrum: Spectrum = False,
    json: shared.Json = None,
    quiet: shared.Quiet = False,
) -> None:
    """Show layers, parameters, bytes, MACs and zeros of a model.

    MACs are counted for one sample and need the architecture and its input shape, or an ONNX graph.
    """
    import json as jsonlib

    from compresskit.cli.console import check_json, write_json
    from compresskit.cli.inputs import load_model, load_options

    check_json(json, (model, arch))
    # What is to be looked at may be broken: NaN is shown, not refused.
    loaded = load_model(model, load_options(arch, arch_args, input_shape, allow_nonfinite=True))
    if not isinstance(loaded.body, Path):
        from compresskit.ops.inspect import inspect_module

        found = inspect_module(loaded.body, loaded.card.inputs)
    elif loaded.body.suffix == ".onnx":
        from compresskit.ops.inspect_onnx import inspect_onnx

        found = inspect_onnx(loaded.body)
    else:
        from compresskit.checkpoint.tensors import open_tensors
        from compresskit.ops.inspect import inspect_tensors

        found = inspect_tensors(open_tensors(loaded.body, allow_nonfinite=True))
    if spectrum:
        found["spectrum"] = _spectrum(loaded)
    found["history"] = [applied.name for applied in loaded.card.history]
    write_json(jsonlib.dumps(found, indent=2, ensure_ascii=False) + "\n", json)
    if json != "-" and not quiet:
        from compresskit.render.inspect_view import print_inspection

        print_inspection(found, title=str(model), rows=rows)


def _spectrum(loaded: Model) -> list[dict[str, Any]]:
    """The singular values of a model's layers, in figures.

    Raises:
        UsageError: The architecture isn't known.
        InputError: The model has no layer in floating point to look at.
    """
    from compresskit.errors import InputError, UsageError
    from compresskit.ops.factorize.spectrum import spectrum

    if isinstance(loaded.body, Path):
        raise UsageError("--spectrum needs a module: which tensors are layers isn't known", "give --arch FILE.py:NAME")
    found = spectrum(loaded.body)
    if not found:
        raise InputError("no Linear layer or convolution of this model has a weight in floating point")
    return found
