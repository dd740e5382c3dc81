"""Timing that can be trusted: one process an engine, turns, statistics of processes. numpy only."""
