"""Recipes: YAML files that say what is done to a model, read and checked whole before anything runs. No torch."""
