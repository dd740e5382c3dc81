"""Pruning: plain torch functions."""
