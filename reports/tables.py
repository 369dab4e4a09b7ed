"""Boards: what a leaderboard says, worked out once; the pages, texts and figures only lay it out.

A board holds one kind of request (joint, single or random samples, one pool) of one task on one device. Controls are
never ordered, a method with an unfinished or missing cell is never ordered, and no mean is taken over fewer cells
without a mark.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from slugbench.bench.frame import SAME_CELL, normalised

from .glossary import ARROW, FORGET, PRIVACY, RETAIN, UTILITY, about, number, of_quality, position, unit_of
from .statistics import MIN_REQUESTS, Estimate, by_request, estimate, non_dominated, rank_ranges, span, unlike_oracles
from .tuning import Choice, choices
from .validity import Audit, audits, classified, surprises, validity

CONTROLS = ("original", "oracle", "mask", "noise", "random_layer", "shuffled")
"""Taken as controls where `run.json` does not name them."""
HEADS = ("mia_sample", "ks_d")
"""Of the metrics on membership and on the distance to the oracles those that stand on the board itself."""
BOARD = ["task", "task_params", "device", "threads", "pool", "joint", "samples"]
READ = ["label", "control", "cell", "status", "error", "failure", "request", "base_seed", "method_seed", "concurrent"]
READ += ["metric", "value", "better", "chance", "oracle_mean", "oracle_sd", "ci_low", "ci_high", "note"]
"""The columns that a board's numbers come from: selecting rows takes its time column by column."""
INCOMPLETE = "†"
UNLIKE = " ≠R"
"""After a cell's value that no further oracle would be expected to have."""
FOUND_BY_ATTACKS = ("masked", "recoverable")
"""Failure classes that only cells can be given which were attacked."""
TUNED = " (tuned"
"""In a label what follows the method's name where its parameters are tuned."""
IMPORTED = " (imported)"
"""After the name of a method that other code ran: not the method that is measured here, whatever its name."""


class Column(NamedTuple):
    """A metric on a board."""

    name: str
    better: str
    unit: str
    chance: float | None
    oracle: float | None
    """Mean over requests of the oracles' mean, and of their standard deviation."""
    oracle_sd: float | None

    @property
    def is_cost(self) -> bool:
        """Whether it says what was spent rather than what was reached."""
        return about(self.name).kind == "cost"

    @property
    def heading(self) -> str:
        """Name with unit and direction, such as `fa@1 →R`."""
        unit = f" ({unit})" if (unit := unit_of(self.name, self.unit)) else ""
        return f"{self.name}{unit} {ARROW.get(self.better, '')}".rstrip()


@dataclass(frozen=True)
class Entry:
    """One number of one method."""

    estimate: Estimate
    gap: float | None = None
    """Mean over cells of value minus oracle mean, sign kept."""
    marks: tuple[str, ...] = ()
    """Marks of the board's notes: a dagger for an incomplete mean, letters for null values."""
    best: bool = False


@dataclass(frozen=True)
class Line:
    """One method on a board."""

    method: str
    control: bool
    n_ok: int
    n_cells: int
    """Cells asked for: finished, unfinished, and those of this board's requests and base seeds that were not run."""
    entries: dict[str, Entry]
    distance: Estimate | None = None
    """Mean distance to the oracle over the board's axes: the order of the board."""
    ranks: tuple[int, int] | None = None
    failures: Mapping[str, int] = field(default_factory=dict)
    """Failure classes of finished cells, and how often."""
    n_attacked: int = 0
    """Finished cells that were attacked: of the others nobody knows whether they are masked or recoverable."""
    valid: bool | None = None
    """Whether it passes the gate on what is kept; null where no oracle says what should be."""
    why: str = ""
    """In a few words why it does not pass."""

    @property
    def status(self) -> str:
        """`valid`, or its failure classes and whether it misses the gate: `destroyed 2/3, not valid`."""
        classes = [f if n == self.n_ok else f"{f} {self.share(f)}" for f, n in self.failures.items()]
        return ", ".join(classes + ["not valid"] * (self.valid is False)) or ("valid" if self.valid else "—")

    def share(self, failure: str) -> str:
        """How many of the cells that could show it have a failure: `destroyed 2/3`, `recoverable 1/1 attacked`."""
        if failure in FOUND_BY_ATTACKS and self.failures[failure] <= self.n_attacked:
            return f"{self.failures[failure]}/{self.n_attacked} attacked"
        return f"{self.failures[failure]}/{self.n_ok}"

    @property
    def complete(self) -> bool:
        """Whether every cell that was asked for finished."""
        return self.n_ok == self.n_cells

    @property
    def ok(self) -> str:
        """`2/2`, or `1/2†`."""
        return f"{self.n_ok}/{self.n_cells}" + ("" if self.complete else INCOMPLETE)


