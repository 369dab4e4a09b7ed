"""Points on two axes: forgetting against retaining, distance against costs, and SLUG's layers."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

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
    legend,
    mark,
    marker_props,
    name_level,
    name_spots,
    name_what_fits,
)
from ._subject import NothingToDraw, Rows, axis_label, column_of, name_of, one_board
from .glossary import about, is_bytes, unit_of
from .looks import FAINT, MUTED, looks, tower_look
from .statistics import Estimate, non_dominated
from .tables import Board, Column, Line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

AXES = ("layer", "importance", "alignment")
ENDS = {"original": "untouched original", "oracle": "another oracle"}
"""Controls that cost nothing or have no cost to compare: levels, not points."""


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


# ---------------------------------------------------------------- pieces


def _spots(
    board: Board, place: Callable[[Line], tuple[Estimate, Estimate | None]], lines: Sequence[Line] = ()
) -> list[Spot]:
    drawn = looks(board.lines)
    spots = []
    for line in lines or board.lines:
        x, y = place(line)
        if x.value is not None and y is not None and y.value is not None:
            spots.append(Spot(name_of(line), x, y, drawn[line.method], line.control or not line.complete))
    return spots


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
