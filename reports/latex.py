r"""The leaderboards as LaTeX tables to `\input` into a paper, and a document that shows them all.

A method takes two lines: its means, and in smaller print what the brackets or parentheses of the caption are. Bold is the
best mean of the methods that are ordered; underlined is every other that the requests at hand do not tell from the best.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from slugbench.bench import UsageError, report
from slugbench.bench.frame import normalised

from . import facts, published
from .figures import slug_of
from .glossary import number
from .plots import memory_of
from .statistics import MIN_REQUESTS, Estimate, by_request, paired_interval
from .tables import INCOMPLETE, Board, Column, Line, boards, distance_per_cell, headline, rank_text, spread_text

PACKAGES = ("booktabs", "threeparttable")
FAILED = r"$\ddagger$"
SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "†": r"$\dagger$", "—": "---", "–": "--", "−": "$-$", "→": r"$\rightarrow$",
    "↑": r"$\uparrow$", "↓": r"$\downarrow$", "∞": r"$\infty$", "≤": r"$\leq$", "≥": r"$\geq$", "±": r"$\pm$",
    "×": r"$\times$", "…": r"\dots{}", "°": r"$^\circ$", "µ": r"$\mu$", "θ": r"$\theta$",
}  # fmt: skip


@report("latex")
@dataclass(frozen=True)
class Latex:
    """Each leaderboard as a booktabs table to be input, and a document of them all."""

    metrics: str = ""
    """Names separated by spaces, or `all` for every metric of quality and time; by default the few that matter most."""

    def __call__(self, frame: pd.DataFrame, runs: Sequence[Mapping[str, Any]], out: Path) -> list[Path]:
        """Write `latex/leaderboard.tex` and the tables it inputs, one a board.

        Raises:
            UsageError: a metric is on no board.
        """
        frame = normalised(frame)
        found = boards(frame, runs)
        columns = [shown(board, self.metrics) for board in found]
        if unknown := set(self.metrics.split()) - {"all"} - {c.name for board in columns for c in board}:
            raise UsageError(f"no board has the metrics {', '.join(sorted(unknown))}; `--format csv` lists those there are.")
        folder = Path(out) / "latex"
        folder.mkdir(parents=True, exist_ok=True)
        texts = {f"{slug_of(b)}.tex": table(b, c, facts.suites(frame, runs)) for b, c in zip(found, columns, strict=True)}
        texts = {"leaderboard.tex": document([Path(name).stem for name in texts])} | texts
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
        return [folder / name for name in texts]


def shown(board: Board, metrics: str = "") -> list[Column]:
    """The columns of a board's table: those named, `all` of quality and time, or the headline and memory."""
    names = metrics.split() or [*headline(board), memory_of(board)]
    if names == ["all"]:
        names = [*(c.name for c in board.quality()), "t_total"]
    return [c for c in map(board.column, names) if c is not None]


def document(names: Sequence[str]) -> str:
    """A document that inputs tables by their files' names."""
    preamble = [
        r"\documentclass{article}",
        r"\usepackage[T1]{fontenc}",
        r"\usepackage{lmodern}",
        r"\usepackage[a4paper,margin=20mm]{geometry}",
        rf"\usepackage{{{','.join(PACKAGES)}}}",
        r"\begin{document}",
    ]
    body = [rf"\input{{{name}}}" + "\n" + r"\clearpage" for name in names] or ["There are no rows."]
    return "\n".join([*preamble, *body, r"\end{document}"]) + "\n"


# ---------------------------------------------------------------- a table


