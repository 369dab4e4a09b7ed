"""Takes over what other code measured, and leaves what a cell of a run leaves. It prints nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .artifacts import digest
from .cell import rows_without_oracle
from .errors import UsageError
from .plan import Cell, resolved, select
from .provenance import RESULT_VERSION, now, provenance
from .registry import REGISTRY, parse_spec
from .types import Imported, Importer

MARK = "imported"
"""The one parameter of a method whose results were imported: from what. Reports keep such lines apart."""


def read(source: str, folder: Path, weights: Path | None) -> Imported:
    """What the importer of that name finds in a folder; `slug-results` is `slug_results`.

    Raises:
        UsageError: there is no such importer or folder, or it finds nothing that it can read.
    """
    importer: Importer = REGISTRY.create("importer", source.replace("-", "_"))
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}; give the one that holds the results.")
    return importer(folder, weights)


def cells(found: Imported, source: str, task_spec: str, *, threads: int, device: str) -> list[tuple[Cell, dict[str, Any]]]:
    """A cell for each result and the record to be committed with it.

    Args:
        found: by `read`.
        source: from what, for the table.
        task_spec: the task that the results are of.
        threads: of a run beside which they are to stand.
        device: that they come from.

    Raises:
        UsageError: the task lacks a request, or has other parameters than the files speak of.
    """
    spec, params, task = resolved("task", parse_spec(task_spec))
    for key, value in found.params.items():
        if str(params.get(key)) != value:
            raise UsageError(
                f"these results are of {key}={value}, and {task_spec} has {key}={params.get(key)}; "
                f"give --task {spec.name}:...,{key}={value}."
            )
    wanted = {listed.id: listed for listed in select(spec.name, task, {spec.name: [r.request for r in found.results]})}
    made = []
    for result in found.results:
        listed, method_params = wanted[result.request], {MARK: source}
        facts = {"task": spec.name, "task_params": params, "request": listed.id, "content": found.content}
        trial_key = digest({**facts, "threads": threads, "device": device, "version": RESULT_VERSION})
        key = digest({"trial": trial_key, "method": result.method})
        cell = Cell(
            spec.name, params, listed.id, tuple(listed.targets), listed.pool, 0, result.method, method_params, 0,
            threads, device, key, trial_key, (),
        )  # fmt: skip
        record = {
            **{"key": key, "facts": cell.facts(), "status": "ok", "error": None, "log_tail": None, "cost": None},
            "validation": None,
            "values": {MARK: {"key": key, "rows": rows_without_oracle(result.values)}},
            "started": now(),
            "wall_seconds": 0.0,
            "peak_pss_bytes": None,
            "concurrent": False,
        }
        made.append((cell, record))
    return made


def origin(found: Imported, source: str, device: str) -> dict[str, Any]:
    """Provenance of imported rows: from what files, by what command. Of the hardware nothing is known."""
    here = provenance(device)
    return {"command": here["command"], "versions": {"slugbench": here["versions"]["slugbench"]}} | {
        MARK: {"from": source, "files": found.content}
    }