@dataclass(frozen=True, eq=False)
class Board:
    """A leaderboard, ready to be laid out."""

    task: str
    params: str
    """Task parameters as `key=value, ...`, where the table holds several variants of the task; else empty."""
    device: str
    pool: str
    joint: bool
    samples: bool
    setting: str
    """Which requests these are, in words: `single requests`."""
    extent: str
    """How many requests, base seeds and method seeds."""
    columns: tuple[Column, ...]
    axes: tuple[str, ...]
    """The metrics whose distances to the oracle make the order; empty where it cannot be had."""
    ranked: tuple[Line, ...]
    unranked: tuple[Line, ...]
    """Methods that do not pass the gate, have unfinished cells, or have no distance to the oracle."""
    controls: tuple[Line, ...]
    order: str
    """How the methods are ordered, in a sentence or two."""
    notes: tuple[tuple[str, str], ...]
    """(mark, sentence) pairs: what the marks of entries stand for."""
    few: str
    """What the intervals are, or why there are none."""
    front: tuple[str, ...]
    """Methods that no other beats on every axis and in time."""
    rows: pd.DataFrame
    """The board's rows with the columns that `labelled` adds."""
    audits: tuple[Audit, ...] = ()
    """How well each metric that is no cost tells oracles from the known bad."""
    surprises: tuple[str, ...] = ()
    """Controls that did not come out as they have to, a sentence each."""
    remarks: tuple[str, ...] = ()
    """What has to be said of all of the board's numbers, a sentence each."""

    @property
    def title(self) -> str:
        """`identities: joint requests`."""
        return f"{self.task}: {self.setting}"

    @property
    def lines(self) -> tuple[Line, ...]:
        """All methods as they are listed: ordered, not ordered, controls."""
        return self.ranked + self.unranked + self.controls

    def column(self, metric: str) -> Column | None:
        """The column of a metric, if the board has it."""
        return next((c for c in self.columns if c.name == metric), None)

    def quality(self) -> list[Column]:
        """The columns that are neither costs nor details, such as points of a curve."""
        return [c for c in self.columns if of_quality(c.name)]

    def main(self) -> list[Column]:
        """The columns of the board itself: forgetting and keeping, and the first of what else may tell; `group` has more."""
        return [c for c in self.quality() if about(c.name).kind in {"forget", "retain", "other"} or c.name in HEADS]

    def group(self, *kinds: str) -> list[Column]:
        """The columns of some kinds of metric in which anyone has a value."""
        known = {m for line in self.lines for m, entry in line.entries.items() if entry.estimate.value is not None}
        return [c for c in self.columns if about(c.name).kind in kinds and c.name in known]

    def costs(self) -> list[Column]:
        """The columns that are costs."""
        return [c for c in self.columns if c.is_cost]

    def showing(self, metrics: Sequence[str]) -> Board:
        """The board with these columns alone, and their footnotes, lettered anew."""
        said = {mark for line in self.lines for m in metrics if m in line.entries for mark in line.entries[m].marks}
        if not all(line.complete for line in self.lines):
            said.add(INCOMPLETE)
        letters = {mark: mark for mark in said & {INCOMPLETE}}
        letters |= {mark: _letters(i) for i, mark in enumerate(m for m, _ in self.notes if m in said - {INCOMPLETE})}

        def relettered(line: Line) -> Line:
            entries = {m: line.entries[m] for m in metrics if m in line.entries}
            marked = {m: replace(entry, marks=tuple(letters[mark] for mark in entry.marks)) for m, entry in entries.items()}
            return replace(line, entries=marked)

        return replace(
            self._of(lambda lines: map(relettered, lines)),
            columns=tuple(column for column in self.columns if column.name in metrics),
            notes=tuple((letters[mark], sentence) for mark, sentence in self.notes if mark in letters),
        )

    def only(self, methods: Sequence[str]) -> Board:
        """The board with the lines of these methods alone."""
        return self._of(lambda lines: (line for line in lines if line.method in methods))

    def _of(self, change: Callable[[tuple[Line, ...]], Iterable[Line]]) -> Board:
        """The board with something done to the lines of each of its three parts."""
        ranked, unranked, controls = (tuple(change(lines)) for lines in (self.ranked, self.unranked, self.controls))
        return replace(self, ranked=ranked, unranked=unranked, controls=controls)

    def n_oracles(self) -> dict[str, int]:
        """By cell, how many oracles its values stand beside, where that was noted."""
        noted = self.rows[self.rows["metric"] == "n_oracles"]
        return dict(zip(noted["cell"], noted["value"].astype(int), strict=True))

    def images(self, method: str, metric: str) -> str:
        """How many images a method's value of a metric rests on, summed over cells, and in how many concepts."""
        mine = self.rows[(self.rows["label"] == method) & (self.rows["metric"] == metric) & self.rows["value"].notna()]
        if not len(mine) or mine["n_images"].isna().any():
            return "—"
        return f"{mine['n_images'].sum():,.0f}"


