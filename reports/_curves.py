"""Lines: relearning over steps, and what tuning reaches over tries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ._layout import (
    COLUMN,
    PAGE,
    Spot,
    at,
    axes_or_new,
    canvas,
    legend,
    marker_props,
    name_ends,
)
from ._subject import RELEARNED, NothingToDraw, Rows, name_of, one_board
from .looks import FAINT, MUTED, look
from .statistics import Estimate
from .tables import Column, Line
from .tuning import Choice

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def relearning(rows: Rows, *, ax: Axes | None = None, width: float = COLUMN) -> Axes:
    """Forget accuracy over steps of fine-tuning on the forgotten: how soon it comes back.

    From the metrics `relearn@n+s`, n pictures a target and s steps. Bands are the table's intervals; the grey one is the
    oracle's, its mean and one standard deviation.

    Args:
        rows: of one board, or the board.
        ax: where to draw; by default a new figure.
        width: of a new figure, in inches.

    Raises:
        NothingToDraw: no such metric was measured.
    """
    board = one_board(rows)
    columns = {int(found[1]): c for c in board.columns if (found := RELEARNED.fullmatch(c.name))}
    curves = [(x, _curve(x, columns)) for x in board.lines if x.method != "oracle"]
    if not any(curve for _, curve in curves):
        raise NothingToDraw("relearning was not measured: there is no metric relearn@n+s.")
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
    return Spot(name_of(line), at(steps[-1]), at(values[-1]), drawn, hollow)


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
            ax.plot(
                range(1, len(curve) + 1), curve, color=look(method).color, lw=1, ms=4, markevery=[-1], label=method, **props
            )
            ax.plot(0, how["default_scores"][name], ls="none", ms=4, **marker_props(look(method), hollow=True))
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        ax.xaxis.set_major_formatter(lambda k, _: "default" if k == 0 else f"{k:g}")
        ax.set(xlabel="configurations to choose among", ylabel=title)
    legend({axes[0]: [Spot(choice.method, at(0), at(0), look(choice.method)) for choice in known]}, own=True)
    return figure
