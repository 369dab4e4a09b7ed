"""Imported once by the server that cells are forked from, so that no cell pays for it: all of ours that cells use."""

from . import cell, registry

registry.load(kinds=("method", "task", "metric"))
__all__ = ["cell"]