# ---------------------------------------------------------------- making boards


def boards(frame: pd.DataFrame, runs: Sequence[Mapping[str, Any]]) -> list[Board]:
    """Every leaderboard that the rows hold, by task, joint requests first."""
    return list(_boards(_Table(normalised(frame), runs)))


class _Table:
    """A table and its runs, equal to any other of the same content: several reports ask for the same boards."""

    def __init__(self, frame: pd.DataFrame, runs: Sequence[Mapping[str, Any]]) -> None:
        self.frame, self.runs = frame, runs
        content = pd.util.hash_pandas_object(frame).to_numpy().tobytes() + json.dumps(runs, default=str).encode()
        self.digest = hashlib.sha256(content).digest()

    def __hash__(self) -> int:
        return hash(self.digest)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Table) and self.digest == other.digest


@lru_cache(maxsize=2)
def _boards(table: _Table) -> tuple[Board, ...]:
    rows = labelled(table.frame, control_names(table.runs), choices(table.runs))
    if not len(rows):
        return ()
    made = []
    for _, part in rows.groupby(BOARD, sort=True, dropna=False):
        made.append(_board(part, rows[rows["task"] == part["task"].iloc[0]]))
    return tuple(sorted(made, key=lambda b: (b.task, b.params, b.device, b.pool != "test", b.pool, not b.joint, b.samples)))


def control_names(runs: Sequence[Mapping[str, Any]]) -> set[str]:
    """The methods that are reference points; our own where a `run.json` names none."""
    return set(CONTROLS).union(*(run.get("controls") or () for run in runs))


def labelled(frame: pd.DataFrame, controls: Iterable[str], tuned: Iterable[Choice] = ()) -> pd.DataFrame:
    """The rows with six columns more.

    `label`: a method, with the parameters in which its variants differ; tuned ones are apart, `salun (tuned)`.
    `tuned`, `kept`: whether the parameters are what tuning chose and differ from, or are, the defaults. `control`.
    `joint`. `samples`: the request has no targets, but training samples to forget. What was imported is another method.
    """
    rows = normalised(frame)
    changed = {choice.setting: bool(choice.changed) for choice in tuned}
    found = [
        changed.get(s) for s in rows[["task", "task_params", "method", "method_params"]].itertuples(index=False, name=None)
    ]
    rows["tuned"], rows["kept"] = [f is True for f in found], [f is False for f in found]
    rows["control"] = rows["method"].isin(set(controls))
    imported = [params for params in set(rows["method_params"]) if "imported" in _loads(params, {})]
    rows.loc[rows["method_params"].isin(imported), "method"] += IMPORTED
    rows["label"] = ""
    for (_, _, method, is_tuned), part in rows.groupby(["task", "task_params", "method", "tuned"]):
        texts = {params: _difference(params, set(part["method_params"])) for params in set(part["method_params"])}
        labels = {params: _label(str(method), bool(is_tuned), text) for params, text in texts.items()}
        rows.loc[part.index, "label"] = part["method_params"].map(labels)
    rows["joint"] = [len(_loads(t, [])) > 1 for t in rows["targets"]]
    rows["samples"] = rows["targets"] == "[]"
    return rows


def _label(method: str, tuned: bool, text: str) -> str:
    """`salun`, `salun(keep=0.3)`, `salun (tuned)`, `salun (tuned, keep=0.3)`."""
    if tuned:
        return f"{method}{TUNED}{', ' if text else ''}{text})"
    return f"{method}({text})" if text else method


def untuned(label: str) -> str:
    """The label of a method with its defaults, given that of its tuned variant; other labels as they are."""
    return label.split(TUNED)[0]


