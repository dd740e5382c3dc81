"""Stages: options only, one small file a method; what they compute lives in ``ops/`` and ``exporter/``."""
