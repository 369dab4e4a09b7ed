"""Runs cells, each in its own process, and yields what became of them. It neither prints nor writes tables."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import platform
import shutil
import signal
import tempfile
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, NoReturn

from . import cluster, isolate
from .artifacts import cache_dir
from .cell import GAVE_UP, SAYS
from .errors import UsageError
from .isolate import Ended, Limits
from .plan import Cell, Judge
from .provenance import accelerators, machine, now
from .store import log_tail
from .types import Gate

BACKENDS = {"threads": "threading", "loky": "loky"}
"""Our names for joblib's, besides `dask`: in any case each cell is its own process; this is who waits for it."""

LOG = "log.txt"
_NOTHING: Mapping[str, Any] = MappingProxyType({"cost": None, "validation": None, "values": {}})
"""The result of a cell that left none, besides its status."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How cells are run; nothing here changes a result."""

    limits: Limits
    jobs: int = 1
    backend: str = "threads"
    scheduler: str = ""
    """Address of dask's, for the backend `dask`."""
    plugins: tuple[str, ...] = ()
    preload: tuple[str, ...] = ("torch",)


class Job(NamedTuple):
    """A cell to run, or to judge anew from its arrays."""

    cell: Cell
    judges: tuple[Judge, ...]
    scratch: Path
    known: dict[str, Any] | None = None
    """The finished record whose missing values are wanted; None to run the method."""
    arrays: Path | None = None


class Finished(NamedTuple):
    """What became of a job: the record to keep, and the folder with the files to keep."""

    cell: Cell
    record: dict[str, Any]
    scratch: Path
    machine: dict[str, Any] | None = None
    """The provenance of the machine that it ran on, where that may be another than this."""


def run(jobs: Sequence[Job], settings: Settings) -> Generator[Finished, None, None]:
    """Run jobs, `settings.jobs` at a time, and yield each as it ends.

    Closing the generator, or an exception in it, kills the cells that run.

    Raises:
        UsageError: a cell met what no method is to blame for (files it cannot write, a fault of its task's data), or a
            cluster cannot run any.
    """
    import joblib

    concurrent = settings.jobs > 1 and len(jobs) > 1
    # joblib's advice to whoever stops early; here it is an interrupt or a full disk, and cells are killed on purpose
    warnings.filterwarnings("ignore", message=r"\d+ tasks (which were still|have been)", category=UserWarning)
    isolate.resume()
    with _backend(settings) as backend, _cells_stopped_by_signals():
        parallel = joblib.Parallel(
            n_jobs=min(settings.jobs, max(len(jobs), 1)),
            backend=backend,
            return_as="generator_unordered",
            batch_size=1,
            pre_dispatch=settings.jobs,
        )
        ended = parallel(joblib.delayed(call)(*arguments) for call, *arguments in _calls(jobs, settings, concurrent))
        try:
            yield from filter(None, ended)
        finally:
            isolate.stop()  # first: joblib waits for the calls that are under way
            ended.close()


@contextlib.contextmanager
def _backend(settings: Settings) -> Iterator[Any]:
    """joblib's backend, by name or, where it is to be taken down again, itself."""
    if settings.backend != "dask":
        yield BACKENDS[settings.backend]
        return
    with cluster.connected(settings.scheduler) as client:
        yield cluster.backend(client, settings.scheduler, _lost)


def _calls(jobs: Sequence[Job], settings: Settings, concurrent: bool) -> Iterator[tuple[Any, ...]]:
    """What the backend is to call, and with what."""
    if settings.backend != "dask":
        yield from ((run_one, job, settings, concurrent) for job in jobs)
        return
    sources = cluster.sources(settings.plugins)
    for job in jobs:
        there = job._replace(scratch=job.scratch.absolute(), arrays=job.arrays and job.arrays.absolute())
        yield run_there, there, settings, concurrent, sources


