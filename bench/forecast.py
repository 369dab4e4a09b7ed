"""How long a plan takes: from its own cells that are done, and before there are any from those of runs that ship.

`python -m slugbench.bench.forecast RUN > bench/suites/SUITE.seconds.csv` writes what ships of a suite's run.
"""

from __future__ import annotations

import csv
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from .plan import Cell, kind_of
from .provenance import processor
from .registry import REGISTRY, load
from .store import records
from .types import needs_model

SHIPPED = ".seconds.csv"
MIN_DONE = 10
"""Cells that must be done before they say how fast this machine is."""


class Sort(NamedTuple):
    """What cells that take about as long have in common; parameters are not part of it."""

    task: str
    kind: str
    """`single`, `joint` or `samples`."""
    method: str
    metrics: str
    """Those that need weights, which are the costly ones, joined by `+`."""


class Forecast(NamedTuple):
    """What a plan's cells that are not done take."""

    seconds: float
    """On one place of work."""
    unknown: int
    """Cells of tasks of which nothing is known, which are not in it."""
    measured: bool
    """Whether cells of this very run say how fast this machine is."""


def forecast(cells: Iterable[Cell], done: Mapping[str, Mapping[str, Any]]) -> Forecast:
    """The seconds that cells take which are not done.

    Args:
        cells: of a plan.
        done: records of finished cells by name.
    """
    cells, known = list(cells), shipped()
    own = means(done.values())
    taken = [(record["wall_seconds"], expected(sort_of_record(record), known)) for record in done.values()]
    pairs = [(seconds, guess) for seconds, guess in taken if guess is not None]
    measured = len(pairs) >= MIN_DONE
    factor = sum(seconds for seconds, _ in pairs) / sum(guess for _, guess in pairs) if measured else 1.0
    scaled = {sort: factor * seconds for sort, seconds in known.items()}
    guesses = [expected(sort_of_cell(cell), {**scaled, **own}) for cell in cells if cell.name not in done]
    return Forecast(sum(g for g in guesses if g is not None), guesses.count(None), measured)


def expected(sort: Sort, known: Mapping[Sort, float]) -> float | None:
    """Seconds of one cell: of its sort, else of its method plus what the metrics add to others, else of others like it.

    None where nothing of its task, or nothing with one of its costly metrics, was ever timed.
    """
    if sort in known:
        return known[sort]
    if not _parts(sort) <= {metric for other in known for metric in _parts(other)}:
        return None
    alike = {s: seconds for s, seconds in known.items() if (s.task, s.kind) == (sort.task, sort.kind)}
    plain = alike.get(sort._replace(metrics=""))
    extra = [
        alike[s] - alike[base] for s in alike if s.metrics == sort.metrics and (base := s._replace(metrics="")) in alike
    ]
    if plain is not None and extra:
        return plain + fmean(extra)
    for some in (
        [seconds for s, seconds in alike.items() if s.metrics == sort.metrics],
        list(alike.values()),
        [seconds for s, seconds in known.items() if s.task == sort.task],
    ):
        if some:
            return fmean(some)
    return None


def _parts(sort: Sort) -> set[str]:
    return set(sort.metrics.split("+")) - {""}


def means(done: Iterable[Mapping[str, Any]]) -> dict[Sort, float]:
    """Mean seconds of finished cells, by sort."""
    found: defaultdict[Sort, list[float]] = defaultdict(list)
    for record in done:
        found[sort_of_record(record)].append(record["wall_seconds"])
    return {sort: fmean(seconds) for sort, seconds in found.items()}


def sort_of_cell(cell: Cell) -> Sort:
    """Of a planned cell."""
    return Sort(cell.task, kind_of(cell.targets), cell.method, _costly(judge.name for judge in cell.judges))


def sort_of_record(record: Mapping[str, Any]) -> Sort:
    """Of a finished one."""
    facts = record["facts"]
    names = (spec.partition(":")[0] for spec in record["values"])
    return Sort(facts["task"], kind_of(facts["targets"]), facts["method"], _costly(names))


def _costly(metrics: Iterable[str]) -> str:
    known = REGISTRY.names("metric")
    return "+".join(sorted({m for m in metrics if m in known and needs_model(REGISTRY.get("metric", m).cls)}))


# ---------------------------------------------------------------- what ships


@cache
def shipped() -> dict[Sort, float]:
    """Mean seconds by sort, of the runs that ship; empty without any."""
    found: dict[Sort, float] = {}
    for file in (resources.files(__package__) / "suites").iterdir():
        if file.name.endswith(SHIPPED):
            lines = (line for line in file.read_text(encoding="utf-8").splitlines() if not line.startswith("#"))
            found |= {Sort(*(row[name] for name in Sort._fields)): float(row["seconds"]) for row in csv.DictReader(lines)}
    return found


def write(folder: Path, to: Any) -> None:
    """The table that ships, from a finished run."""
    load(())
    done = records(folder).values()
    counts: defaultdict[Sort, int] = defaultdict(int)
    for record in done:
        counts[sort_of_record(record)] += 1
    at_once = "two or more at a time" if any(record["concurrent"] for record in done) else "one at a time"
    to.write(f"# mean seconds a cell took, {at_once}, on {processor()}\n")
    table = csv.writer(to, lineterminator="\n")
    table.writerow([*Sort._fields, "seconds", "cells"])
    for sort, seconds in sorted(means(done).items()):
        table.writerow([*sort, f"{seconds:.2f}", counts[sort]])


def main(arguments: Sequence[str]) -> None:
    """Write the table of a run to standard output."""
    write(Path(arguments[0]), sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1:])