def _board(rows: pd.DataFrame, of_task: pd.DataFrame) -> Board:
    rows = classified(rows)
    first = rows.iloc[0]
    columns = _columns(rows)
    audited = audits(rows)
    grey = {audit.metric for audit in audited if audit.grey}
    axes = _axes(rows, [column for column in columns if column.name not in grey])
    notes = _Notes()
    parts = {str(label): part for label, part in rows[READ].groupby("label", sort=True)}
    lines = [_line(label, part, rows, axes, notes) for label, part in parts.items()]
    values = {(str(label), str(metric)): part for (label, metric), part in rows[READ].groupby(["label", "metric"])}
    nothing = rows[READ].iloc[:0]
    for column in columns:  # column by column, so that notes come in the order in which a table is read
        for line in lines:
            line.entries[column.name] = _entry(line, values.get((line.method, column.name), nothing), column, notes)
    ranked, unranked = _ordered(lines, parts, axes)
    return Board(
        task=first["task"],
        params=_difference(first["task_params"], set(of_task["task_params"])),
        device=str(first["device"]) if of_task["device"].nunique() > 1 else "",
        pool=first["pool"],
        joint=bool(first["joint"]),
        samples=bool(first["samples"]),
        setting=_setting(first, of_task),
        extent=_extent(rows),
        columns=columns,
        axes=axes,
        ranked=tuple(_with_best(ranked, columns)),
        unranked=tuple(unranked),
        controls=tuple(sorted((line for line in lines if line.control), key=_control_order)),
        order=_order_sentence(axes, ranked, [line for line in lines if line.control]) + _tuned_sentence(rows),
        notes=notes.pairs(),
        few=_few(rows),
        front=_front(ranked, parts, axes),
        rows=rows,
        audits=tuple(audited),
        surprises=tuple(surprises(rows)),
        remarks=(*_own_distance(lines), *_doubles(rows)),
    )


def _columns(rows: pd.DataFrame) -> tuple[Column, ...]:
    found = []
    for name, part in rows[rows["metric"].notna()].groupby("metric"):
        models = part[part["method"] != "oracle"]  # its reference leaves itself out
        per_request = (models if len(models) else part).groupby("request")[["oracle_mean", "oracle_sd"]].mean()
        facts = {c: next(iter(part[c].dropna()), None) for c in ("better", "unit", "chance")}
        oracle = {c: None if np.isnan(v) else float(v) for c, v in per_request.mean().items()}
        better, unit = str(facts["better"] or "higher"), str(facts["unit"] or "")
        found.append(Column(str(name), better, unit, _chance(part), oracle["oracle_mean"], oracle["oracle_sd"]))
    return tuple(sorted(found, key=lambda column: position(column.name)))


def _chance(part: pd.DataFrame) -> float | None:
    known = part["chance"].dropna().unique()
    return float(known.mean()) if len(known) else None


def _axes(rows: pd.DataFrame, columns: Sequence[Column]) -> tuple[str, ...]:
    """One metric each for forgetting, retaining, utility and privacy, where all requests have a value and an oracle."""
    measured = rows[rows["value"].notna() & rows["oracle_mean"].notna() & ~rows["control"]]
    everywhere = {m for m, part in measured.groupby("metric") if part["request"].nunique() == rows["request"].nunique()}
    open_to = [c for c in columns if c.name in everywhere and not c.is_cost]
    names = {c.name for c in open_to}
    forget = next((m for m in FORGET if m in names), None) or next((c.name for c in open_to if c.better == "oracle"), None)
    retain = next((m for m in RETAIN if m in names), None) or next((c.name for c in open_to if c.better == "higher"), None)
    privacy = next((m for m in PRIVACY if m in names), None)
    utility = next((m for m in UTILITY if m in names), None)
    return tuple(dict.fromkeys(m for m in (forget, retain, utility, privacy) if m))


def _line(label: str, part: pd.DataFrame, board: pd.DataFrame, axes: Sequence[str], notes: _Notes) -> Line:
    """A method's line, its entries still to be filled in."""
    cells = part.drop_duplicates("cell")
    absent = _pairs(board) - _pairs(cells)
    n_ok, n_cells = int(cells["status"].eq("ok").sum()), len(cells) + len(absent)
    if n_ok < n_cells:
        notes.unfinished(label, cells, absent, n_ok, n_cells)
    distances = distance_per_cell(part, axes)
    complete = n_ok == n_cells and distances["value"].notna().all() and len(distances) == n_cells
    failures = cells["failure"].dropna().value_counts().sort_index()
    gate = validity(part, n_cells, board[board["method"] == "original"])
    return Line(
        method=label,
        control=bool(part["control"].iloc[0]),
        n_ok=n_ok,
        n_cells=n_cells,
        entries={},
        distance=estimate(distances).within(0, math.inf) if complete and axes else None,
        failures={str(k): int(v) for k, v in failures.items()},
        n_attacked=_attacked(part),
        valid=gate.valid,
        why=gate.why,
    )


def _attacked(part: pd.DataFrame) -> int:
    of_attacks = {metric for metric in part["metric"].dropna().unique() if about(str(metric)).kind == "attack"}
    return int(part[part["metric"].isin(of_attacks) & part["value"].notna()]["cell"].nunique())


