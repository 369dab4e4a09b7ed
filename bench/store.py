"""An output folder: finished cells, their arrays and logs, the table made of them, and `run.json`.

A cell is on disk, whole, before it counts as done: files are written under a temporary name, synchronised and
renamed. What the table holds is always made anew from the cells.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .artifacts import digest, file_digest, write_through
from .errors import UsageError
from .plan import Cell
from .types import SCHEMA, Row

LOG_TAIL_LINES = 20


class Store:
    """One run's folder.

    Args:
        folder: made if missing.
        suite: the suite the cells belong to; a folder of another suite is refused.
        settings: what all cells of one table share (`threads`, `device`); a folder made with others is refused.

    Raises:
        UsageError: the folder cannot be written, is in use, or belongs to another suite.
    """

    def __init__(self, folder: Path, *, suite: str, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        if not str(folder).isprintable():
            raise UsageError(f"--out {str(folder)!r} is no name that every file format can write; choose another.")
        with self._writing():
            for sub in (self.cells, self.arrays):
                sub.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
            self._lock = self._take_lock()
        self.run = read_run_file(folder) if (folder / "run.json").exists() else {}
        self._refuse_other(suite, settings)
        self.scratch = self.cells / ".unfinished"
        self._put_back()
        shutil.rmtree(self.scratch, ignore_errors=True)  # what a killed run left; the lock is ours
        with self._writing():
            self.scratch.mkdir()

    @property
    def cells(self) -> Path:
        """Folder of finished cells."""
        return self.folder / "cells"

    @property
    def arrays(self) -> Path:
        """Folder of per-image arrays, one file a cell."""
        return self.folder / "arrays"

    def close(self) -> None:
        """Leave the folder to others."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        self._lock.release()

    def _put_back(self) -> None:
        """Cells that a kill caught while they were being replaced."""
        for old in self.scratch.glob("*.old"):
            place = self.cells / old.name.removesuffix(".old")
            if not place.exists():
                with self._writing():
                    old.rename(place)

    # ------------------------------------------------------------ run.json

    def update_run(self, **facts: Any) -> None:
        """Set keys of `run.json`; a mapping is merged into the one there."""
        for key, value in facts.items():
            old = self.run.get(key)
            self.run[key] = {**old, **value} if isinstance(value, Mapping) and isinstance(old, Mapping) else value
        self.write("run.json", json.dumps(self.run, indent=1))

    def write(self, name: str, text: str) -> None:
        """Put a file of text into the folder, whole or not at all."""
        with self._writing():
            _write_whole(self.folder / name, text)

    def _refuse_other(self, suite: str, settings: Mapping[str, Any]) -> None:
        if not self.run:
            return
        if self.run.get("schema", SCHEMA) != SCHEMA:
            raise UsageError(
                f"{self.folder} has schema {self.run['schema']}, this version writes {SCHEMA}; choose another --out."
            )
        theirs = self.run["suite"]["name"]
        if theirs != suite:
            raise UsageError(f"{self.folder} belongs to suite '{theirs}', not '{suite}'; choose another --out.")
        for key, value in settings.items():
            if self.run["settings"][key] != value:
                raise UsageError(
                    f"{self.folder} was made with {key}={self.run['settings'][key]}, this run has {key}={value}; "
                    "results of the two don't belong in one table, so choose another --out."
                )

    def _take_lock(self) -> Any:
        import filelock

        lock = filelock.FileLock(self.folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise UsageError(
                f"another slugbench run is writing to {self.folder}; wait for it or choose another --out."
            ) from None
        return lock

    # ------------------------------------------------------------ cells

    def scratch_for(self, cell: Cell) -> Path:
        """An empty folder on the same disk, in which a cell may leave its files."""
        folder = self.scratch / cell.name
        with self._writing():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        return folder

    def finished(self, cell: Cell) -> dict[str, Any] | None:
        """The record of a cell that is there, whole, and made from the same inputs; else None."""
        record = read_cell(self.cells / cell.name, self.arrays)
        return record if record is not None and record["key"] == cell.key else None

    def commit(self, cell: Cell, record: Mapping[str, Any], scratch: Path) -> None:
        """Make a cell's record, its log and its arrays (if there are new ones) permanent, replacing an older one."""
        record = {**record, "arrays": self._commit_arrays(cell, scratch, record.get("arrays"))}
        with self._writing():
            text = json.dumps(record, sort_keys=True)
            (scratch / "cell.json").write_text(json.dumps({"digest": digest(text), "record": text}))
            (scratch / "result.json").unlink(missing_ok=True)
            place = self.cells / cell.name
            if not (scratch / "log.txt").exists() and (place / "log.txt").exists():  # judged anew, not run anew
                shutil.copy(place / "log.txt", scratch)
            for file in scratch.iterdir():
                write_through(file)
            _synchronise(scratch)
            if place.exists():
                old = self.scratch / f"{cell.name}.old"
                place.rename(old)
                scratch.rename(place)
                shutil.rmtree(old, ignore_errors=True)
            else:
                scratch.rename(place)
            _synchronise(self.cells)

    def _commit_arrays(self, cell: Cell, scratch: Path, known: str | None) -> str | None:
        made = scratch / "arrays.npz"
        if not made.exists():
            return known
        with self._writing():
            made.replace(self.arrays / f"{cell.name}.npz")
            _synchronise(self.arrays)
            return file_digest(self.arrays / f"{cell.name}.npz")

    # ------------------------------------------------------------ table

    def write_table(self) -> Any:
        """Make `table.parquet` and `table.csv` from the finished cells; returns the table."""
        frame = table(self.folder)
        with self._writing():
            for name, write in (("table.parquet", frame.to_parquet), ("table.csv", frame.to_csv)):
                unfinished = self.folder / f".{name}"
                write(unfinished, index=False)
                write_through(unfinished)
                unfinished.replace(self.folder / name)
        return frame

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UsageError(
                f"cannot write to {self.folder} ({error.strerror or error}); make room or choose another --out, "
                "and run the same command again: finished cells are kept."
            ) from error


# ---------------------------------------------------------------- reading


def read_run_file(folder: Path) -> dict[str, Any]:
    """The content of `run.json`.

    Raises:
        UsageError: the folder is no run, or the file is not what we wrote.
    """
    try:
        run = json.loads((folder / "run.json").read_text())
        run["suite"]["name"], run["settings"]["threads"], run["settings"]["device"]
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(
            f"{folder} is no run of slugbench: it has no run.json; give a folder that `slugbench run --out` made."
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{folder / 'run.json'} cannot be read ({type(error).__name__}: {error}); restore it or remove the folder."
        ) from error
    return run


def read_cell(place: Path, arrays: Path) -> dict[str, Any] | None:
    """The record of a finished cell; None if it is not there, truncated, or its arrays are."""
    try:
        stored = json.loads((place / "cell.json").read_text())
        if digest(stored["record"]) != stored["digest"]:
            return None
        record = json.loads(stored["record"])
        whole = record["arrays"] is None or file_digest(arrays / f"{place.name}.npz") == record["arrays"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record if whole else None


def records(folder: Path) -> dict[str, dict[str, Any]]:
    """All whole finished cells of a folder by name, sorted."""
    names = sorted(place.name for place in (folder / "cells").glob("[!.]*") if place.is_dir())
    found = ((name, read_cell(folder / "cells" / name, folder / "arrays")) for name in names)
    return {name: record for name, record in found if record is not None}


def table(folder: Path) -> Any:
    """The tidy table of a folder as a DataFrame, one row a cell and metric."""
    import pandas as pd

    suite = read_run_file(folder)["suite"]["name"]
    rows = [dataclasses.asdict(row) for name, record in records(folder).items() for row in rows_of(suite, name, record)]
    frame = pd.DataFrame(rows, columns=list(Row.columns()))
    return frame.astype({column: kind for column, kind in _KINDS.items() if column in frame})


_KINDS = {
    **dict.fromkeys(("value", "oracle_mean", "oracle_sd", "chance", "ci_low", "ci_high"), "float64"),
    **dict.fromkeys(("n_images", "n_units"), "Int64"),
    **dict.fromkeys(("failure", "error", "metric", "unit", "better", "note"), "string"),
}


def rows_of(suite: str, name: str, record: Mapping[str, Any]) -> Iterable[Row]:
    """The rows of one finished cell: one a value, or one without a metric."""
    facts = record["facts"]
    common = {
        "schema": SCHEMA,
        "suite": suite,
        "cell": name,
        "task": facts["task"],
        "task_params": _json(facts["task_params"]),
        "request": facts["request"],
        "targets": _json(facts["targets"]),
        "pool": facts["pool"],
        "base_seed": facts["base_seed"],
        "method": facts["method"],
        "method_params": _json(facts["method_params"]),
        "method_seed": facts["method_seed"],
        "status": record["status"],
        "error": record["error"],
        "device": facts["device"],
        "threads": facts["threads"],
        "concurrent": record["concurrent"],
        "started": record["started"],
        "provenance": record["provenance"],
    }
    values = [value for judged in record["values"].values() for value in judged["rows"]]
    return [Row(**common, **value) for value in values] or [Row(**common)]


def log_tail(log: Path) -> str:
    """The last lines of a cell's log."""
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:])
    except OSError:
        return ""


def _json(value: Mapping[str, Any] | Sequence[Any]) -> str:
    return json.dumps(value, sort_keys=True)


def _write_whole(path: Path, text: str) -> None:
    unfinished = path.with_name(f".{path.name}")
    unfinished.write_text(text)
    write_through(unfinished)
    unfinished.replace(path)
    _synchronise(path.parent)


def _synchronise(folder: Path) -> None:
    """Put a folder's entries on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
