"""Quantization: algorithms compute codes, a grid says what they mean, packed modules run them."""
