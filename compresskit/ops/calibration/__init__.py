"""Calibration: tracing a module, running it block by block on data, and the moments of what its layers take in."""
