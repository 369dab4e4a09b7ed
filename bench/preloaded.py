"""Imported once by the server that cells are forked from, so that no cell pays for it: all of ours that cells use."""

import numpy.lib.format  # noqa: F401 - for the arrays
import pydantic
import scipy.stats  # noqa: F401 - for the intervals
import torch

from . import cell, registry

pydantic.TypeAdapter(dict[str, float | None])  # pydantic imports its machinery when it is first used
registry.load(kinds=("method", "task", "metric"))
# A flag that forks inherit; setting it makes torch import its compiler's configuration, a second's work.
torch.use_deterministic_algorithms(True, warn_only=True)

__all__ = ["cell"]
