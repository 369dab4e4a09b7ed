"""What the trainings of shipped and cached models have in common: one thread, and files that are whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from slugbench.bench.artifacts import write_through


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums in another order round otherwise: with a fixed number of threads training is reproducible."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def write_whole(write: Callable[[Path], None], path: Path) -> None:
    """Have a file whole or not at all: what a stopped rebuild left half-written would pass for finished."""
    unfinished = path.with_name(f"{path.name}.part")
    write(unfinished)
    write_through(unfinished)
    unfinished.replace(path)
