"""Numbers for other programs, in full precision: the leaderboards and the long table they come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from slugbench.bench import report
from slugbench.bench.frame import normalised

from . import published, tables


@report("csv")
@dataclass(frozen=True)
class Csv:
    """The leaderboards and the long table as CSV, in full precision."""

    def __call__(self, frame: pd.DataFrame, runs: Sequence[Mapping[str, Any]], out: Path) -> list[Path]:
        """Write `leaderboard.csv` (a row per board, method and metric) and `table.csv` (a row per cell and metric)."""
        out = Path(out)
        out.mkdir(parents=True, exist_ok=True)
        boards = [_numbers(board) for board in tables.boards(frame, runs)]
        leaderboard = pd.concat(boards, ignore_index=True) if boards else pd.DataFrame()
        leaderboard.to_csv(out / "leaderboard.csv", index=False)
        normalised(frame).to_csv(out / "table.csv", index=False)
        return [out / "leaderboard.csv", out / "table.csv"]


def _numbers(board: tables.Board) -> pd.DataFrame:
    known = published.beside(board)
    return tables.tidy(board, lambda line, column: published.facts(known.get((line.method, column.name))))
