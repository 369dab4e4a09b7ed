"""A row or an elbow a method: differences by request, every metric beside the oracle's, mean ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from slugbench.bench import UsageError

from ._layout import (
    COLUMN,
    PAGE,
    Spot,
    at,
    axes_or_new,
    canvas,
    figure_of,
    mark,
    marker_props,
    small,
)
from ._subject import NothingToDraw, Rows, column_of, name_of, one_board
from .glossary import about, unit_of
from .looks import FAINT, INK, MUTED, PAPER, look
from .statistics import by_request
from .tables import Board, Column, Line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def differences(rows: Rows, metric: str | None = None, *, ax: Axes | None = None, width: float = PAGE) -> Axes:
    """Heat map, methods x requests: a metric less the oracle's, averaged over seeds; white is 0, grey was not measured.

    Args:
        rows: of one board, or the board.
        metric: by default the first axis that the board is ordered by.
        ax: where to draw; by default a new figure.
        width: of a new figure, in inches, at most.

    Raises:
        NothingToDraw: no value of it has an oracle value beside it.
    """
    import seaborn as sns

    board = one_board(rows)
    column = column_of(board, metric, 0)
    gaps = gap_table(board, column.name)
    if not gaps.notna().to_numpy().any():
        raise NothingToDraw(f"no request has an oracle value of {column.name}.")
    ax = axes_or_new(ax, min(width, max(COLUMN, 1.7 + 0.42 * gaps.shape[1])), 0.7 + 0.135 * len(gaps))
    ax.set_facecolor(FAINT)
    n_methods = sum(name_of(line) in gaps.index for line in board.lines if not line.control)
    reach = _reach(gaps.iloc[:n_methods] if n_methods else gaps)
    sns.heatmap(gaps, cmap="RdBu_r", vmin=-reach, vmax=reach, linewidths=0.4, linecolor=PAPER, ax=ax, cbar=False)
    clipped = "both" if _reach(gaps) > reach else "neither"
    bar = figure_of(ax).colorbar(ax.collections[0], ax=ax, fraction=0.03, pad=0.015, aspect=30, extend=clipped)
    bar.outline.set_visible(False)
    ax.set(xlabel="", ylabel="", title=f"{about(column.name).title} − oracle's")
    ax.set_yticks(np.arange(len(gaps)) + 0.5, list(gaps.index), rotation=0)
    ax.tick_params(length=0)
    ax.axhline(n_methods, color=INK, lw=0.8)
    _requests(ax, list(gaps.columns))
    _numbers(ax, gaps, reach)
    return ax


def _reach(gaps: pd.DataFrame) -> float:
    """How far from 0 the values go; those of controls may go further than the colours, which are for the methods."""
    known = np.abs(gaps.to_numpy())[gaps.notna().to_numpy()]
    return max(float(known.max()) if len(known) else 0.0, 0.01)


def gap_table(board: Board, metric: str) -> pd.DataFrame:
    """A metric's value less the oracle's mean, methods x requests, NaN where there is none; methods as on the board."""
    rows = board.rows[board.rows["metric"] == metric]
    rows = rows.assign(value=rows["value"] - rows["oracle_mean"]).dropna(subset="value")
    means = {
        name_of(x): by_request(rows[rows["label"] == x.method]).mean(axis=1) for x in board.lines if x.method != "oracle"
    }
    return pd.DataFrame(means, index=sorted(set(board.rows["request"]))).T


def _requests(ax: Axes, names: Sequence[str]) -> None:
    """Requests under the columns, upright where they are too long to lie."""
    each = _width(ax) / len(names)
    upright = max(map(len, names)) * 4.4 > each
    ax.set_xticks(np.arange(len(names)) + 0.5, list(names), rotation=90 if upright else 0)


def _numbers(ax: Axes, gaps: pd.DataFrame, reach: float) -> None:
    """The values in their cells, where cells are wide enough to read them."""
    if _width(ax) / gaps.shape[1] < 22:
        return
    for (i, j), value in np.ndenumerate(gaps.to_numpy()):
        if not np.isnan(value):
            text = f"{value:+.2f}".replace("0.", ".").replace("-", "−") if abs(value) >= 0.005 else "0"
            color = PAPER if abs(value) > 0.6 * reach else INK
            ax.text(j + 0.5, i + 0.5, text, ha="center", va="center", fontsize=7, color=color)


def _width(ax: Axes) -> float:
    """Of the axes, in points, once laid out."""
    figure_of(ax).draw_without_rendering()
    return ax.get_window_extent().width / figure_of(ax).dpi * 72


def profile(rows: Rows, *, width: float = PAGE) -> Figure:
    """Every metric of the board itself, a panel each: value and interval of every method, the oracle's band, chance dotted.

    Raises:
        NothingToDraw: no metric has a value.
    """
    import matplotlib

    board = one_board(rows)
    measured = {m for x in board.lines for m, entry in x.entries.items() if entry.estimate.value is not None}
    columns = [c for c in board.main() if c.name in measured]
    lines = [x for x in board.lines if any(x.entries[c.name].estimate.value is not None for c in columns)]
    if not columns or not lines:
        raise NothingToDraw("no metric has a value.")
    row = matplotlib.rcParams["font.size"] / 72 * 1.6
    across = min(4 if width <= PAGE else 5, len(columns))
    down = -(-len(columns) // across)
    height = down * (row * len(lines) + 0.55)
    figure, axes = canvas(width * (across + 0.6) / (4.6 if width <= PAGE else 5.6), height, down, across, sharey=True)
    for ax, column in zip(axes, columns, strict=False):
        _panel(ax, column, lines, board)
    for ax in axes[len(columns) :]:
        ax.set_visible(False)
    axes[0].set_ylim(len(lines) - 0.5, -0.5)
    return figure


def _panel(ax: Axes, column: Column, lines: Sequence[Line], board: Board) -> None:
    if column.oracle is not None:
        sd = column.oracle_sd or 0.0
        ax.axvspan(column.oracle - sd, column.oracle + sd, color=FAINT, alpha=0.35, lw=0, zorder=0)
        ax.axvline(column.oracle, color=FAINT, lw=0.8, zorder=1)
    if column.chance is not None:
        ax.axvline(column.chance, color=INK, lw=0.6, ls=":", zorder=1)
    of_column = board.rows[board.rows["metric"] == column.name]
    span = float(of_column["value"].max() - of_column["value"].min())
    for i, line in enumerate(lines):
        drawn, estimate = look(line.method, control=line.control), line.entries[column.name].estimate
        if estimate.value is None:
            ax.annotate("—", (0.5, i), xycoords=("axes fraction", "data"), ha="center", va="center", color=MUTED)
            continue
        cells = of_column[of_column["label"] == line.method]["value"].dropna()
        ticks = _apart(cells, span)
        ax.plot(ticks, [i] * len(ticks), "|", color=drawn.color, ms=4, mew=0.6, alpha=0.5, zorder=2)
        mark(ax, Spot(line.method, estimate, at(i), drawn, line.control or not line.complete))
    unit = f" ({u})" if (u := unit_of(column.name, column.unit)) else ""
    ax.set_title(f"{column.name}{unit}")
    ax.set_yticks(range(len(lines)), [name_of(x) for x in lines])
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.locator_params(axis="x", nbins=4)
    ax.margins(x=0.08)
    n_ranked = sum(not x.control for x in lines)
    if 0 < n_ranked < len(lines):
        ax.axhline(n_ranked - 0.5, color=FAINT, lw=0.5)


def _apart(values: pd.Series, span: float) -> pd.Series:
    """Values of which no two would be drawn as one tick: a file holds each by itself, and there are thousands."""
    return values[~(values / span * 200).round().duplicated()] if span > 0 else values[:1]


def critical_difference(
    ranks: pd.Series, p_values: pd.DataFrame, *, alpha: float = 0.05, ax: Axes | None = None, width: float = COLUMN
) -> Axes:
    """Mean ranks on a line (1 is best, on the left); a bar joins methods of which no pair differs at `alpha`.

    Args:
        ranks: mean rank over requests, by method.
        p_values: symmetric, methods x methods, corrected for the number of pairs.
        alpha: the level of the corrected tests.
        ax: where to draw; by default a new figure.
        width: of a new figure, in inches.

    Raises:
        UsageError: the two do not speak of the same methods.
        NothingToDraw: there are fewer than two.

    References:
        Demšar, Statistical comparisons of classifiers over multiple data sets, JMLR 2006. Benavoli, Corani and Mangili,
        Should we really use post-hoc tests based on mean-ranks?, JMLR 2016 (why the tests are Wilcoxon's).
    """
    if set(ranks.index) != set(p_values.index) or set(p_values.index) != set(p_values.columns):
        raise UsageError("ranks and p-values name different methods; give both for the same ones.")
    if len(ranks) < 2:
        raise NothingToDraw("ranks compare two methods or more.")
    from scikit_posthocs import critical_difference_diagram

    names = 2 * max(len(f"{method} 10.0") for method in ranks.index) * 0.6 * small() / 72  # on both sides of the line
    ax = axes_or_new(ax, min(max(width, names + 1.4), max(width, PAGE)), 0.5 + 0.085 * len(ranks))
    drawn = {method: look(method) for method in ranks.index}
    made = critical_difference_diagram(
        ranks,
        p_values.loc[ranks.index, ranks.index],
        alpha=alpha,
        ax=ax,
        text_h_margin=0.02 * (ranks.max() - ranks.min()),
        label_fmt_left="{label} {rank:.1f}",
        label_fmt_right="{rank:.1f} {label}",
        marker_props={"s": 0},  # one marker for all; each method's own is drawn below
        elbow_props={"linewidth": 0.7},
        crossbar_props={"linewidth": 2, "color": INK, "solid_capstyle": "butt"},
        color_palette={method: each.color for method, each in drawn.items()},
    )
    for text in made["labels"]:
        text.set_color(INK)  # some of the colours are too pale to read
    for method, rank in ranks.items():
        ax.plot(rank, 0, ls="none", ms=5, zorder=5, clip_on=False, **marker_props(drawn[method]))
    ax.spines["top"].set_visible(True)
    ax.locator_params(axis="x", integer=True)
    ax.set_xticks([tick for tick in ax.get_xticks() if 1 <= tick <= len(ranks)])
    for _ in range(6):  # names reach out of the axes by less, the narrower these are: the layout needs further looks
        figure_of(ax).draw_without_rendering()
    return ax
