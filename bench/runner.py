"""Runs cells, each in its own process, and yields what became of them. It neither prints nor writes tables."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import threading
import time
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from . import isolate
from .artifacts import cache_dir
from .cell import DISK_TROUBLE
from .errors import UsageError
from .isolate import Ended, Limits
from .plan import Cell, Judge
from .provenance import accelerators, now
from .store import log_tail
from .types import Gate

BACKENDS = {"threads": "threading", "loky": "loky"}
"""Our names for joblib's: either way each cell is its own process; this is who waits for it."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How cells are run; nothing here changes a result."""

    limits: Limits
    jobs: int = 1
    backend: str = "threads"
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


def run(jobs: Sequence[Job], settings: Settings) -> Generator[Finished, None, None]:
    """Run jobs, `settings.jobs` at a time, and yield each as it ends.

    Closing the generator, or an exception in it, kills the cells that run.

    Raises:
        UsageError: a cell could not write its results.
    """
    import joblib

    concurrent = settings.jobs > 1 and len(jobs) > 1
    parallel = joblib.Parallel(
        n_jobs=min(settings.jobs, max(len(jobs), 1)),
        backend=BACKENDS[settings.backend],
        return_as="generator_unordered",
        batch_size=1,
        pre_dispatch="n_jobs",
    )
    # joblib's advice to whoever stops early; here it is an interrupt or a full disk, and cells are killed on purpose
    warnings.filterwarnings("ignore", message=r"\d+ tasks which were still being processed", category=UserWarning)
    isolate.resume()
    try:
        with _cells_stopped_by_signals():
            for finished in parallel(joblib.delayed(run_one)(job, settings, concurrent) for job in jobs):
                if finished is not None:
                    yield finished
    finally:
        isolate.stop()


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


def run_one(job: Job, settings: Settings, concurrent: bool) -> Finished | None:
    """Run one job to its end in this process's place of work; None if it was stopped."""
    isolate.preload([*settings.preload, "slugbench.bench.preloaded"])
    log = job.scratch / ("log.txt" if job.known is None else "judged.txt")
    started, clock = now(), time.perf_counter()
    with _accelerator(job.cell.device) as environment:
        function = "measure" if job.known is None else "rejudge"
        payload = _payload(job, settings, concurrent)
        ended = isolate.run(
            f"slugbench.bench.cell:{function}", payload, log=log, limits=settings.limits, environment=environment
        )
    if ended.how == "stopped":
        return None
    result = _result(ended, job, settings.limits)
    if job.known is not None:
        return Finished(job.cell, {**job.known, "values": {**job.known["values"], **_values(job, result)}}, job.scratch)
    record = {
        "key": job.cell.key,
        "facts": job.cell.facts(),
        "status": result["status"],
        "error": result["error"],
        "log_tail": None if result["status"] in ("ok", "skipped") else log_tail(log),
        "cost": result["cost"],
        "validation": result["validation"],
        "values": _values(job, result) if result["status"] == "ok" else {},
        "started": started,
        "wall_seconds": time.perf_counter() - clock,
        "peak_pss_bytes": ended.peak_bytes,
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
    result = _read_result(job.scratch)
    if ended.well and result is not None:
        return {"status": "ok", "error": None, "cost": None, "validation": None, **result}
    if ended.how == "exited" and ended.code == DISK_TROUBLE:
        raise UsageError(
            f"a cell could not write its results ({_last_line(job.scratch)}); "
            "make room and run the same command again: finished cells are kept."
        )
    return {"cost": None, "validation": None, "values": {}, **_verdict(ended, limits, job.scratch)}


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
        return {"status": "crashed", "error": f"Crash: ended by {signal.Signals(ended.code).name}"}
    error = f"Exit: ended with code {ended.code} and no result; last line: {_last_line(scratch)}"
    return {"status": "crashed", "error": error}


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
                filelock.FileLock(cache_dir() / f"cuda-{number}.lock").acquire(timeout=0),
            ):
                yield {**environment, "CUDA_VISIBLE_DEVICES": number}
                return
        time.sleep(0.2)
