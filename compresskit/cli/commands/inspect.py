"""``compresskit inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compresskit.cli import options as shared

Rows = Annotated[int, typer.Option("--rows", min=1, help="Most layers to show; the largest are.")]


def command(
    model: shared.ModelArg,
    arch: shared.Arch = None,
    arch_args: shared.ArchArgs = None,
    input_shape: shared.InputShape = None,
    rows: Rows = 40,
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
    found["history"] = [applied.name for applied in loaded.card.history]
    write_json(jsonlib.dumps(found, indent=2, ensure_ascii=False) + "\n", json)
    if json != "-" and not quiet:
        from compresskit.render.inspect_view import print_inspection

        print_inspection(found, title=str(model), rows=rows)
