"""The leaderboards for a terminal, at most 120 columns wide."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from slugbench.bench import report
from slugbench.bench.frame import normalised

from . import facts, order, published, tables
from .glossary import number
from .statistics import Estimate
from .tables import Board, Line

WIDTH = 120
LONGEST_NAME = 32


@report("text")
@dataclass(frozen=True)
class Text:
    """The leaderboards' main columns for a terminal, at most 120 columns wide."""

    def __call__(self, frame: pd.DataFrame, runs: Sequence[Mapping[str, Any]], out: Path) -> list[Path]:
        """Write `leaderboard.txt`."""
        path = Path(out) / "leaderboard.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(screen(normalised(frame), runs), encoding="utf-8")
        return [path]


def screen(frame: pd.DataFrame, runs: Sequence[Mapping[str, Any]]) -> str:
    """The text, every line at most `WIDTH` characters."""
    counts = ", ".join(f"{n} {status}" for status, n in facts.counts(frame)) or "no cells"
    blocks = [_wrapped(f"suite {facts.suites(frame, runs)}, {facts.dates(frame)}: {counts}")]
    blocks += [_board(board) for board in tables.boards(frame, runs)]
    troubled = [_wrapped(_trouble(cell)) for cell in tables.troubled(frame, runs).to_dict("records")]
    if troubled:
        blocks.append("\n".join(["Cells that did not finish", *troubled]))
    if missed := [g for g in facts.gates(runs) if not g["ok"]]:
        lines = [_wrapped(f"{g['task']}: {g['name']} is {g['value']}, limit {g['limit']} {g['note']}") for g in missed]
        blocks.append("\n".join(["Gates missed", *lines]))
    return "\n\n".join(blocks) + "\n"


def _trouble(cell: Mapping[Hashable, Any]) -> str:
    where = "{status}: {task} {request} {method} (seeds {base_seed}/{method_seed})".format_map(cell)  # type: ignore[arg-type]
    return f"{where}: {cell['error'] or 'no reason recorded'}"


def _board(board: Board) -> str:
    names, whole = tables.headline(board), board
    while True:
        board = whole.showing(names)
        head = ["rank", "method", "cells", "to oracle ↓", *(c.heading for n in names if (c := board.column(n)))]
        body = {kind: [_cells(line, board, names) for line in lines] for kind, lines in _groups(board).items()}
        rows = [head, *(row for group in body.values() for row in group)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        if _total(widths) <= WIDTH or len(names) < 2:
            break
        names.pop(-2 if names[-1] == "t_total" else -1)
    lines = [board.title, _wrapped(f"{board.extent}. {board.params}"), _row(head, widths), "-" * _total(widths)]
    for kind, group in body.items():
        if group and kind:
            lines.append(f"{kind}:")
        lines += [_row(row, widths) for row in group]
    lines.append("-" * _total(widths))
    lines += [_wrapped(f"{mark} {sentence}") for mark, sentence in board.notes]
    found = order.order(whole)
    remarks = [*board.remarks, board.few, order.validity_sentence(board), *([found.primary] if found else [])]
    return "\n".join([*lines, *map(_wrapped, remarks), *_published(whole)])


def _published(board: Board) -> list[str]:
    """What is published of the board's lines, in as many columns as fit; nothing where nothing is."""
    table = published.table(board)
    if not len(table):
        return []
    rows = [["", *table.columns], *(["", *map(str, row)] for row in table.itertuples(index=False))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    while _total(widths) > WIDTH:
        widths.pop()
    return [_wrapped(published.sentence(board)), *(_row(row[: len(widths)], widths) for row in rows)]


def _groups(board: Board) -> dict[str, Sequence[Line]]:
    return {"": board.ranked, "not ordered": board.unranked, "controls": board.controls}


def _cells(line: Line, board: Board, names: Sequence[str]) -> list[str]:
    method = line.method if len(line.method) <= LONGEST_NAME else f"{line.method[: LONGEST_NAME - 1]}…"
    cells = [tables.rank_text(line), method, line.ok, "—" if line.distance is None else _compact(line.distance)]
    for name in names:
        entry, column = line.entries[name], board.column(name)
        unit = column.unit if column else ""
        spread = "" if name.startswith("t_") else _short_spread(entry.estimate)
        cells.append(number(entry.estimate.value, name, unit) + "".join(entry.marks) + spread)
    return cells


def _compact(e: Estimate) -> str:
    return number(e.value) + _short_spread(e)


def _short_spread(e: Estimate) -> str:
    """` [.01 .05]`, in parentheses for a range: two decimals, so that six columns fit."""
    if e.low is None or e.high is None or e.low == e.high:
        return ""
    ends = " ".join(f"{v:.2f}" if abs(v) < 10 else f"{v:.3g}" for v in (e.low, e.high)).replace("-0.00", "0.00")
    ends = re.sub(r"(?<!\d)0\.", ".", ends)
    return f" ({ends})" if e.spread == "range" else f" [{ends}]"


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Method names to the left, everything else to the right."""
    return "  ".join(
        c.ljust(w) if i == 1 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))
    ).rstrip()


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + 2 * (len(widths) - 1)


def _wrapped(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), WIDTH, subsequent_indent="  ")
