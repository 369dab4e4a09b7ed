"""The figures of every board as files for a paper: vectors at the width of a column or a page, each with a caption.

What is drawn, and the functions for figures of one's own, are in `plots`; this picks, sizes, names and writes them, and
puts some of them into the page.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from slugbench.bench import report

from ._layout import figure_of, style
from ._pictures import grids, picture_grid
from ._subject import column_of
from .looks import FAINT, INDIGO, INK, MUTED, PAPER, WINE
from .order import ALPHA, contestants, order
from .plots import (
    NothingToDraw,
    best_of_k,
    critical_difference,
    differences,
    memory_of,
    profile,
    quality_cost,
    quality_costs,
    relearning,
    trade_off,
)
from .tables import Board, boards
from .tuning import by_task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ON_THE_PAGE = 6.4
"""Width in inches at which the page shows a figure of one panel."""
THEMED = {INK: "ink", MUTED: "muted", FAINT: "faint", PAPER: "paper", INDIGO: "indigo", WINE: "wine"}
"""Colours for which the page has others in its dark theme."""


class Kind(NamedTuple):
    """A kind of figure that a board may have."""

    draw: Callable[[Board], Figure]
    caption: str


FIGURES: dict[str, Kind] = {
    "trade-off": Kind(
        lambda board: figure_of(trade_off(contested(board))),
        "Forgetting against retaining, each method once: as tuned, where it was tuned. Dotted: the mean oracle. The line "
        "joins the methods that no other beats on both; hollow marks are controls or incomplete.",
    ),
    "quality-cost": Kind(
        lambda board: quality_costs(contested(board), ["t_total", memory_of(board)]),
        "Distance to the oracle against time, search included, and against peak memory: medians over cells, bars from the "
        "lowest to the highest; each method once, as tuned where it was tuned. Lower is nearer to the retrained model, left "
        "is cheaper.",
    ),
    "profile": Kind(
        profile,
        "Every quality metric. Grey line and band: oracles, mean and one standard deviation. Dotted: chance. Small ticks: "
        "single cells.",
    ),
    "relearning": Kind(
        lambda board: figure_of(relearning(contested(board))),
        "Forget accuracy over steps of fine-tuning on the forgotten, each method once: as tuned, where it was tuned. Grey "
        "band: oracles, mean and one standard deviation.",
    ),
    "differences-forget": Kind(
        lambda board: figure_of(differences(board, column_of(board, None, 0).name)),
        "Forget metric of each method on each request less the oracle's, averaged over seeds; grey: not measured.",
    ),
    "differences-retain": Kind(
        lambda board: figure_of(differences(board, column_of(board, None, 1).name)),
        "Retain metric of each method on each request less the oracle's, averaged over seeds; grey: not measured.",
    ),
    "ranks": Kind(
        lambda board: figure_of(critical_difference(*ranks_of(board))),
        "Mean rank by distance to the oracle over requests, base seeds averaged; 1 is nearest. Bars join methods that exact "
        f"Wilcoxon signed-rank tests with Holm's correction do not tell apart at {ALPHA}; Friedman's test rejects that all "
        "are alike.",
    ),
}
PICTURES = (
    "What each model draws at the same prompts and seeds. Neighbours have all but the target in common with a prompt that "
    "names it, unrelated prompts nothing."
)
PAGE_FIGURES: dict[str, Callable[[Board], Figure]] = {
    "trade-off": lambda board: figure_of(trade_off(contested(board), width=ON_THE_PAGE)),
    "quality-time": lambda board: figure_of(quality_cost(contested(board), width=ON_THE_PAGE)),
    "profile": lambda board: profile(board, width=12),
}
"""What the page shows of a board."""


def contested(board: Board) -> Board:
    """The board with each method once, as the tests have it: points for defaults and tuned are too many to tell apart."""
    return board.only(contestants([line.method for line in board.lines]))


def ranks_of(board: Board) -> tuple[pd.Series, pd.DataFrame]:
    """Mean ranks of the methods that the board's order compares, and the p-values of their pairs.

    Raises:
        NothingToDraw: there are too few methods or requests for any pair to differ, or Friedman's test finds no difference.
    """
    found = order(board)
    if found is None or found.p_values is None or found.friedman is None:
        raise NothingToDraw((found and found.all_pairs) or "ranks compare three complete methods or more.")
    if found.friedman.p > ALPHA:
        raise NothingToDraw(f"Friedman's test does not reject that all methods are alike (p = {found.friedman.p:.2g}).")
    return pd.Series(found.friedman.mean_ranks), found.p_values


# ---------------------------------------------------------------- files


def drawn(frame: pd.DataFrame, runs: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str, Figure | None]]:
    """Every kind of figure of every board: its file's name, and a caption or why it was not drawn, and the figure."""
    for board in boards(frame, runs):
        for name, kind in FIGURES.items():
            try:
                yield slug_of(board, name), f"{board.title}. {board.extent}. {kind.caption}", kind.draw(board)
            except NothingToDraw as reason:
                yield slug_of(board, name), str(reason), None
        for grid in grids(board, runs):
            caption = f"{board.title}. {grid.request}, base model {grid.base_seed}. {PICTURES}"
            yield slug_of(board, f"pictures {grid.request}"), caption, picture_grid(grid)
    for task, known in by_task(runs).items():
        caption = f"{task}: the best of k configurations. Hollow: the defaults; at a curve's end: what was chosen."
        yield slug(f"{task} tuning"), caption, best_of_k(known)


