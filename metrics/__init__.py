"""Metrics: per-image answers in, values out; one file an idea."""
