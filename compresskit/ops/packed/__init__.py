"""Packed weights: what codes mean, how they lie in memory, and the layers that hold them."""
