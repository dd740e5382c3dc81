"""``compresskit recipe`` alone: says which commands there are."""

from __future__ import annotations

from compresskit.cli.groups import group

command = group("recipe")
