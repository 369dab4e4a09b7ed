"""One self-contained HTML page: no script, style, font or picture is loaded from anywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from slugbench.bench import report
from slugbench.bench.frame import normalised

from . import facts, figures, glossary, looks, order, plots, published, tables, tuning
from ._pictures import data_uri, grids
from .tables import Board

ONCE = "Each method once: as tuned, where it was tuned."
CAPTIONS = {
    "trade-off": f"{ONCE} The dotted cross is the mean oracle. Hollow marks are controls or incomplete; bars are as in the "
    "table.",
    "quality-time": f"{ONCE} Lower is nearer to the retrained model, left is cheaper. Time is a median and includes the "
    "search.",
    "profile": "Grey line and band: oracles, mean and one standard deviation. Dotted: chance. Small ticks: single cells.",
}

GRIDS = 6
"""Requests of a board whose pictures the page shows; the figures have all."""


@report("html")
@dataclass(frozen=True)
class Html:
    """A self-contained page: leaderboards, figures, pictures, costs, unfinished cells, gates, provenance, glossary."""

    def __call__(self, frame: pd.DataFrame, runs: Sequence[Mapping[str, Any]], out: Path) -> list[Path]:
        """Write `index.html`."""
        path = Path(out) / "index.html"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page(frame, runs), encoding="utf-8")
        return [path]


def page(frame: pd.DataFrame, runs: Sequence[Mapping[str, Any]]) -> str:
    """The page's text; the same rows and runs give the same bytes."""
    import jinja2

    frame = normalised(frame)
    boards = tables.boards(frame, runs)
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["mark"] = lambda mark: "†" if mark == tables.INCOMPLETE else mark
    return environment.get_template("page.html").render(
        suite=facts.suites(frame, runs),
        dates=facts.dates(frame),
        counts=facts.counts(frame),
        n_cells=frame["cell"].nunique(),
        by_task=[(task, [b for b in boards if b.task == task]) for task in dict.fromkeys(b.task for b in boards)],
        pictures=_pictures,
        grids=lambda board: grids(board, runs),
        most_grids=GRIDS,
        about_grids=figures.PICTURES,
        data_uri=data_uri,
        number=glossary.number,
        signed=glossary.signed,
        about=glossary.about,
        tables=tables,
        order=order,
        published=published,
        anchor=figures.slug_of,
        key=_key,
        troubled=tables.troubled(frame, runs).to_dict("records"),
        tuned=[_tuned(task, known) for task, known in tuning.by_task(runs).items()],
        gates=facts.gates(runs),
        origins=facts.origins(frame, runs),
        commands=facts.commands(frame, runs),
        citation=facts.citation(frame, runs),
        glossary=facts.glossary(boards),
    )


def _pictures(board: Board) -> list[dict[str, str]]:
    found = []
    for name, draw in figures.PAGE_FIGURES.items():
        if picture := figures.page_svg(lambda draw=draw: draw(board), figures.slug_of(board, name)):  # type: ignore[misc]
            found.append({"name": name, "svg": picture, "caption": CAPTIONS[name]})
    return found


def _tuned(task: str, known: Sequence[tuning.Choice]) -> dict[str, Any]:
    picture = figures.page_svg(lambda: plots.best_of_k(known, width=8.4), figures.slug(f"{task} tuning"))
    return {"task": task, "sentence": tuning.sentence(known), "table": tuning.table(known), "svg": picture}


def _key(board: Board) -> dict[str, dict[str, str]]:
    """For each method the colour of its mark, as the page writes it."""
    variables = {color: f"var(--{name})" for color, name in figures.THEMED.items()}
    return {m: {"color": variables.get(look.color, look.color)} for m, look in looks.looks(board.lines).items()}