@report("figures")
@dataclass(frozen=True)
class Figures:
    """Every figure as PDF and SVG at the width of a paper's column or page, with captions."""

    dpi: int = 0
    """Where it is not 0, every figure also as PNG with this many dots per inch, for slides."""

    def __call__(self, frame: pd.DataFrame, runs: Sequence[Mapping[str, Any]], out: Path) -> list[Path]:
        """Write `figures/captions.md`, `figures/*.pdf`, `figures/*.svg`; the same rows and runs give the same bytes."""
        folder = Path(out) / "figures"
        folder.mkdir(parents=True, exist_ok=True)
        written, captions, missing = [folder / "captions.md"], [], []
        with style():
            for name, text, figure in drawn(frame, runs):
                if figure is None:
                    missing.append(f"- `{name}`: {text}")
                else:
                    captions.append(f"- `{name}`: {text}")
                    written += _written(figure, folder, name, self.dpi)
        parts = [f"# {title}\n\n" + "\n".join(x) for title, x in (("Captions", captions), ("Not drawn", missing)) if x]
        written[0].write_text("\n\n".join(parts or ["There is nothing to draw."]) + "\n", encoding="utf-8")
        return written


def _written(figure: Figure, folder: Path, name: str, dpi: int) -> list[Path]:
    """A figure's files, without a date and with the same ids each time."""
    import matplotlib

    formats: dict[str, dict[str, Any]] = {"pdf": {"metadata": {"CreationDate": None}}, "svg": {"metadata": {"Date": None}}}
    formats |= {"png": {"dpi": dpi}} if dpi else {}
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # each format would lay it out anew
    with matplotlib.rc_context({"svg.hashsalt": name}):
        for ending, how in formats.items():
            figure.savefig(folder / f"{name}.{ending}", **how)
    return [folder / f"{name}.{ending}" for ending in formats]


def page_svg(draw: Callable[[], Figure], name: str) -> str | None:
    """A figure, drawn at the page's size of text, as an `<svg>` element; None where there is nothing to draw."""
    with style(9):
        try:
            return svg(draw(), name)
        except NothingToDraw:
            return None


def svg(figure: Figure, name: str) -> str:
    """The figure as an `<svg>` element to put into a page: ids of its own, text as text, the page's colours and font."""
    import matplotlib

    buffer = BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    text = buffer.getvalue().decode()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
    text = re.sub(r"'DejaVu Sans'(?:, [^;\"]*)?", "var(--sans)", text)
    opening = rf'<svg viewBox="\1" role="img" style="width:100%;max-width:{figure.get_figwidth():.2f}in;height:auto">'
    text = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', opening, text, count=1)
    for color, variable in THEMED.items():
        text = text.replace(color, f"var(--{variable})")
    return text.replace("xlink:href", "href")


def slug_of(board: Board, figure: str = "") -> str:
    """A name for files and ids: `identities-joint-requests-profile`."""
    return slug(f"{board.task} {board.params} {board.setting} {figure}")


def slug(words: str) -> str:
    """Words as a name for files and ids."""
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")