def _entry(line: Line, mine: pd.DataFrame, column: Column, notes: _Notes) -> Entry:
    """A method's entry from its rows of the column's metric."""
    got = mine[mine["value"].notna()]
    result = estimate(mine, center="median" if column.is_cost else "mean")
    if result.spread == "interval" and result.low == result.high and got["ci_low"].notna().all():
        # all requests alike, as 0 of n: no bootstrap sees what their images still allow
        low, high = span(*(got[name].to_numpy(float) for name in ("value", "ci_low", "ci_high")))
        result = result._replace(low=low, high=high, spread="range")
    if got["chance"].notna().any():  # an accuracy, or an area under a curve
        result = result.within(0, 1)
    marks: list[str] = []
    n_ok = line.n_ok
    if not line.complete:
        marks += [INCOMPLETE] if len(got) else []
        result = result._replace(low=None, high=None, spread="none")
    if len(got) < n_ok:
        why = sorted(set(mine.loc[mine["value"].isna(), "note"].dropna())) or [f"{column.name} was not reported"]
        share = "" if not len(got) else f" on {n_ok - len(got)} of {n_ok} finished cells, left out of the mean"
        marks += [notes.add(f"{reason[:1].upper()}{reason[1:].rstrip('.')}{share}.") for reason in _alike(why)]
        result = result._replace(low=None, high=None, spread="none") if share else result
    elif len(got) and column.name.startswith("t_") and got["concurrent"].astype(bool).any():
        marks.append(notes.add("Measured while other cells ran beside it, so slower than alone."))
    gaps = (got["value"] - got["oracle_mean"]).dropna()
    return Entry(result, float(gaps.mean()) if len(gaps) else None, tuple(marks))


def distance_per_cell(part: pd.DataFrame, axes: Sequence[str]) -> pd.DataFrame:
    """For each cell the mean over `axes` of the distance to the oracle, in the direction the metric declares.

    `oracle`: either side counts. `higher`: only what is missing to the oracle counts, since keeping more is no fault;
    `lower` the other way round. NaN where a cell lacks one of the axes.
    """
    rows = part[part["metric"].isin(list(axes))]
    gap = (rows["value"] - rows["oracle_mean"]).to_numpy(float)
    better = rows["better"].to_numpy()
    away = np.where(better == "higher", np.maximum(-gap, 0), np.where(better == "lower", np.maximum(gap, 0), np.abs(gap)))
    place, cells = pd.factorize(rows["cell"])
    table = np.full((len(cells), len(axes)), np.nan)
    table[place, [list(axes).index(m) for m in rows["metric"]]] = away
    found = rows.drop_duplicates("cell")[["cell", "request", "base_seed", "method_seed"]]
    return found.assign(value=table.mean(axis=1) if len(axes) else np.nan, ci_low=np.nan, ci_high=np.nan)


def _ordered(lines: Sequence[Line], parts: Mapping[str, pd.DataFrame], axes: Sequence[str]) -> tuple[list[Line], list[Line]]:
    """Methods that pass the gate, nearest to the oracle first; then the others, likewise, unfinished ones last."""

    def place(line: Line) -> tuple[bool, float, str]:
        known = line.distance is not None and line.distance.value is not None
        return not known, line.distance.value if known else 0.0, line.method  # type: ignore[union-attr,return-value]

    methods = sorted((line for line in lines if not line.control), key=place)
    ranked = [x for x in methods if x.distance is not None and x.valid is not False]
    unranked = [x for x in methods if x.distance is None or x.valid is False]
    tables = {x.method: by_request(distance_per_cell(parts[x.method], axes)) for x in ranked}
    ranges = rank_ranges(tables)
    return [replace(x, ranks=ranges[x.method]) for x in ranked], unranked


def _with_best(ranked: Sequence[Line], columns: Sequence[Column]) -> list[Line]:
    """Mark, per metric, the best value among the ordered methods; ties are all marked, unless all tie."""
    lines = list(ranked)
    for column in columns:
        scores = {line.method: _score(line.entries[column.name], column) for line in lines}
        known = [score for score in scores.values() if score is not None]
        for i, line in enumerate(lines):
            if len(set(known)) > 1 and scores[line.method] == min(known):
                entries = dict(line.entries)
                entries[column.name] = replace(entries[column.name], best=True)
                lines[i] = replace(line, entries=entries)
    return lines


def _score(entry: Entry, column: Column) -> float | None:
    """Lower is better; rounded, so that what prints the same counts as the same."""
    value = entry.gap if column.better == "oracle" else entry.estimate.value
    if value is None:
        return None
    signs = {"oracle": abs(value), "higher": -value}
    return round(signs.get(column.better, value), 3)