def table(board: Board, columns: Sequence[Column], suite: str) -> str:
    """A board as a `table` environment."""
    board = board.showing([c.name for c in columns])
    lines = [
        rf"% Needs \usepackage{{{','.join(PACKAGES)}}}, and with pdflatex \usepackage[T1]{{fontenc}}.",
        r"\begin{table}[t]",
        r"\centering\footnotesize\setlength{\tabcolsep}{3pt}",
        r"\begin{threeparttable}",
        rf"\caption{{{caption(board, suite)}}}",
        rf"\label{{tab:{slug_of(board)}}}",
        rf"\begin{{tabular}}{{@{{}}rl{'c' * (1 + len(columns))}@{{}}}}",
        r"\toprule",
        row(["rank", "method", "to oracle", *(escaped(c.name) for c in columns)]),
        row(["", "", r"$\downarrow$", *(escaped(c.heading.removeprefix(c.name).strip()) for c in columns)]),
        r"\midrule",
        *body(board, columns),
        r"\bottomrule",
        r"\end{tabular}",
        r"\begin{tablenotes}[flushleft]\scriptsize",
        *(rf"\item[{mark}] {text}" for mark, text in notes(board)),
        r"\end{tablenotes}",
        r"\end{threeparttable}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def caption(board: Board, suite: str) -> str:
    """Suite, board, how many requests and base models, which base seeds, and what stands in brackets."""
    seeds = ", ".join(str(seed) for seed in sorted(set(board.rows["base_seed"])))
    about = f"Suite {suite}, {board.title}{f', {board.params}' if board.params else ''}: {board.extent}; base seeds {seeds}."
    costs = " Costs are medians, all others means."
    return escaped(f"{about} {board.few}{costs} →R: nearest to the oracle, a retrained model, is best.")


def body(board: Board, columns: Sequence[Column]) -> list[str]:
    """The methods' rows; those that are not ordered after a gap, the controls after a rule."""
    tied = {c.name: tied_with_best(board, c) for c in columns}
    first, known = tied_with_first(board), published.beside(board)
    lines: list[str] = []
    for part, before in ((board.ranked, ""), (board.unranked, r"\addlinespace[5pt]"), (board.controls, r"\midrule")):
        if part and lines and before:
            lines.append(before)
        for i, line in enumerate(part):
            lines += [r"\addlinespace[2pt]"] if i else []
            lines += method_rows(board, line, columns, tied, first)
            printed = [published.text(known.get((line.method, c.name)), c.name) for c in columns]
            if any(printed):
                lines.append(row(["", r"{\scriptsize published}", "", *(_small(_minus(escaped(x))) for x in printed)]))
    return lines


def method_rows(
    board: Board, line: Line, columns: Sequence[Column], tied: Mapping[str, set[str]], first: set[str]
) -> list[str]:
    """A method's two rows: numbers, and their spreads; one where nothing has a spread."""
    name = escaped(line.method) + "".join(rf"\tnote{{{mark}}}" for mark in _method_marks(line))
    best = line in board.ranked[:1]
    distance = line.distance
    above = [escaped(rank_text(line)).replace("-", "--"), name]
    above.append(_emphasised(_number(distance.value if distance else None), best, line.method in first))
    below = [spread(distance)]
    for c in columns:
        entry = line.entries[c.name]
        value = _emphasised(_number(entry.estimate.value, c), entry.best, line.method in tied[c.name])
        marks = ",".join(escaped(mark) for mark in entry.marks)
        above.append(value + (rf"\rlap{{\tnote{{{marks}}}}}" if marks else ""))
        below.append(spread(entry.estimate, c))
    if not any(below):
        return [row(above)]
    return [row(above).replace(r" \\", r" \\[-1pt]"), row(["", "", *map(_small, below)])]


def row(cells: Sequence[str]) -> str:
    """Cells of one line of the table."""
    return " & ".join(cells) + r" \\"


def _small(text: str) -> str:
    return rf"{{\scriptsize {text}}}" if text else ""


def spread(estimate: Estimate | None, column: Column | None = None) -> str:
    """`[low, high]`, `(low..high)` or nothing, as on all boards."""
    if estimate is None:
        return ""
    return _minus(escaped(spread_text(estimate, column.name if column else "", column.unit if column else None).strip()))


def _number(value: float | None, column: Column | None = None) -> str:
    return _minus(escaped(number(value, column.name if column else "", column.unit if column else None)))


def _minus(text: str) -> str:
    return re.sub(r"(?<![\w-])-(?=[\d∞])", "$-$", text)


def _emphasised(text: str, best: bool, tied: bool) -> str:
    return rf"\textbf{{{text}}}" if best else rf"\underline{{{text}}}" if tied else text


def _method_marks(line: Line) -> list[str]:
    return ([] if line.complete else [escaped(INCOMPLETE)]) + ([FAILED] if line.failures else [])


def notes(board: Board) -> list[tuple[str, str]]:
    """(mark, text) pairs: how to read the table, what is to be said of it, its footnotes, and the failure classes."""
    n = board.rows["request"].nunique()
    resolved = (
        "the 95 % interval of the paired difference over requests and base seeds includes 0 (not corrected for the number "
        "of comparisons)."
        if n >= MIN_REQUESTS
        else f"{n} request{'s' * (n > 1)} tell none apart, {MIN_REQUESTS} are the least."
    )
    read = f"Bold: best of the ordered methods. Underlined: not distinguishable from it: {resolved}"
    failures = [
        f"{line.method}: " + ", ".join(f"{kind} ({line.share(kind)})" for kind in line.failures)
        for line in board.lines
        if line.failures
    ]
    said = (read, board.order, *board.remarks, published.sentence(board))
    found = [("", escaped(sentence)) for sentence in said if sentence]
    found += [(escaped(mark), escaped(sentence)) for mark, sentence in board.notes]
    return found + ([(FAILED, escaped(f"Failure classes. {'; '.join(failures)}."))] if failures else [])


# ---------------------------------------------------------------- not distinguishable from the best


def tied_with_best(board: Board, column: Column) -> set[str]:
    """The ordered methods with a value of a metric that are neither the best nor shown to be worse than it."""
    best = next((line for line in board.ranked if line.entries[column.name].best), None)
    if best is None:
        return set()
    reference, sizes = _losses(board, best, column), column.better == "oracle"
    rest = [(line, line.entries[column.name]) for line in board.ranked]
    open_ = [line for line, entry in rest if not entry.best and entry.estimate.value is not None]
    return {line.method for line in open_ if not worse(reference, _losses(board, line, column), sizes=sizes)}


def tied_with_first(board: Board) -> set[str]:
    """The same for the distance to the oracle, by which methods are ordered."""
    tables = [
        (line.method, by_request(distance_per_cell(board.rows[board.rows["label"] == line.method], board.axes)))
        for line in board.ranked
    ]
    return {method for method, other in tables[1:] if not worse(tables[0][1], other)}


def worse(best: pd.DataFrame, other: pd.DataFrame, *, sizes: bool = False) -> bool:
    """Whether requests x base seeds losses are above the best's: their paired interval lies above 0.

    False where there are too few requests for an interval, or gaps.
    """
    aligned = other.reindex(index=best.index, columns=best.columns)
    if len(best) < MIN_REQUESTS or best.isna().to_numpy().any() or aligned.isna().to_numpy().any():
        return False
    return paired_interval(best.to_numpy(), aligned.to_numpy(), sizes=sizes)[0] > 0


def _losses(board: Board, line: Line, column: Column) -> pd.DataFrame:
    """Requests x base seeds, lower is better; where the oracle's value is best the difference to it, with its sign."""
    rows = board.rows[(board.rows["label"] == line.method) & (board.rows["metric"] == column.name)]
    value = rows["value"] - rows["oracle_mean"] if column.better == "oracle" else rows["value"]
    sign = -1 if column.better == "higher" else 1
    return by_request(rows.assign(value=sign * value).dropna(subset="value"))


# ---------------------------------------------------------------- text


def escaped(text: str) -> str:
    """Text that LaTeX sets as it stands; a letter that its Latin fonts lack is written as its code point, `U+4E2D`."""
    return re.sub(r"\s+", " ", "".join(SPECIAL.get(letter) or _letter(letter) for letter in text))


def _letter(letter: str) -> str:
    return letter if letter.isspace() or (ord(letter) < 0x180 and letter.isprintable()) else f"U+{ord(letter):04X}"
