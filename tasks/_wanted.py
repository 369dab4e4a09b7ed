"""What `slugbench doctor` says of data: found is what can be used, and what is there but cannot be says why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from slugbench.bench import UsageError, Wanted


def looked_at(path: Path, note: str, count: Callable[[], str]) -> Wanted:
    """A file or folder that a task needs.

    Args:
        path: where it should be.
        note: what it is, how large, and where to get it.
        count: says how much of it is there; raises `UsageError`, or `FileNotFoundError`, where it cannot be used.
    """
    try:
        return Wanted(path, True, f"{count()}; {note}")
    except FileNotFoundError:
        return Wanted(path, False, note)
    except UsageError as error:
        return Wanted(path, False, f"{note}. {error}")
