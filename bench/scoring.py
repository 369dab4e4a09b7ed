"""Judges images that were made elsewhere, and leaves what a cell of a run leaves. It prints nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .artifacts import digest
from .cell import judge_scored
from .errors import UsageError
from .plan import Cell, Judge, resolved, select
from .provenance import RESULT_VERSION, keyed_versions, now, source_digest
from .registry import REGISTRY, Spec
from .store import Store
from .types import Gate, Listed, Scored, Scoring


class Folders(NamedTuple):
    """Where the images are that `Scoring.score` takes."""

    images: Path
    classifiers: Path | None = None
    original: Path | None = None
    oracles: tuple[Path, ...] = ()


class Submission(NamedTuple):
    """A task that scores, with its full parameters, and the request that images are said to answer."""

    name: str
    params: dict[str, Any]
    task: Scoring
    listed: Listed


def submission(spec: Spec, request_id: str) -> Submission:
    """The task and the request of these names.

    Raises:
        UsageError: there is no such task or request, or the task scores nothing.
    """
    _, params, task = resolved("task", spec)
    scores = isinstance(task, Scoring)
    if not scores:
        able = [name for name in REGISTRY.names("task") if hasattr(REGISTRY.get("task", name).cls, "score")]
        raise UsageError(f"task '{spec.name}' does not score images made elsewhere; {', '.join(able) or 'no task'} does.")
    (listed,) = select(spec.name, task, {spec.name: [request_id]})
    return Submission(spec.name, params, task, listed)


class Done(NamedTuple):
    """Images that were scored."""

    cell: Cell
    record: dict[str, Any] | None
    """To be committed with the cell's scratch folder; None where the store has it."""
    gates: tuple[Gate, ...]


def score(
    asked: Submission,
    folders: Folders,
    store: Store,
    *,
    method: str,
    judges: Sequence[Judge],
    threads: int,
    device: str,
    progress: Callable[[int, int], None],
) -> Done:
    """Classify and judge what is not in the store yet.

    Args:
        asked: by `submission`.
        folders: of images and classifiers.
        store: keeps what classifiers say of each image.
        method: what made the images, for the table.
        judges: the metrics.
        threads: of torch.
        device: `cpu` or `cuda`.
        progress: called with the number of images done and of all.

    Raises:
        UsageError: images or classifiers are not as the task needs them.
    """
    import torch

    if folders.oracles and folders.original is None:
        raise UsageError("an oracle's images need the original's beside them; give --original too.")
    torch.set_num_threads(threads)
    started, clock = now(), time.perf_counter()
    scored = asked.task.score(
        asked.listed.id, folders.images, cache=store.folder / "predictions", classifiers=folders.classifiers,
        original=folders.original, oracles=folders.oracles, device=device, progress=progress,
    )  # fmt: skip
    cell = _cell(asked, scored, method, tuple(judges), threads, device)
    if store.finished(cell) is not None and all(_is_fresh(store, cell, judge) for judge in judges):
        return Done(cell, None, scored.gates)
    values = judge_scored(scored, judges, cell.trial_key, store.scratch_for(cell))
    record = {
        **{"key": cell.key, "facts": cell.facts(), "status": "ok", "error": None, "log_tail": None, "cost": None},
        "validation": None,
        "values": {judge.spec: {"key": judge.key, "rows": values[judge.spec]} for judge in judges},
        "started": started,
        "wall_seconds": time.perf_counter() - clock,
        "peak_pss_bytes": None,
        "concurrent": False,
    }
    return Done(cell, record, scored.gates)


def _is_fresh(store: Store, cell: Cell, judge: Judge) -> bool:
    values = (store.finished(cell) or {"values": {}})["values"]
    return values.get(judge.spec, {}).get("key") == judge.key


def _cell(asked: Submission, scored: Scored, method: str, judges: tuple[Judge, ...], threads: int, device: str) -> Cell:
    """The cell that stands for these images, of base model 0: the one that is released."""
    entry = REGISTRY.get("task", asked.name)
    trial_key = digest(
        {
            **{"task": asked.name, "task_params": asked.params, "task_source": source_digest(entry.cls, entry.source)},
            **{"request": asked.listed.id, "scored": scored.content, "threads": threads, "device": device},
            **{"version": RESULT_VERSION, "libraries": keyed_versions()},
        }
    )
    listed = asked.listed
    return Cell(
        asked.name, asked.params, listed.id, tuple(listed.targets), listed.pool, 0, method, {}, 0, threads, device,
        digest({"trial": trial_key, "method": method}), trial_key, judges,
    )  # fmt: skip
