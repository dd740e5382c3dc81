"""Losses against a teacher; plain functions of tensors, and the few modules that are trained beside a student."""