@contextlib.contextmanager
def _cells_stopped_by_signals() -> Iterator[None]:
    """Stop the cells before an interrupt is raised: joblib lets it through only when those running have ended."""

    def interrupt(*_: object) -> NoReturn:
        isolate.stop()
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # where Python delivers no signals
        yield
        return
    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_there(job: Job, settings: Settings, concurrent: bool, sources: cluster.Sources) -> Finished:
    """`run_one` on a worker of a cluster, which shares the output folder with the machine that sent the job.

    Each try has a folder of its own: the worker of an earlier one may be cut off rather than dead, and still writing. Nobody
    need tell a worker that a run was stopped or killed: its folders are gone, or will be when it is started again.

    Raises:
        UsageError: the folder is not there, or the code here is not that of the run.
    """
    cluster.check_versions(sources)
    scratch = job.scratch / uuid.uuid4().hex
    try:
        scratch.mkdir()
    except OSError as error:
        raise UsageError(
            f"a worker on {platform.node()} cannot write to {job.scratch.parents[2]} ({error.strerror}); "
            "--out has to be on a disk that all machines share, under the same path."
        ) from error
    with tempfile.TemporaryDirectory() as folder:
        plugins = cluster.unpacked(sources.plugins, Path(folder))
        # its main program, which multiprocessing would import anew in each child
        here = dataclasses.replace(settings, plugins=plugins, preload=(*settings.preload, "dask.__main__"))
        finished = run_one(job._replace(scratch=scratch), here, concurrent, wanted=partial(os.path.exists, scratch))
    if finished is None:  # of a run that was stopped nobody hears this
        raise UsageError(f"a worker on {platform.node()} sees {scratch} no more; run the same command again.")
    return finished._replace(machine=machine(job.cell.device))


def _lost(job: Job, allowed: int) -> Finished | None:
    """A job whose workers died more often than allowed, with the log of one of its tries; None if it was others' fault: dask
    blames all that waited at a worker that died."""
    tries = list(job.scratch.iterdir())
    if len(tries) <= allowed:
        return None
    scratch = job.scratch / uuid.uuid4().hex
    scratch.mkdir()
    for log in [log for folder in tries if (log := folder / LOG).exists()][:1]:
        shutil.copy(log, scratch)
    result = {**_NOTHING, **_crash(f"{len(tries)} workers died while they ran it")}
    return _finished(job._replace(scratch=scratch), result, started=now(), wall=0.0, peak=0, concurrent=True)


def run_one(job: Job, settings: Settings, concurrent: bool, *, wanted: Callable[[], bool] | None = None) -> Finished | None:
    """Run one job to its end in this process's place of work; None if it was stopped, as when it is not wanted any more."""
    isolate.preload([*settings.preload, "slugbench.bench.preloaded"])
    log = job.scratch / (LOG if job.known is None else "judged.txt")
    started, clock = now(), time.perf_counter()
    with _accelerator(job.cell.device) as environment:
        function = "measure" if job.known is None else "rejudge"
        payload = _payload(job, settings, concurrent)
        ended = isolate.run(
            f"slugbench.bench.cell:{function}",
            payload,
            log=log,
            limits=settings.limits,
            environment=environment,
            wanted=wanted,
        )
    if ended.how == "stopped":
        return None
    result, wall = _result(ended, job, settings.limits), time.perf_counter() - clock
    return _finished(job, result, started=started, wall=wall, peak=ended.peak_bytes, concurrent=concurrent)


def _finished(job: Job, result: Mapping[str, Any], *, started: str, wall: float, peak: int, concurrent: bool) -> Finished:
    """The record of a job with this result; wall-clock in seconds, peak in bytes."""
    if job.known is not None:
        return Finished(job.cell, {**job.known, "values": {**job.known["values"], **_values(job, result)}}, job.scratch)
    record = {
        "key": job.cell.key,
        "facts": job.cell.facts(),
        "status": result["status"],
        "error": result["error"],
        "log_tail": None if result["status"] in ("ok", "skipped") else log_tail(job.scratch / LOG),
        "cost": result["cost"],
        "validation": result["validation"],
        "values": _values(job, result) if result["status"] == "ok" else {},
        "started": started,
        "wall_seconds": wall,
        "peak_pss_bytes": peak,
        "concurrent": concurrent,
    }
    return Finished(job.cell, record, job.scratch)


def gates(
    task: str,
    params: Mapping[str, Any],
    requests: Sequence[str],
    base_seeds: Sequence[int],
    *,
    settings: Settings,
    folder: Path,
) -> list[Gate]:
    """Evaluate a task's acceptance gates in a process of their own.

    Raises:
        UsageError: the task cannot be built; the message holds the end of what it printed.
    """
    isolate.resume()
    isolate.preload([*settings.preload, "slugbench.bench.preloaded"])
    payload = {
        "task": task,
        "task_params": dict(params),
        "requests": list(requests),
        "base_seeds": list(base_seeds),
        "plugins": list(settings.plugins),
        "threads": 1,
        "device": "cpu",
        "scratch": str(folder),
    }
    ended = isolate.run("slugbench.bench.cell:gates", payload, log=folder / "log.txt", limits=settings.limits)
    _raise_what_it_gave_up_for(ended, folder)
    result = _read_result(folder) if ended.well else None
    if result is None:
        last = log_tail(folder / "log.txt").splitlines()[-1:] or [f"{ended.how} {ended.code}"]
        raise UsageError(f"task '{task}' cannot be prepared: {last[0]}")
    return [Gate(**gate) for gate in result["gates"]]


