"""Runs a function in its own process, within limits, and says how that process ended.

The process is forked from a server that has imported torch once. It leads its own session, so that a kill takes its
children along; it dies with the process that started it; and its output goes to a file. Only plain data goes in
(a module-level function's name and a JSON-able payload) and nothing comes out but files.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import importlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any, Literal, NamedTuple

import psutil

POLL_SECONDS = 0.2
"""How often time and memory are looked at: a cell may overshoot its limits by what happens in between."""
GROWTH = 1.02
"""PSS is read where the resident set has grown by this since: reading it takes 23 ms of a core, the resident set 0.01."""

_START = threading.Lock()  # multiprocessing's own bookkeeping of children is not safe across threads
_STOP = threading.Event()


class Limits(NamedTuple):
    """What a process may use before it is killed, children included."""

    seconds: float
    bytes: int
    """Proportional set size (PSS) of the process tree."""


class Ended(NamedTuple):
    """How a process ended."""

    how: Literal["exited", "timeout", "memory", "signal", "stopped"]
    code: int
    """Exit code, or the number of the signal that ended it."""
    peak_bytes: int
    """Largest PSS seen."""

    @property
    def well(self) -> bool:
        """Whether the function returned."""
        return self.how == "exited" and self.code == 0


def preload(modules: Iterable[str]) -> None:
    """Name what the server imports before it forks, besides this module; has effect until the first process is started."""
    _context().set_forkserver_preload([__name__, *modules])


def stop() -> None:
    """Kill what runs now and start nothing more in this process, until `resume`."""
    _STOP.set()


atexit.register(stop)  # before multiprocessing's own, which waits for children to end by themselves


def resume() -> None:
    """Undo `stop`."""
    _STOP.clear()


def run(
    function: str,
    payload: Mapping[str, Any],
    *,
    log: Path,
    limits: Limits,
    environment: Mapping[str, str] | None = None,
    wanted: Callable[[], bool] | None = None,
) -> Ended:
    """Call `function(payload)` in a process of its own and wait for its end.

    Args:
        function: `package.module:name` of a module-level function.
        payload: plain data.
        log: the file its standard output and error go to.
        limits: wall-clock and memory.
        environment: variables set in the process before anything else runs.
        wanted: asked while it runs; it is stopped when nobody wants it any more.

    Returns:
        How it ended; `exited` with code 0 is the good end, 1 an exception that left its traceback in the log.
    """
    reader, alive = multiprocessing.Pipe(duplex=False)  # the child sees this process's death as the pipe's end
    with contextlib.ExitStack() as stack:
        stack.callback(alive.close)
        process = _context().Process(
            target=_enter, args=(function, dict(payload), str(log), dict(environment or {}), reader)
        )
        with _START:
            process.start()
        reader.close()
        return _watch(process, limits, wanted or (lambda: True))


# ---------------------------------------------------------------- in the parent


def _context() -> ForkServerContext:
    if multiprocessing.get_start_method(allow_none=True) == "loky":  # in joblib's workers, for their own children
        multiprocessing.set_start_method("forkserver", force=True)  # or ours would be told to look for a method 'loky'
    process = multiprocessing.current_process()
    if process.daemon:  # as dask's nanny starts its workers, to which multiprocessing then refuses children: they would
        process.daemon = False  # outlive a worker that is killed; ours see its end and die with it
    return multiprocessing.get_context("forkserver")


def _watch(process: ForkServerProcess, limits: Limits, wanted: Callable[[], bool]) -> Ended:
    assert process.pid is not None  # it has been started
    started, peak, seen = time.monotonic(), 0, set[psutil.Process]()
    resident = 0.0
    while True:
        if wait([process.sentinel], timeout=POLL_SECONDS):
            return _end(process, "exited", peak, seen)
        tree = _tree(process.pid)
        seen |= set(tree[1:])  # a process that is killed leaves them without a parent to find them by
        now = _resident_bytes(tree)
        if now > min(limits.bytes, GROWTH * resident):  # PSS is never above the resident set
            resident, peak = max(resident, now), max(peak, _bytes(tree))
        if _STOP.is_set() or not wanted():
            return _end(process, "stopped", peak, seen)
        if peak > limits.bytes:
            return _end(process, "memory", peak, seen)
        if time.monotonic() - started > limits.seconds:
            return _end(process, "timeout", peak, seen)


def _end(
    process: ForkServerProcess,
    how: Literal["exited", "timeout", "memory", "stopped"],
    peak: int,
    descendants: Iterable[psutil.Process],
) -> Ended:
    assert process.pid is not None
    kill_tree(process.pid)  # also what a finished one left behind in its session
    for descendant in descendants:
        with contextlib.suppress(psutil.Error):
            descendant.kill()  # psutil makes sure that the number is not another process's by now
    with _START:
        process.join()
        code = process.exitcode or 0
        process.close()
    if how == "exited" and code < 0:
        return Ended("signal", -code, peak)
    return Ended(how, code, peak)


def tree_bytes(pid: int) -> int:
    """Proportional set size of a process and its descendants: shared pages are counted once, by parts."""
    return _bytes(_tree(pid))


def _bytes(processes: Iterable[psutil.Process]) -> int:
    total = 0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            memory = process.memory_full_info()
            total += getattr(memory, "pss", memory.rss)
    return total


def _resident_bytes(processes: Iterable[psutil.Process]) -> int:
    """Sum of resident sets, in which what processes share counts once for each."""
    total = 0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            total += process.memory_info().rss
    return total


def kill_tree(pid: int) -> None:
    """SIGKILL a process, its session's group, and the descendants that left the group."""
    for process in _tree(pid)[1:]:  # before the group, to which the caller itself may belong
        with contextlib.suppress(psutil.Error):
            process.kill()
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(OSError):
            kill(pid, signal.SIGKILL)


def _tree(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []


# ---------------------------------------------------------------- in the child


def _enter(function: str, payload: dict[str, Any], log: str, environment: dict[str, str], reader: Connection) -> None:
    os.setsid()
    _adopt_orphans()
    threading.Thread(target=_die_with_parent, args=(reader,), daemon=True).start()
    os.environ.update(environment)
    with open(log, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    # what the server's own streams were does not matter any more: text goes where the descriptors go
    sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1, closefd=False, errors="backslashreplace") for n in (1, 2))
    module, _, name = function.partition(":")
    try:
        getattr(importlib.import_module(module), name)(payload)
    finally:
        for child in _tree(os.getpid())[1:]:
            with contextlib.suppress(psutil.Error):
                child.kill()


def _adopt_orphans() -> None:
    """Stay the parent of all that descends from here, sessions and double forks notwithstanding (Linux alone)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER in linux/prctl.h


def _die_with_parent(reader: Connection) -> None:
    with contextlib.suppress(EOFError, OSError):
        reader.recv_bytes()
    kill_tree(os.getpid())