def _front(ranked: Sequence[Line], parts: Mapping[str, pd.DataFrame], axes: Sequence[str]) -> tuple[str, ...]:
    """Who is beaten by no other on all of: the distance on each axis, and time."""
    if not ranked:
        return ()
    losses = []
    for line in ranked:
        mine = parts[line.method]
        time = line.entries["t_total"].estimate.value if "t_total" in line.entries else None
        axis = [float(by_request(distance_per_cell(mine, [a])).mean(axis=1).mean()) for a in axes]
        losses.append([*axis, time if time is not None else 0.0])
    return tuple(ranked[i].method for i in np.flatnonzero(non_dominated(np.array(losses))).tolist())


# ---------------------------------------------------------------- as data frames


def wide(board: Board, metrics: Sequence[str] | None = None) -> pd.DataFrame:
    """Methods x metrics as text, `value [low, high]` for intervals and `value (low..high)` for ranges."""
    columns = [c for c in board.columns if metrics is None or c.name in metrics]
    records = []
    for line in board.lines:
        record = {"rank": rank_text(line), "method": line.method, "ok": line.ok, "to oracle": distance_text(line)}
        records.append(record | {c.heading: entry_text(line.entries[c.name], c) for c in columns})
    return pd.DataFrame.from_records(records, columns=["rank", "method", "ok", "to oracle", *(c.heading for c in columns)])


def tidy(board: Board, more: Callable[[Line, Column], Mapping[str, Any]] = lambda line, column: {}) -> pd.DataFrame:
    """The board's numbers in full, one row a method and metric; the order's distance is the metric `distance`.

    `more` gives further columns of a metric's row.
    """
    keys = {"task": board.task, "task_params": board.rows["task_params"].iloc[0], "device": board.rows["device"].iloc[0]}
    keys |= {"threads": board.rows["threads"].iloc[0], "pool": board.pool, "joint": board.joint}
    keys["samples"] = board.samples
    said = dict(board.notes)
    records = []
    for line in board.lines:
        part = board.rows[board.rows["label"] == line.method].iloc[0]
        low, high = line.ranks or (None, None)
        who = {"method": part["method"], "method_params": part["method_params"], "tuned": part["tuned"]}
        who |= {"control": line.control}
        who |= {"n_ok": line.n_ok, "n_cells": line.n_cells, "rank_low": low, "rank_high": high}
        if line.distance is not None:
            records.append(keys | who | {"metric": "distance", "better": "lower"} | line.distance._asdict())
        for c in board.columns:
            entry = line.entries[c.name]
            facts: dict[str, Any] = {"metric": c.name, "better": c.better, "unit": c.unit} | entry.estimate._asdict()
            facts |= {"gap": entry.gap, "oracle_mean": c.oracle, "oracle_sd": c.oracle_sd, "chance": c.chance}
            facts |= {"note": " ".join(said.get(m, "") for m in entry.marks).strip()}
            records.append(keys | who | facts | dict(more(line, c)))
    return pd.DataFrame.from_records(records)


def per_request(board: Board, metrics: Sequence[str] | None = None) -> pd.DataFrame:
    """Cells x metrics as text: request, seeds, method, status, then each value with its own interval."""
    columns = [c for c in board.quality() if metrics is None or c.name in metrics]
    place = {line.method: i for i, line in enumerate(board.lines)}
    cells = board.rows.drop_duplicates("cell").assign(place=lambda f: f["label"].map(place))
    cells = cells.sort_values(["request", "base_seed", "place", "method_seed"])
    by_cell = {(r.cell, r.metric): r for r in board.rows.itertuples() if r.metric is not None}
    n_oracles = board.n_oracles()
    records = []
    for cell in cells.itertuples():
        seeds = f"{cell.base_seed}/{cell.method_seed}"
        record = {"request": cell.request, "seeds": seeds, "method": cell.label, "status": cell.failure or cell.status}
        n = n_oracles.get(str(cell.cell), 0)
        records.append(record | {c.heading: _row_text(by_cell.get((cell.cell, c.name)), c, n) for c in columns})
    return pd.DataFrame.from_records(records)


def _row_text(row: Any, column: Column, n_oracles: int) -> str:
    if row is None or np.isnan(row.value):
        return "—"
    value = number(row.value, column.name, column.unit)
    if unlike_oracles(row, n_oracles):
        value += UNLIKE
    if np.isnan(row.ci_low) or np.isnan(row.ci_high):
        return value
    return f"{value} [{number(row.ci_low, column.name, column.unit)}, {number(row.ci_high, column.name, column.unit)}]"


