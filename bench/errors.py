"""The harness's exceptions, each with the exit code or the row status it becomes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class SlugbenchError(Exception):
    """Base of every exception raised on purpose; its message is one sentence meant for the user."""

    exit_code = 1


class UsageError(SlugbenchError):
    """Bad usage, an unknown name, bad configuration or data: what came, what is allowed, what to do. Exit code 2."""

    exit_code = 2


class MissingData(UsageError):
    """What a task runs on is not there, or not as it has to be: data, weights or trained models. Exit code 2.

    A cell that meets it ends the run rather than become a row: no method is to blame.
    """


class DiskTrouble(UsageError):
    """A file of the harness cannot be written, as when the disk is full. Exit code 2, and no row, as of `MissingData`."""


class NotFetched(MissingData):
    """What a task runs on is not on this machine, and a run fetches it. Exit code 2."""

    def __init__(self, sentence: str, fetch: Callable[[], object]) -> None:
        super().__init__(sentence)
        self.fetch = fetch
        """Gets it over the network, and says so while it does; raises `UsageError` where it cannot."""


class GateError(SlugbenchError):
    """An acceptance gate failed: the models at hand cannot carry the comparison. Exit code 4."""

    exit_code = 4


class BudgetExceeded(SlugbenchError):
    """A method read or evaluated more than its `Budget` allows; the cell becomes a `failed` row."""


class InvalidModel(SlugbenchError):
    """A method returned no model, or one with NaN or infinite weights; the cell becomes an `invalid` row."""


class MissingDependency(SlugbenchError):
    """An optional package is not installed; the cell becomes a `skipped` row that names the extra to install."""


@contextmanager
def of_its_data() -> Iterator[None]:
    """What a task says inside is of its data; what it refuses is then their fault.

    Raises:
        MissingData: in the task's own sentence.
    """
    try:
        yield
    except (MissingData, DiskTrouble):
        raise
    except UsageError as error:
        raise MissingData(str(error)) from error
