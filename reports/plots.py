"""Figures for papers, one function each: rows of the table in, matplotlib axes out.

    from slugbench.bench.frame import read_run
    from slugbench.reports import style, trade_off

    rows, run = read_run("runs/standard")
    with style():
        ax = trade_off(rows[(rows["task"] == "identities") & rows["request"].str.startswith("joint")])
    ax.figure.savefig("trade-off.pdf")

Each takes rows of one board (one task, one kind of request, one device) or a `tables.Board`, and draws into `ax`, or into
a figure of its own at the width of a column (3.3 in). `style` sets fonts of 7 to 9 points; without it yours are used. A
name has the same colour and marker everywhere (`looks.look`); hollow marks are controls and methods with unfinished
cells. Names stand beside their marks where that fits, else in a legend below.

    trade_off             forgetting against retaining, with the front of methods that none beats on both
    quality_cost          distance to the oracle against time, memory or any other cost
    relearning            forget accuracy over steps of fine-tuning on the forgotten, beside the oracle's
    differences           heat map, methods x requests, of a metric less the oracle's
    profile               every quality metric of every method, with the oracle's band; makes its own figure
    critical_difference   mean ranks, and which methods a test does not tell apart
    layer_map             SLUG's layers: importance against alignment, with each tower's front
    best_of_k             tuning: what k configurations give; makes its own figure

What cannot be drawn raises `NothingToDraw`, whose text says why.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

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
    legend,
    mark,
    marker_props,
    name_ends,
    name_level,
    name_spots,
    name_what_fits,
)
from .glossary import ARROW, about, is_bytes, unit_of
from .looks import FAINT, INK, MUTED, PAPER, look, looks, tower_look
from .statistics import Estimate, by_request
from .tables import INCOMPLETE, Board, Column, Line, boards
from .tuning import Choice

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows: TypeAlias = "pd.DataFrame | Board"
RELEARNED = re.compile(r"relearn@\d+")
AXES = ("layer", "importance", "alignment")
ENDS = {"original": "untouched original", "oracle": "another oracle"}
"""Controls that cost nothing or have no cost to compare: levels, not points."""


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


# ---------------------------------------------------------------- points


def trade_off(
    rows: Rows, *, x: str | None = None, y: str | None = None, ax: Axes | None = None, width: float = COLUMN
) -> Axes:
    """Forgetting against retaining; dotted lines are the oracle's, the thin one joins what no other method beats on both.

    Args:
        rows: of one board, or the board.
        x: metric of forgetting; by default the first axis that the board is ordered by.
        y: metric of retaining; by default the second.
        ax: where to draw; by default a new figure.
        width: of a new figure, in inches.

    Raises:
        NothingToDraw: there is no such pair of metrics.
    """
    board = one_board(rows)
    across, up = (column_of(board, name, i) for i, name in enumerate((x, y)))
    spots = _spots(board, lambda line: (line.entries[across.name].estimate, line.entries[up.name].estimate))
    own, ax = ax is None, axes_or_new(ax, width, 0.8 * width)
    for column, line in ((across, ax.axvline), (up, ax.axhline)):
        if column.oracle is not None:
            line(column.oracle, color=FAINT, lw=0.8, ls=(0, (1, 2)), zorder=1)
    losses = np.array([[_loss(line, c) for c in (across, up)] for line in board.ranked]).reshape(-1, 2)
    best = [board.ranked[i].method for i in np.flatnonzero(non_dominated(losses))]
    _join(ax, [spot for spot in spots if spot.text in best])
    _draw(ax, spots)
    ax.set(xlabel=axis_label(across), ylabel=axis_label(up))
    ax.margins(0.07)
    name_spots({ax: spots}, own=own)
    return ax


def quality_cost(rows: Rows, cost: str = "t_total", *, ax: Axes | None = None, width: float = COLUMN) -> Axes:
    """Distance to the oracle against a cost, on a log scale where the costs span a decade.

    Args:
        rows: of one board, or the board.
        cost: a cost metric, such as `t_total`, `peak_rss_bytes` or `bytes_delta`.
        ax: where to draw; by default a new figure.
        width: of a new figure, in inches.

    Raises:
        NothingToDraw: no method has both.
    """
    board = one_board(rows)
    own, ax = ax is None, axes_or_new(ax, width, 0.8 * width)
    name_spots({ax: _quality_cost(ax, board, cost)}, own=own)
    return ax


def quality_costs(rows: Rows, costs: Sequence[str], *, width: float = PAGE) -> Figure:
    """`quality_cost` for several costs side by side, with one legend where names do not fit; makes its own figure."""
    board = one_board(rows)
    known = [cost for cost in costs if _costly(board, cost)]
    if not known:
        raise NothingToDraw(f"no method has a distance to the oracle and one of {', '.join(costs)}.")
    figure, axes = canvas(width * (1 if len(known) > 1 else 0.5), width * 0.39, 1, len(known), sharey=True)
    places = {ax: _quality_cost(ax, board, cost) for ax, cost in zip(axes, known, strict=True)}
    for ax in axes[1:]:
        ax.set_ylabel("")
    name_spots(places, own=True)
    return figure


def memory_of(board: Board) -> str:
    """The memory metric to show: the accelerator's where it was measured, else the process's."""
    return next((m for m in ("peak_device_bytes", "peak_rss_bytes") if _costly(board, m)), "peak_rss_bytes")


def _costly(board: Board, cost: str) -> list[Line]:
    """The lines with a distance and a cost above 0, other than the two ends."""
    lines = [x for x in board.lines if x.distance is not None and cost in x.entries and x.method not in ENDS]
    lines = [x for x in lines if (x.entries[cost].estimate.value or 0) > 0]
    return lines if any(not x.control for x in lines) else []


def _quality_cost(ax: Axes, board: Board, cost: str) -> list[Spot]:
    shown = _costly(board, cost)
    if not shown:
        raise NothingToDraw(f"no method has both a distance to the oracle and {cost}.")
    spots = _spots(board, lambda line: (line.entries[cost].estimate, line.distance), shown)
    values = [spot.at[0] for spot in spots]
    column = board.column(cost)
    assert column is not None  # a line has an entry for each column, and no other
    _cost_axis(ax, column, decades=np.log10(max(values) / min(values)))
    _draw(ax, spots)
    top = max(high for x in board.lines if x.distance and (high := x.distance.high or x.distance.value))
    ax.set(ylim=(-0.03 * top, 1.08 * top), ylabel="mean distance to the oracle (↓)")
    for line in board.controls:
        if line.method in ENDS and line.distance is not None and line.distance.value is not None:
            name_level(ax, line.distance.value, ENDS[line.method], spots)
    return spots


def _cost_axis(ax: Axes, column: Column, *, decades: float) -> None:
    """A label with the unit, and plain numbers on a scale that suits so many decades."""
    bytes_ = is_bytes(column.name, column.unit)
    factor, unit = (1e9, "GB") if bytes_ else (1, unit_of(column.name, column.unit))
    ax.set_xlabel(f"{about(column.name).title}{f' ({unit})' if unit else ''} (↓)")
    ax.margins(x=0.1)
    if decades >= 1:
        ax.set_xscale("log")
        ax.xaxis.set_minor_formatter(lambda value, _: _few_minor(value / factor) if decades < 2 else "")
    ax.xaxis.set_major_formatter(lambda value, _: f"{value / factor:g}")


def layer_map(scores: pd.DataFrame, *, names: int = 8, ax: Axes | None = None, width: float = COLUMN) -> Axes:
    """SLUG's layers: importance (log scale where it spans a decade) against alignment, one colour a tower.

    Ringed and joined: each tower's front, the layers than which no other of the tower is both more important and less
    aligned. They are the ones that SLUG edits.

    Args:
        scores: one row a layer with `layer, tower, importance, alignment`, as `slugbench.methods.slug.layer_scores` returns.
        names: how many layers of the fronts are named at most, the most important first, where there is room.
        ax: where to draw; by default a new figure.
        width: of a new figure, in inches.

    Raises:
        UsageError: a column is missing.
        NothingToDraw: there are no layers.

    References:
        Cai, Tan and Asif, Targeted unlearning with single layer unlearning gradient, 2025, section 3.2.
    """
    if missing := {"layer", "tower", "importance", "alignment"} - set(scores.columns):
        raise UsageError(f"the layers' scores lack the columns {', '.join(sorted(missing))}; give those of `layer_scores`.")
    if not len(scores):
        raise NothingToDraw("no layer has a gradient.")
    own, ax = ax is None, axes_or_new(ax, width, 0.8 * width)
    if scores["importance"].min() > 0 and scores["importance"].max() >= 10 * scores["importance"].min():
        ax.set_xscale("log")
    named, towers = [], []
    for tower, part in scores.groupby("tower", sort=True):
        drawn = tower_look(str(tower))
        ax.plot(part["importance"], part["alignment"], ls="none", ms=2.8, alpha=0.55, **marker_props(drawn) | {"mew": 0})
        front = layer_front(part).sort_values("importance", ascending=False)
        props: Any = {"ls": "-", "lw": 0.8, "color": drawn.color, "ms": 4.5, "zorder": 4}
        ax.plot(front["importance"], front["alignment"], **props | marker_props(drawn._replace(ringed=True)))
        towers.append(Spot(str(tower), at(0), at(0), drawn))
        named += [Spot(_short(layer), at(x), at(y), drawn) for layer, x, y in zip(*(front[c] for c in AXES), strict=True)]
    ax.set(xlabel="importance ‖∇forget‖ / ‖θ‖ (↑)", ylabel="alignment |cos(∇forget, ∇retain)| (↓)")
    ax.margins(0.08)
    legend({ax: towers}, own=own)
    name_what_fits(ax, sorted(named, key=lambda spot: -spot.at[0])[:names])
    return ax


def layer_front(scores: pd.DataFrame) -> pd.DataFrame:
    """The layers than which no other is both more important and less aligned; where two tie in one, both stay."""
    return scores[non_dominated(np.column_stack([-scores["importance"], scores["alignment"]]), ties_stay=True)]


def _short(layer: str) -> str:
    """`visual.transformer.resblocks.7.mlp.c_fc.weight` as `visual.7.mlp.c_fc`."""
    return re.sub(r"(^|\.)transformer\.resblocks\.", r"\1", layer).removesuffix(".weight")


def non_dominated(losses: np.ndarray, *, ties_stay: bool = False) -> np.ndarray:
    """Which rows of losses (M, D) no other row beats: lower or equal on all and lower on one; with `ties_stay` lower on all.

    A row with a NaN neither beats nor stays.
    """
    one, other = losses[:, None], losses[None, :]
    with np.errstate(invalid="ignore"):
        lower = other < one
        beats: np.ndarray = lower.all(axis=2) if ties_stay else (other <= one).all(axis=2) & lower.any(axis=2)
    return ~beats.any(axis=1) & ~np.isnan(losses).any(axis=1)


# ---------------------------------------------------------------- curves


def relearning(rows: Rows, *, ax: Axes | None = None, width: float = COLUMN) -> Axes:
    """Forget accuracy over steps of fine-tuning on the forgotten: how soon it comes back.

    From the metrics `relearn@n`, n in steps. Bands are the table's intervals; the grey one is the oracle's, its mean and
    one standard deviation.

    Args:
        rows: of one board, or the board.
        ax: where to draw; by default a new figure.
        width: of a new figure, in inches.

    Raises:
        NothingToDraw: no such metric was measured.
    """
    board = one_board(rows)
    columns = {int(c.name.split("@")[1]): c for c in board.columns if RELEARNED.fullmatch(c.name)}
    curves = [(x, _curve(x, columns)) for x in board.lines if x.method != "oracle"]
    if not any(curve for _, curve in curves):
        raise NothingToDraw("relearning was not measured: there is no metric relearn@n.")
    own, ax = ax is None, axes_or_new(ax, width, 0.75 * width)
    ends = _oracle_band(ax, columns) + [_draw_curve(ax, line, curve) for line, curve in curves if curve]
    ax.set(xlabel="steps of fine-tuning on the forgotten", ylabel="forget accuracy")
    ax.margins(x=0.03)
    name_ends(ax, ends, own=own)
    return ax


def _curve(line: Line, columns: Mapping[int, Column]) -> list[tuple[int, Estimate]]:
    """(steps, accuracy) pairs where there is one."""
    found = [(steps, line.entries[column.name].estimate) for steps, column in sorted(columns.items())]
    return [(steps, estimate) for steps, estimate in found if estimate.value is not None]


def _oracle_band(ax: Axes, columns: Mapping[int, Column]) -> list[Spot]:
    known = [(steps, c.oracle, c.oracle_sd or 0.0) for steps, c in sorted(columns.items()) if c.oracle is not None]
    if not known:
        return []
    steps, mean, sd = map(np.array, zip(*known, strict=True))
    ax.fill_between(steps, mean - sd, mean + sd, color=FAINT, alpha=0.35, lw=0, zorder=1)
    ax.plot(steps, mean, color=MUTED, lw=1, ls=(0, (4, 2)), zorder=2)
    return [Spot("oracle", at(float(steps[-1])), at(float(mean[-1])), look("oracle", control=True))]


def _draw_curve(ax: Axes, line: Line, curve: Sequence[tuple[int, Estimate]]) -> Spot:
    drawn = look(line.method, control=line.control)
    hollow = line.control or not line.complete
    band = [(steps, e.low, e.high) for steps, e in curve if e.low is not None]
    if band:
        where, low, high = map(list, zip(*band, strict=True))
        ax.fill_between(where, low, high, color=drawn.color, alpha=0.12, lw=0, zorder=2)
    steps, values = zip(*((steps, e.value) for steps, e in curve), strict=True)
    ax.plot(steps, values, color=drawn.color, lw=1, ms=3.5, zorder=3, **marker_props(drawn, hollow=hollow))
    return Spot(_name(line), at(steps[-1]), at(values[-1]), drawn, hollow)


def best_of_k(known: Sequence[Choice], *, width: float = PAGE) -> Figure:
    """Tuning on one task: expected shortfall and retain accuracy of what is chosen among k configurations of a method.

    To the left, hollow, the defaults; at the right end of its curve what was chosen.
    """
    from matplotlib.ticker import MaxNLocator

    titles = {"shortfall": "shortfall (↓)", "retain": "retain accuracy (↑)"}
    figure, axes = canvas(width, 0.36 * width, 1, 2)
    for ax, (name, title) in zip(axes, titles.items(), strict=True):
        for method, how in ((choice.method, choice.how or {}) for choice in known):
            curve, props = how["best_of_k"][name], marker_props(look(method))
            ax.plot(range(1, len(curve) + 1), curve, color=look(method).color, lw=1, ms=4, markevery=[-1], **props)
            ax.plot(0, how["default_scores"][name], ls="none", ms=4, **marker_props(look(method), hollow=True))
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        ax.xaxis.set_major_formatter(lambda k, _: "default" if k == 0 else f"{k:g}")
        ax.set(xlabel="configurations to choose among", ylabel=title)
    legend({axes[0]: [Spot(choice.method, at(0), at(0), look(choice.method)) for choice in known]}, own=True)
    return figure


# ---------------------------------------------------------------- tables as pictures


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
    n_methods = sum(_name(line) in gaps.index for line in board.lines if not line.control)
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
    means = {_name(x): by_request(rows[rows["label"] == x.method]).mean(axis=1) for x in board.lines if x.method != "oracle"}
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
    """Every quality metric, a panel each: value and interval of every method, the oracle's band, chance dotted.

    Raises:
        NothingToDraw: no metric has a value.
    """
    import matplotlib

    board = one_board(rows)
    measured = {m for x in board.lines for m, entry in x.entries.items() if entry.estimate.value is not None}
    columns = [c for c in board.quality() if c.name in measured and not RELEARNED.fullmatch(c.name)]
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
    for i, line in enumerate(lines):
        drawn, estimate = look(line.method, control=line.control), line.entries[column.name].estimate
        if estimate.value is None:
            ax.annotate("—", (0.5, i), xycoords=("axes fraction", "data"), ha="center", va="center", color=MUTED)
            continue
        cells = board.rows[(board.rows["label"] == line.method) & (board.rows["metric"] == column.name)]["value"].dropna()
        ax.plot(cells, [i] * len(cells), "|", color=drawn.color, ms=4, mew=0.6, alpha=0.5, zorder=2)
        mark(ax, Spot(line.method, estimate, at(i), drawn, line.control or not line.complete))
    unit = f" ({u})" if (u := unit_of(column.name, column.unit)) else ""
    ax.set_title(f"{column.name}{unit}")
    ax.set_yticks(range(len(lines)), [_name(x) for x in lines])
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.locator_params(axis="x", nbins=4)
    ax.margins(x=0.08)
    n_ranked = sum(not x.control for x in lines)
    if 0 < n_ranked < len(lines):
        ax.axhline(n_ranked - 0.5, color=FAINT, lw=0.5)


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

    ax = axes_or_new(ax, width, 0.5 + 0.085 * len(ranks))
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
    return ax


# ---------------------------------------------------------------- pieces


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


def _spots(
    board: Board, place: Callable[[Line], tuple[Estimate, Estimate | None]], lines: Sequence[Line] = ()
) -> list[Spot]:
    drawn = looks(board.lines)
    spots = []
    for line in lines or board.lines:
        x, y = place(line)
        if x.value is not None and y is not None and y.value is not None:
            spots.append(Spot(_name(line), x, y, drawn[line.method], line.control or not line.complete))
    return spots


def _name(line: Line) -> str:
    return line.method + ("" if line.complete else INCOMPLETE)


def _loss(line: Line, column: Column) -> float:
    """Lower is better: the mean's distance to the oracle's where that is best, else the value in its direction."""
    entry = line.entries[column.name]
    value = entry.gap if column.better == "oracle" else entry.estimate.value
    if value is None:
        return float("nan")
    return {"oracle": abs(value), "higher": -value}.get(column.better, value)


def _draw(ax: Axes, spots: Sequence[Spot]) -> None:
    for spot in spots:
        mark(ax, spot)


def _join(ax: Axes, spots: Sequence[Spot]) -> None:
    """A thin line through points, from left to right."""
    if len(spots) > 1:
        ax.plot(*zip(*sorted(spot.at for spot in spots), strict=True), color=MUTED, lw=0.8, alpha=0.8, zorder=1.5)


def _few_minor(value: float) -> str:
    """Between powers of ten only 2 and 5 are written."""
    return f"{value:g}" if f"{value:.0e}"[0] in "25" and f"{value:e}"[2:5] in ("000", "999") else ""
