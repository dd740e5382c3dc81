"""Using only some pieces of a model for an input."""
