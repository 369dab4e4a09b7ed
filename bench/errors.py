"""The harness's exceptions, each with the exit code or the row status it becomes."""

from __future__ import annotations

from collections.abc import Callable


class SlugbenchError(Exception):
    """Base of every exception raised on purpose; its message is one sentence meant for the user."""

    exit_code = 1


class UsageError(SlugbenchError):
    """Bad usage, an unknown name, bad configuration or data: what came, what is allowed, what to do. Exit code 2."""

    exit_code = 2


class MissingData(UsageError):
    """What a task runs on is not there, or not as it has to be: data, weights or trained models. Exit code 2."""


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
