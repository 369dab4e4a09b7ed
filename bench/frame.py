"""Reads finished runs back into one table; pandas and pyarrow alone, never torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from .errors import UsageError
from .store import read_run_file, table
from .types import SCHEMA, STATUSES, Row

if TYPE_CHECKING:
    import pandas as pd

NUMBERS = ("value", "oracle_mean", "oracle_sd", "chance", "ci_low", "ci_high", "n_images", "n_units")
SAME_CELL = ["task", "task_params", "request", "base_seed", "method", "method_params", "method_seed", "device", "threads"]
"""Two cells that agree in these should be one; where they are not, code, weights or library versions differ."""

Run: TypeAlias = "tuple[pd.DataFrame, Mapping[str, Any]]"


def read_run(folder: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The table and the `run.json` of a finished or interrupted run, with the key `folder` besides.

    Raises:
        UsageError: the folder is no run, a file of it cannot be read, or it was written under another schema.
    """
    import pandas as pd

    folder = Path(folder)
    run = {**read_run_file(folder), "folder": str(folder)}
    _check_schema(run.get("schema", SCHEMA), str(folder / "run.json"))
    if (folder / "cells").is_dir():  # what the table is made from: right even where a kill left an older table
        return normalised(table(folder), where=str(folder)), run
    try:
        frame = pd.read_parquet(folder / "table.parquet")
    except (ValueError, OSError) as error:  # pyarrow's errors are ValueErrors
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(
            f"{folder} has no cells and its table.parquet cannot be read ({reason}); copy the folder anew."
        ) from error
    return normalised(frame, where=str(folder / "table.parquet")), run


def merge(runs: Sequence[Run]) -> tuple[pd.DataFrame, list[Mapping[str, Any]]]:
    """One table of several runs; a cell that more than one of them holds is kept once, a finished one before a failed one.

    Raises:
        UsageError: there is no run, or their schemas differ.
    """
    import pandas as pd

    if not runs:
        raise UsageError("there is no run to report on; give at least one folder that `slugbench run --out` wrote.")
    schemas = sorted({int(schema) for frame, _ in runs for schema in frame["schema"].unique()})
    if len(schemas) > 1:
        raise UsageError(f"the runs were written under schemas {schemas}, which cannot be merged; repeat the older run.")
    kept: list[pd.DataFrame] = []
    frames = [frame for frame, _ in runs]
    for finished in (True, False):
        for frame in frames:
            seen = {cell for part in kept for cell in part["cell"]}
            kept.append(frame[(frame["status"].eq("ok") == finished) & ~frame["cell"].isin(seen)])
    kept = [part for part in kept if len(part)] or [frames[0]]
    return pd.concat(kept, ignore_index=True), [run for _, run in runs]


def normalised(frame: pd.DataFrame, *, where: str = "the table") -> pd.DataFrame:
    """The same table with fixed column types: floats with NaN, everything else with None where it is null.

    Raises:
        UsageError: columns, schema or statuses are not those of `Row`.
    """
    import pandas as pd

    wanted, given = list(Row.columns()), list(frame.columns)
    if missing := [c for c in wanted if c not in given]:
        raise UsageError(
            f"{where} lacks the columns {', '.join(missing)}; it was not written by this version's `slugbench run`."
        )
    frame = frame[wanted].copy()
    for schema in frame["schema"].unique():
        _check_schema(schema, where)
    if unknown := sorted(set(frame["status"]) - set(STATUSES)):
        raise UsageError(f"{where} holds the statuses {', '.join(map(str, unknown))}; there are {', '.join(STATUSES)}.")
    for column in NUMBERS:
        frame[column] = pd.to_numeric(frame[column], errors="coerce").astype("float64")
    for column in [c for c in wanted if c not in NUMBERS]:
        values = frame[column].astype(object)
        frame[column] = values.where(values.notna(), None)
    return frame


def _check_schema(schema: Any, where: str) -> None:
    if schema != SCHEMA:
        raise UsageError(f"{where} has schema {schema}; this version reads schema {SCHEMA}: repeat the run with it.")
