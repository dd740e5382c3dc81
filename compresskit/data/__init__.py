"""Where samples come from: arrays, image folders, text and the user's own code, behind one protocol."""

from compresskit.data.opening import input_specs, open_source
from compresskit.data.source import Batch, Source

__all__ = ["Batch", "Source", "input_specs", "open_source"]
