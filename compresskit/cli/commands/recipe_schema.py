"""``compresskit recipe schema``."""

from __future__ import annotations


def command() -> None:
    """Print the JSON schema of recipe files, for editors.

    Draft 2020-12, made from the methods that are installed here, plugins included. An editor that knows YAML schemas
    completes keys with it, and marks what is wrong.
    """
    import json

    from compresskit.cli.console import write_out
    from compresskit.recipe.schema import schema

    write_out(json.dumps(schema(), indent=2, ensure_ascii=False) + "\n")
