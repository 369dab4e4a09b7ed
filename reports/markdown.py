"""The leaderboards as one Markdown file, for READMEs and issues."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from slugbench.bench import report
from slugbench.bench.frame import normalised

from . import facts, order, published, tables, tuning
from .tables import Board


@report("md")
@dataclass(frozen=True)
class Markdown:
    """Leaderboards, costs, unfinished cells, gates and provenance as Markdown."""

    def __call__(self, frame: pd.DataFrame, runs: Sequence[Mapping[str, Any]], out: Path) -> list[Path]:
        """Write `leaderboard.md`."""
        path = Path(out) / "leaderboard.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(document(normalised(frame), runs), encoding="utf-8")
        return [path]


def document(frame: pd.DataFrame, runs: Sequence[Mapping[str, Any]]) -> str:
    """The file's text."""
    boards = tables.boards(frame, runs)
    counts = ", ".join(f"{n} {status}" for status, n in facts.counts(frame)) or "no cells"
    parts = [
        f"# Leaderboard of the suite {escaped(facts.suites(frame, runs))}",
        f"{facts.dates(frame)}; {counts}. ↑ higher is better, ↓ lower is better, →R nearest to the oracle is best, "
        "a model retrained without the forgotten data.",
    ]
    for board in boards:
        parts += _board(board)
    for task, known in tuning.by_task(runs).items():
        parts += [f"## {escaped(task)}: tuning", escaped(tuning.sentence(known)), table(tuning.table(known), numbers_from=3)]
    parts += ["## Cells that did not finish", table(tables.troubled(frame, runs)) or "None: every cell is ok."]
    parts += ["## Acceptance gates", table(_gates(runs)) or "No gates are recorded with this run."]
    parts += ["## Failure classes", "The first that applies to a finished cell.", table(order.rules_table())]
    parts += ["## Metrics", table(_glossary(boards)) or "None."]
    parts += [
        "## Reproduce and cite",
        "```\n" + "\n".join(facts.commands(frame, runs)) + "\n```",
        escaped(facts.citation(frame, runs)),
    ]
    return "\n\n".join(parts) + "\n"


FURTHER = {
    "What still leaks: membership and distance to the oracles.": ("privacy", "distance"),
    "What comes back: attacks.": ("attack",),
    "What is left in the features, and how far the weights went.": ("features",),
}
"""Tables of their own, and the kinds of metric in them."""


def _board(board: Board) -> list[str]:
    main = board.showing([*(c.name for c in board.main()), "t_total"])
    methods, controls = (part.copy() for part in tables.split(main))
    status = [line.status for line in board.lines]
    methods.insert(2, "status", status[: len(methods)])
    controls.insert(1, "status", status[len(methods) :])
    extent = f"{board.extent}. {board.params}".strip()
    parts = [f"## {escaped(board.title)}", escaped(extent), table(methods, numbers_from=4)]
    if len(controls):
        parts += ["Controls: reference points, never ordered.", table(controls, numbers_from=3)]
    parts += [escaped(f"{board.order} {board.few}"), *footnotes(main), *map(escaped, board.remarks)]
    parts += [escaped(published.sentence(board)), table(published.table(board), numbers_from=2), *_order(board)]
    for title, kinds in FURTHER.items():
        parts += part_of(board, title, [c.name for c in board.group(*kinds)])
    parts += part_of(board, "Costs: median over cells (lowest..highest).", [c.name for c in board.costs()])
    return [part for part in parts if part]


def part_of(board: Board, title: str, metrics: Sequence[str]) -> list[str]:
    """A table of some of a board's metrics under its title, and its footnotes; nothing if the board has none of them."""
    shown = board.showing(metrics)
    if not shown.columns:
        return []
    numbers = tables.wide(shown).drop(columns=["rank", "to oracle"])
    return [title, table(numbers, numbers_from=2), *footnotes(shown)]


def _order(board: Board) -> list[str]:
    """Who is valid, what the tests say, and, folded, what it rests on."""
    parts = [escaped(order.validity_sentence(board)), escaped(order.audit_sentence(board))]
    if (found := order.order(board)) is not None:
        parts += [escaped(found.primary), table(order.family_table(found), numbers_from=2)]
        parts += _folded("All axes at once, and the worst requests", table(order.standings_table(found), numbers_from=3))
        parts += ["\n".join(f"- {escaped(remark)}" for remark in order.remarks(found))]
    return [
        *parts,
        *_folded("Metric audit: oracles against known bad models", table(order.audit_table(board), numbers_from=2)),
    ]


def _folded(summary: str, text: str) -> list[str]:
    return [f"<details><summary>{summary}</summary>", text, "</details>"] if text else []


def footnotes(board: Board) -> list[str]:
    """What the marks in a board's tables stand for, as one list; nothing if there are none."""
    lines = [f"- {_marked(mark)} {escaped(sentence)}" for mark, sentence in board.notes]
    return ["\n".join(lines)] if lines else []


def table(frame: pd.DataFrame, *, numbers_from: int | None = None) -> str:
    """A pipe table, empty text for an empty frame; columns from `numbers_from` on are aligned to the right."""
    if not len(frame):
        return ""
    rule = ["---:" if numbers_from is not None and i >= numbers_from else "---" for i in range(frame.shape[1])]
    rows = [[_marked_cell(escaped(str(value))) for value in row] for row in frame.itertuples(index=False)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [[escaped(str(c)) for c in frame.columns], rule, *rows])


def escaped(text: str) -> str:
    """Text that Markdown neither breaks a table on nor reads as HTML."""
    return re.sub(r"\s+", " ", text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|"))


def _marked_cell(text: str) -> str:
    return re.sub(r"\^([a-z]+)", r"<sup>\1</sup>", text)


def _marked(mark: str) -> str:
    return mark if mark == tables.INCOMPLETE else f"<sup>{mark}</sup>"


def _gates(runs: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    lines = [{**gate, "ok": "holds" if gate["ok"] else "**missed**"} for gate in facts.gates(runs)]
    return pd.DataFrame(lines, columns=["task", "name", "when", "value", "limit", "ok", "note"])


def _glossary(boards: Sequence[Board]) -> pd.DataFrame:
    terms = [
        {
            "metric": t.name,
            "what it is": f"{t.title}. {t.text}" if t.text else t.title,
            "direction": t.direction,
            "chance": t.chance,
        }
        for t in facts.glossary(boards)
    ]
    return pd.DataFrame(terms)