def split(board: Board, metrics: Sequence[str] | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`wide` in two: methods and controls."""
    table = wide(board, metrics)
    n = len(board.ranked) + len(board.unranked)
    return table.iloc[:n], table.iloc[n:].drop(columns="rank")


def troubled(frame: pd.DataFrame, runs: Sequence[Mapping[str, Any]] = ()) -> pd.DataFrame:
    """The cells that did not finish `ok`, one row each, methods by their labels."""
    cells = labelled(frame, (), choices(runs)).drop_duplicates("cell")
    cells["method"] = cells["label"]
    keys = ["task", "request", "method", "base_seed", "method_seed"]
    return cells[cells["status"] != "ok"].sort_values(keys)[[*keys, "status", "error"]].reset_index(drop=True)


# ---------------------------------------------------------------- in words


def entry_text(entry: Entry, column: Column) -> str:
    """`0.031 [0.012, 0.054]`, `0.031 (0.012..0.054)`, `0.031†`, `—ᵃ`."""
    e = entry.estimate
    value = number(e.value, column.name, column.unit) + "".join(
        mark if mark == INCOMPLETE else f"^{mark}" for mark in entry.marks
    )
    return f"{value}{spread_text(e, column.name, column.unit)}"


def spread_text(e: Estimate, metric: str = "", unit: str | None = None) -> str:
    """` [low, high]` for an interval, ` (low..high)` for a range, nothing where there is neither, or all are equal."""
    if e.spread == "none" or e.low == e.high:
        return ""
    low, high = number(e.low, metric, unit), number(e.high, metric, unit)
    return f" ({low}..{high})" if e.spread == "range" else f" [{low}, {high}]"


def rank_text(line: Line) -> str:
    """`1`, `1-3`, or nothing."""
    if line.ranks is None:
        return ""
    low, high = line.ranks
    return f"{low}" if low == high else f"{low}-{high}"


def distance_text(line: Line) -> str:
    """The distance the board is ordered by."""
    return "—" if line.distance is None else f"{number(line.distance.value)}{spread_text(line.distance)}"


def headline(board: Board) -> list[str]:
    """The few metrics for narrow places: the axes, the rest of what a reader asks first, and time."""
    wanted = [*board.axes, *FORGET, *RETAIN, *UTILITY, *PRIVACY, "ks_d"]
    names = [m for m in dict.fromkeys(wanted) if board.column(m)] or [c.name for c in board.quality()]
    return names[:4] + (["t_total"] if board.column("t_total") else [])


def _order_sentence(axes: Sequence[str], ranked: Sequence[Line], controls: Sequence[Line]) -> str:
    if not axes:
        return "No metric has an oracle value on every request, so the methods are listed by name and not ordered."
    if not ranked:
        return "No method has finished every cell and kept what it should, so there is no order."
    sentence = (
        f"Ordered by the mean distance to the retrained model over {_listed(axes)}: a way to read the table, not a verdict. "
        "Where higher is better only what is missing counts. Methods that did not keep what they should are not ordered. "
        "The rank is the span of ranks that the requests at hand allow."
    )
    best = ranked[0].distance
    ahead = sorted(c.method for c in controls if c.distance and best and c.method != "oracle" and _at_most(c.distance, best))
    if ahead:
        which = f"control{'s' if len(ahead) > 1 else ''} {_listed(ahead)}"
        sentence += f" The {which} would come first: this order cannot tell hiding from forgetting, so read on."
    return sentence


def _tuned_sentence(rows: pd.DataFrame) -> str:
    if not (rows["tuned"].any() or rows["kept"].any()):
        return ""
    kept = sorted(set(rows.loc[rows["kept"], "label"]))
    sentence = " Methods stand with their defaults and with parameters tuned on other targets."
    return sentence + (
        f" Tuning kept the defaults of {_listed(kept)}, which stand{'s' * (len(kept) < 2)} once." if kept else ""
    )


def _at_most(a: Estimate, b: Estimate) -> bool:
    return a.value is not None and b.value is not None and a.value <= b.value


def _few(rows: pd.DataFrame) -> str:
    n, seeds = rows["request"].nunique(), rows["base_seed"].nunique()
    base = "one base model (nothing is said about others)" if seeds == 1 else f"{seeds} base models"
    if n >= MIN_REQUESTS:
        return (
            f"Brackets are 95 % bootstrap intervals over {n} requests and {base}; parentheses the lowest and highest cell."
        )
    if n == 1:
        return (
            f"One request, {base}: brackets are the cell's own 95 % interval over its images and concepts, parentheses span "
            "those of several cells; neither says anything about other requests."
        )
    return (
        f"{n} requests, {base}: too few for intervals over requests ({MIN_REQUESTS} are needed). Parentheses span the "
        "cells' own 95 % intervals, or their values; differences within them are not resolved."
    )


def _extent(rows: pd.DataFrame) -> str:
    seeds = rows.groupby(["request", "base_seed"])["method_seed"].nunique()  # a suite may repeat some requests only
    texts = [
        _counted([rows["request"].nunique()], "request"),
        _counted([rows["base_seed"].nunique()], "base model"),
        _counted(sorted(set(seeds)), "method seed"),
    ]
    targets = sorted({len(_loads(t, [])) for t in rows["targets"]})
    return ", ".join(texts) + (f"; {_counted(targets, 'target')} each" if targets[-1] > 1 else "")


def _counted(numbers: Sequence[int], word: str) -> str:
    """How many of something, or from how few to how many, of numbers in order."""
    fewest, most = numbers[0], numbers[-1]
    return f"{fewest if fewest == most else f'{fewest} to {most}'} {word}{'s' if most > 1 else ''}"


def _setting(first: pd.Series, of_task: pd.DataFrame) -> str:
    words = "random samples" if first["samples"] else "joint requests" if first["joint"] else "single requests"
    if of_task["pool"].nunique() > 1 or first["pool"] != "test":
        words += f", pool {first['pool']}"
    if of_task["device"].nunique() > 1:
        words += f", on {first['device']}"
    if of_task["threads"].nunique() > 1:
        words += f", {first['threads']} threads"
    return words


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _difference(params: str, among: set[str]) -> str:
    """The parameters in which these differ from the others, `key=value, ...`; empty where there are no others."""
    if len(among) == 1:
        return ""
    all_of = [_loads(p, {}) for p in among]
    mine = _loads(params, {})
    varied = [
        k for k in sorted({k for p in all_of for k in p}) if len({json.dumps(p.get(k), sort_keys=True) for p in all_of}) > 1
    ]
    return ", ".join(f"{k}={mine.get(k)}" for k in varied)


def _loads(text: str | None, default: Any) -> Any:
    try:
        found = json.loads(text) if text else default
    except ValueError:
        return default
    return found if isinstance(found, type(default)) else default


def _pairs(rows: pd.DataFrame) -> set[tuple[str, int]]:
    return set(zip(rows["request"], rows["base_seed"], strict=True))


def _control_order(line: Line) -> tuple[int, str]:
    name = line.method.split("(")[0]
    return (CONTROLS.index(name) if name in CONTROLS else len(CONTROLS)), line.method


def _own_distance(lines: Sequence[Line]) -> tuple[str, ...]:
    """How far a retrained model itself is from its like, and what the rules for failures make of it."""
    own = next((line for line in lines if line.method == "oracle" and line.distance), None)
    if own is None or own.distance is None or own.distance.value is None:
        return ()
    said = (
        f"A further retrained model is itself {number(own.distance.value)} from the mean of its like: methods no farther "
        "off are as near as can be told."
    )
    if own.status not in {"valid", "—"}:
        said += f" The rules call it {own.status}: so much they err on single models."
    return (said,)


def _doubles(rows: pd.DataFrame) -> tuple[str, ...]:
    doubles = int(rows.drop_duplicates("cell").duplicated(SAME_CELL).sum())
    if not doubles:
        return ()
    return (f"{doubles} cells were measured more than once under different code, weights or versions; their mean is shown.",)


def _alike(reasons: Sequence[str]) -> list[str]:
    """One of each that differ in their numbers alone, and how many more there are."""
    groups: dict[str, list[str]] = {}
    for reason in reasons:
        groups.setdefault(re.sub(r"\d+(\.\d+)?", "0", reason), []).append(reason.rstrip("."))
    return [f"{first}, and {len(more)} the like" if more else first for first, *more in groups.values()]


def _letters(i: int) -> str:
    """`a` to `z`, then `aa`."""
    return chr(ord("a") + i % 26) * (1 + i // 26)


class _Notes:
    """Collects footnotes, one mark for each different sentence."""

    def __init__(self) -> None:
        self.marks: dict[str, str] = {}
        self.unfinished_: dict[str, list[str]] = {}

    def pairs(self) -> tuple[tuple[str, str], ...]:
        """(mark, sentence), what did not finish first."""
        missing = " ".join(f"{', '.join(labels)}: {text}" for text, labels in self.unfinished_.items())
        return (*([(INCOMPLETE, missing)] if missing else []), *((mark, said) for said, mark in self.marks.items()))

    def add(self, sentence: str) -> str:
        return self.marks.setdefault(sentence, _letters(len(self.marks)))

    def unfinished(self, label: str, cells: pd.DataFrame, absent: set[tuple[str, int]], n_ok: int, n_cells: int) -> None:
        bad = cells[cells["status"] != "ok"]
        reasons = [f"{r.request} {r.status}" for r in bad.sort_values(["request", "base_seed", "method_seed"]).itertuples()]
        reasons += [f"{request} not run" for request, _ in sorted(absent)]
        text = f"{n_ok} of {n_cells} cells finished ({', '.join(dict.fromkeys(reasons))})"
        text += "; numbers over those alone are not comparable, and not ordered." if n_ok else "; nothing to show."
        self.unfinished_.setdefault(text, []).append(label)
