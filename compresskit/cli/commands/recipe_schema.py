"""``compresskit recipe schema``."""

from __future__ import annotations


def command() -> None:
    """Print the JSON schema of recipe files for use in editors.

    The schema is draft 2020-12 and covers the installed methods, including plugins. Editors with YAML schema support
    use it for completion and checks.
    """
    import json

    from compresskit.cli.console import write_out
    from compresskit.recipe.schema import schema

    write_out(json.dumps(schema(), indent=2, ensure_ascii=False) + "\n")
