"""``compresskit lora list``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from compresskit.cli import options as shared

Folder = Annotated[
    Path, typer.Argument(metavar="FOLDER", help="Adapter in PEFT's format, or a bundle.", show_default=False)
]


def command(folder: Folder, json: shared.Json = None, quiet: shared.Quiet = False) -> None:
    """Show the type, ranks, layers and base model of an adapter.

    FOLDER is an adapter in PEFT's format, or a bundle that lora wrote. Tensors are read, and no code is run.
    """
    import json as jsonlib

    from compresskit.cli.console import check_json, write_json
    from compresskit.ops.lora.folder import about, read_adapter

    check_json(json, (folder,))
    found = about(read_adapter(folder, allow_nonfinite=True))
    write_json(jsonlib.dumps(found, indent=2, ensure_ascii=False) + "\n", json)
    if json != "-" and not quiet:
        from compresskit.render.adapter_view import print_adapter

        print_adapter(found, title=str(folder))
