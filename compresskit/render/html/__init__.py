"""A report as one HTML file: pictures with tables behind them, no network, nothing to install for who reads it."""

from compresskit.render.html.page import html
from compresskit.render.html.sweep import joined

__all__ = ["html", "joined"]
