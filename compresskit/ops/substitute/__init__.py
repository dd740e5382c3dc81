"""Cheaper modules in the place of others, fitted on what the model's layers really get."""
