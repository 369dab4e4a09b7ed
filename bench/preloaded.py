"""Imported once by the server that cells are forked from, so that no cell pays for it: all of ours that cells use."""

import atexit
import gc
import os
import sys

import numpy.lib.format  # noqa: F401 - for the arrays
import pydantic
import scipy.stats  # noqa: F401 - for the intervals
import torch

from . import cell, registry

pydantic.TypeAdapter(dict[str, float | None])  # pydantic imports its machinery when it is first used
registry.load(kinds=("method", "task", "metric"))
# A flag that forks inherit; setting it makes torch import its compiler's configuration, a second's work.
torch.use_deterministic_algorithms(True, warn_only=True)
gc.freeze()  # or the first collection in every fork touches, and so copies, all that is shared
if any("multiprocessing.forkserver" in argument for argument in sys.orig_argv):
    atexit.register(os._exit, 0)  # torch's compiler prints pages about leaks when a process that imported it winds down

__all__ = ["cell"]