# ---------------------------------------------------------------- helpers


def _values(job: Job, result: Mapping[str, Any]) -> dict[str, Any]:
    """Rows by metric; where judging anew came to nothing a row that says so, and no key, so that it is tried again."""
    if result["status"] == "ok":
        return {judge.spec: {"key": judge.key, "rows": result["values"].get(judge.spec, [])} for judge in job.judges}
    note = f"could not be judged anew: {result['error']}"
    return {judge.spec: {"key": None, "rows": [{"metric": judge.name, "note": note}]} for judge in job.judges}


def _payload(job: Job, settings: Settings, concurrent: bool) -> dict[str, Any]:
    return {
        **job.cell.facts(),
        "trial_key": job.cell.trial_key,
        "metrics": [judge._asdict() for judge in job.judges],
        "plugins": list(settings.plugins),
        "concurrent": concurrent,
        "scratch": str(job.scratch),
        "cost": job.known and job.known["cost"],
        "arrays": job.arrays and str(job.arrays),
    }


def _result(ended: Ended, job: Job, limits: Limits) -> dict[str, Any]:
    """What the cell left, or what its end says of it."""
    _raise_what_it_gave_up_for(ended, job.scratch)
    result = _read_result(job.scratch)
    if ended.well and result is not None:
        return {"status": "ok", "error": None, "cost": None, "validation": None, **result}
    return {**_NOTHING, **_verdict(ended, limits, job.scratch)}


def _raise_what_it_gave_up_for(ended: Ended, scratch: Path) -> None:
    """Raise what a cell met that no method is to blame for, in its own sentence."""
    if ended.how != "exited" or ended.code != GAVE_UP:
        return
    last = _last_line(scratch)
    if not last.startswith(SAYS):
        raise UsageError("a cell cannot write its log; make room and run the same command again: finished cells are kept.")
    raise UsageError(last.removeprefix(SAYS))


def _verdict(ended: Ended, limits: Limits, scratch: Path) -> dict[str, str]:
    if ended.how == "timeout":
        return {"status": "timeout", "error": f"Timeout: killed after the limit of {limits.seconds:g} s"}
    if ended.how == "memory":
        used = f"{ended.peak_bytes / 1e9:.2f} GB"
        return {
            "status": "oom",
            "error": f"MemoryLimit: its processes held {used} (PSS); the limit is {limits.bytes / 1e9:g} GB",
        }
    if ended.how == "signal":
        return _crash(f"ended by {signal.Signals(ended.code).name}")
    error = f"Exit: ended with code {ended.code} and no result; last line: {_last_line(scratch)}"
    return {"status": "crashed", "error": error}


def _crash(how: str) -> dict[str, str]:
    return {"status": "crashed", "error": f"Crash: {how}"}


def _last_line(scratch: Path) -> str:
    lines = [line for log in scratch.glob("*.txt") for line in log_tail(log).splitlines()]
    return lines[-1] if lines else "no output"


def _read_result(scratch: Path) -> dict[str, Any] | None:
    try:
        return json.loads((scratch / "result.json").read_text())
    except (OSError, ValueError):
        return None


@contextlib.contextmanager
def _accelerator(device: str) -> Iterator[dict[str, str]]:
    """The environment of a cell; on `cuda` one free device is taken for as long as the cell runs."""
    environment = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}  # without it cuBLAS is not deterministic
    if device != "cuda":
        yield environment
        return
    import filelock

    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(max(len(accelerators()), 1))))
    while True:
        for number in visible.split(","):
            with (
                contextlib.suppress(filelock.Timeout),
                filelock.FileLock(cache_dir() / f"cuda-{platform.node()}-{number}.lock").acquire(timeout=0),
            ):
                yield {**environment, "CUDA_VISIBLE_DEVICES": number}
                return
        time.sleep(0.2)
