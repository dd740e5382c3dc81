"""Pieces of a model that are used more than once."""
