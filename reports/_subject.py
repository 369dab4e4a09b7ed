"""What a figure shows: one board, one of its metrics, and how they are named on axes."""

from __future__ import annotations

import re
from typing import TypeAlias

import pandas as pd

from slugbench.bench import UsageError

from .glossary import ARROW, about
from .tables import INCOMPLETE, Board, Column, Line, boards

Rows: TypeAlias = "pd.DataFrame | Board"
RELEARNED = re.compile(r"relearn@\d+\+(\d+)")
"""Forget accuracy after so many steps of fine-tuning on the forgotten."""


class NothingToDraw(UsageError):
    """The rows hold nothing that this figure shows."""


def one_board(rows: Rows) -> Board:
    """The board that the rows make.

    Raises:
        UsageError: they make several.
        NothingToDraw: there are none.
    """
    if isinstance(rows, Board):
        return rows
    found = boards(rows, ())
    if not found:
        raise NothingToDraw("there are no rows.")
    if len(found) > 1:
        titles = "; ".join(board.title for board in found)
        raise UsageError(
            f"the rows make {len(found)} boards ({titles}), a figure shows one: "
            "give the rows of one, or one of `tables.boards(rows, runs)`."
        )
    return found[0]


def column_of(board: Board, metric: str | None, axis: int) -> Column:
    """The board's column of a metric, by default that of one of its axes.

    Raises:
        UsageError: the board has no such metric.
        NothingToDraw: it has no such axis.
    """
    if metric is None and axis >= len(board.axes):
        raise NothingToDraw("no two metrics, of forgetting and of retaining, have oracle values on every request.")
    found = board.column(metric or board.axes[axis])
    if found is None:
        raise UsageError(f"the rows have no metric '{metric}'; they have {', '.join(c.name for c in board.columns)}.")
    return found


def axis_label(column: Column) -> str:
    """`retained accuracy, top 1 (↑)`."""
    arrow = {"oracle": "→ oracle"}.get(column.better, ARROW.get(column.better, ""))
    return f"{about(column.name).title} ({arrow})"


def name_of(line: Line) -> str:
    """A method's label, with a dagger where cells are unfinished."""
    return line.method + ("" if line.complete else INCOMPLETE)
