"""What cells on other machines take besides: dask's scheduler, the same code there, and plug-ins that travel as text.

It knows nothing of cells; `runner` does. Names and JSON go to a worker, a result's record comes back, and all else lies in
folders that the machines share.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import platform
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .artifacts import file_digest
from .errors import UsageError
from .provenance import code_digest, keyed_versions, plugin_files
from .registry import is_file

if TYPE_CHECKING:
    from distributed import Client

PATIENCE_SECONDS = 10.0
"""How long a scheduler may take to answer, and its first worker to come."""


class Plugin(NamedTuple):
    """A plug-in as plain data."""

    name: str
    """A module's, or a file's."""
    digest: str = ""
    files: tuple[tuple[str, str], ...] = ()
    """Of a file itself and those that it imports from beside it: path and text."""


class Sources(NamedTuple):
    """What the results of a run depend on besides its cells; a tuple, since joblib would hand larger objects to one worker
    for all to fetch from, and they would be gone with it."""

    versions: tuple[tuple[str, str | None], ...]
    plugins: tuple[Plugin, ...]


# ---------------------------------------------------------------- where the run was started


def places(address: str) -> int:
    """How many cells the workers of a scheduler run at a time.

    Raises:
        UsageError: the package is missing, no scheduler answers there, or it has no worker.
    """
    try:
        from distributed import Security, rpc
    except ImportError as error:
        raise UsageError("--backend dask needs the package distributed: pip install 'slugbench[dask]'.") from error
    answered = False

    async def threads() -> int:  # not by a client: one that finds nobody takes its time, and more to be closed
        nonlocal answered
        connection = Security().get_connection_args("client")
        async with asyncio.timeout(PATIENCE_SECONDS), rpc(address, connection_args=connection) as scheduler:
            while not (found := sum((await scheduler.ncores()).values())):
                answered = True
                await asyncio.sleep(0.2)
        return found

    try:
        return asyncio.run(threads())
    except Exception as error:  # of many types, as many as there are wrong addresses
        if answered:
            what, remedy = "has no worker", f"start some with `dask worker {address} --nthreads 1`"
        else:
            what, remedy = "does not answer", "start one with `dask scheduler`, which prints its address"
        raise UsageError(f"the scheduler at {address} {what} ({type(error).__name__}); {remedy}.") from error


@contextlib.contextmanager
def connected(address: str) -> Iterator[Client]:
    """A client of the scheduler at an address such as `tcp://host:8786`, where `places` has found one."""
    import distributed

    for handler in logging.getLogger("distributed").handlers:  # one, of all its loggers, which have levels of their own
        handler.setLevel(logging.CRITICAL)  # what they say of lost connections in pages, we say in a sentence
    try:
        client = distributed.Client(address, timeout=PATIENCE_SECONDS, set_as_default=False)
    except OSError as error:
        raise _gone(address) from error
    try:
        yield client
    finally:
        client.close(PATIENCE_SECONDS)


def _gone(address: str) -> UsageError:
    return UsageError(f"the scheduler at {address} is gone; finished cells are kept, start it and run the same again.")


def backend(client: Client, address: str, lost: Callable[[Any, int], Any]) -> Any:
    """joblib's dask backend for calls whose first argument is a job.

    Args:
        client: see `connected`.
        address: of its scheduler.
        lost: the result of a job whose workers died more often than the scheduler allows, given how often that is; None
            to run it again.
    """
    from distributed import CancelledError, KilledWorker
    from joblib._dask import DaskDistributedBackend  # where `backend="dask"` has it from

    class Backend(DaskDistributedBackend):
        """Which never waits for a call that dask has given up, and runs none here where there is but one worker."""

        def effective_n_jobs(self, n_jobs: int) -> int:
            return 2  # at 1 joblib would run them in this process; how many are under way, `pre_dispatch` says

        def submit(self, func: Any, callback: Callable[[Any], None]) -> Any:
            def returned(result: Any) -> None:
                callback(_gone(address) if isinstance(result, CancelledError) else result)

            def given_up(future: Any) -> None:
                error = future.exception()
                if isinstance(error, KilledWorker):
                    self.without_worker(func, callback, error.allowed_failures)
                elif error is not None:
                    reason = " ".join(f"{type(error.__cause__ or error).__name__}: {error.__cause__ or error}".split())
                    sentence = (
                        f"the scheduler or a worker cannot run cells ({reason}); install the same slugbench there as here."
                    )
                    callback(UsageError(sentence))

            future = super().submit(func, returned)
            future.add_done_callback(given_up)  # of an error that is dask's own, joblib would never hear
            return future

        def without_worker(self, func: Any, callback: Callable[[Any], None], allowed: int) -> None:
            try:
                result = lost(func.items[0][1][0], allowed)
            except OSError as error:  # raised from here it would be logged, and waited for ever after
                callback(error)
                return
            if result is None:
                self.submit(func, callback)
            else:
                callback([result])

    return Backend(client=client)


def sources(plugins: Iterable[str]) -> Sources:
    """What is to be the same on all machines, and what travels there."""
    return Sources(_versions(), tuple(_packed(plugin) for plugin in plugins))


def _versions() -> tuple[tuple[str, str | None], ...]:
    return (*keyed_versions().items(), ("slugbench's code", code_digest()[:12]))


def _packed(plugin: str) -> Plugin:
    if not is_file(plugin):
        return Plugin(plugin)
    path = Path(plugin).resolve()
    files = tuple((str(file.relative_to(path.parent)), file.read_text()) for file in plugin_files(path))
    return Plugin(path.name, file_digest(path), files)


# ---------------------------------------------------------------- on a worker


def check_versions(wanted: Sources) -> None:
    """Refuse to work for a run whose results ours could differ from.

    Raises:
        UsageError: another version of something is here.
    """
    for (name, theirs), (_, ours) in zip(wanted.versions, _versions(), strict=True):
        if theirs != ours:
            raise UsageError(
                f"a worker on {platform.node()} has {name} {ours}, this run {theirs}; "
                "install the same there and start the worker anew; finished cells are kept."
            )


def unpacked(plugins: Iterable[Plugin], folder: Path) -> tuple[str, ...]:
    """Put plug-ins into a folder; returns what `registry.load` knows them by."""
    return tuple(_unpack(plugin, folder / plugin.digest) if plugin.files else plugin.name for plugin in plugins)


def _unpack(plugin: Plugin, folder: Path) -> str:
    for name, text in plugin.files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return str(folder / plugin.name)
