"""Imported by a warm interpreter: exports a small net, so that what torch looks up for that is known to its forks.

They keep their translations with those of the tests.
"""

from __future__ import annotations

import tempfile
import threading
from pathlib import Path

import torch
import translations
from tqdm import tqdm

from compresskit.exporter.checked import export_checked
from compresskit.model import InputSpec

tqdm.monitor_interval = 0  # a thread of its own watches the bars that torch never shows
_threads = torch.get_num_threads()
torch.set_num_threads(1)  # OpenMP's threads would not be there after a fork
with tempfile.TemporaryDirectory() as _folder:
    _net = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4)).eval()
    export_checked(_net, (InputSpec("x", "float32", ("batch", 8)),), Path(_folder) / "net.onnx")
torch.set_num_threads(_threads)
translations.keep()
assert threading.active_count() == 1, threading.enumerate()
