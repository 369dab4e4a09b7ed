"""What figures need to be legible in print: a style, canvases, and names beside points that do not overlap.

Figures are made without pyplot, so nothing is kept between calls and no display is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from .looks import FAINT, INK, MUTED, PAPER, Look
from .statistics import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMN, PAGE = 3.3, 6.9
"""Widths in inches: of one column of a paper in two, and of both."""

Box = tuple[float, float, float, float]
"""Left, bottom, right, top."""


@contextmanager
def style(size: float = 7.5) -> Iterator[None]:
    """Everything drawn within has these fonts (points), thin lines and no top and right frame."""
    import matplotlib

    inks = ("axes.labelcolor", "text.color", "xtick.labelcolor", "ytick.labelcolor")
    sizes = ("xtick.labelsize", "ytick.labelsize", "legend.fontsize")
    settings: dict[str, Any] = {
        **{key: INK for key in inks},
        **{key: max(7.0, size - 0.5) for key in sizes},
        **{key: FAINT for key in ("axes.edgecolor", "xtick.color", "ytick.color")},
        **{key: size for key in ("font.size", "axes.labelsize", "axes.titlesize")},
        **{key: PAPER for key in ("figure.facecolor", "axes.facecolor")},
        **{key: 0.6 for key in ("axes.linewidth", "xtick.major.width", "ytick.major.width")},
        **{key: False for key in ("axes.spines.top", "axes.spines.right", "legend.frameon")},
        **{key: 2.5 for key in ("xtick.major.size", "ytick.major.size")},
        **{key: 2.5 for key in ("xtick.major.pad", "ytick.major.pad", "axes.labelpad")},
        "xtick.minor.width": 0.4,
        "xtick.minor.size": 1.5,
        "axes.titlelocation": "left",
        "axes.titlepad": 3,
        "lines.markersize": 0.65 * size,
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],  # ships with matplotlib: the same everywhere
        "axes.unicode_minus": True,
        "text.hinting": "none",  # hinted for a screen, text is measured up to a twentieth narrower than PDF and SVG draw it
        "pdf.fonttype": 42,  # TrueType: text stays text in editors, and no journal refuses it
        "savefig.facecolor": PAPER,
    }
    with matplotlib.rc_context(settings):  # type: ignore[arg-type]  # keys are literals to the stubs
        yield


def canvas(width: float, height: float, rows: int = 1, columns: int = 1, **grid: Any) -> tuple[Figure, list[Axes]]:
    """A figure of a size in inches and its axes, row by row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(rows, columns, squeeze=False, **grid).flat)


def axes_or_new(ax: Axes | None, width: float, height: float) -> Axes:
    """The axes given, or those of a new figure."""
    return canvas(width, height)[1][0] if ax is None else ax


def figure_of(ax: Axes) -> Figure:
    """The figure that axes are in."""
    figure: Any = ax.figure  # of type `Figure | SubFigure | None`
    return figure


@dataclass(frozen=True)
class Spot:
    """A drawn point, or the end of a drawn line, that wants its name beside it."""

    text: str
    x: Estimate
    y: Estimate
    look: Look
    hollow: bool = False

    @property
    def at(self) -> tuple[float, float]:
        """Where it is, in data."""
        assert self.x.value is not None and self.y.value is not None  # else it would not have been drawn
        return self.x.value, self.y.value


def at(value: float) -> Estimate:
    """A number without a spread."""
    return Estimate(value, None, None, "none", 0, 0, 0)


def mark(ax: Axes, spot: Spot, *, zorder: float = 4, **changes: Any) -> None:
    """A point with its bars; thin bars for ranges, which are no intervals; hollow for what is not ordered."""
    import matplotlib

    for spread, axis in ((spot.x, "xerr"), (spot.y, "yerr")):
        if spread.low is None or spread.high is None or spread.value is None:
            continue
        reach: Any = {axis: [[max(spread.value - spread.low, 0)], [max(spread.high - spread.value, 0)]]}
        thick = 0.5 if spread.spread == "range" else 1.1
        ax.errorbar(*spot.at, **reach, fmt="none", ecolor=spot.look.color, elinewidth=thick, alpha=0.6, zorder=zorder - 1)
    props = marker_props(spot.look, hollow=spot.hollow) | {"ms": spot.look.size * matplotlib.rcParams["lines.markersize"]}
    ax.plot(*spot.at, **props | {"ls": "none", "zorder": zorder} | changes)


def marker_props(look: Look, *, hollow: bool = False) -> dict[str, Any]:
    """Keywords of `Axes.plot` for a look's marker."""
    hollow = hollow and look.marker != "*"
    props: dict[str, Any] = {"marker": look.marker, "mfc": PAPER if hollow else look.color, "mfcalt": PAPER}
    edge = INK if look.ringed else look.color if hollow or look.fill != "full" else PAPER
    return props | {"mec": edge, "mew": 0.9 if edge != PAPER else 0.3, "fillstyle": "full" if hollow else look.fill}


# ---------------------------------------------------------------- names


def name_spots(places: Mapping[Axes, Sequence[Spot]], *, own: bool) -> None:
    """Write each name beside its point; where they do not all fit, one legend below instead.

    Args:
        places: the points of each axes, all of one figure.
        own: whether the figure is ours, to be made higher for the legend.
    """
    written = [_beside(ax, spots) for ax, spots in places.items()]
    if all(fit for _, fit in written):
        return
    for artists, _ in written:
        for artist in artists:
            artist.remove()
    legend(places, own=own)


def name_what_fits(ax: Axes, spots: Sequence[Spot]) -> None:
    """Write names beside points, the first first, and leave out those that would lie on another or on a point of a line."""
    from matplotlib.patheffects import withStroke

    _drawn(ax)
    paths = [ax.transData.transform_path(line.get_path()) for line in ax.lines if line.get_linestyle() == "-"]
    marks = [_around(x, y, 3) for path in paths for x, y in np.asarray(path.vertices).tolist()]
    lines = [_around(x, y, 3) for path in paths for x, y in np.asarray(path.interpolated(20).vertices).tolist()]
    for text in _beside(ax, spots, partly=True, hard=marks, soft=lines)[0]:
        text.set_path_effects([withStroke(linewidth=1.5, foreground=PAPER)])  # readable over the points of other layers


def name_ends(ax: Axes, spots: Sequence[Spot], *, own: bool) -> None:
    """Write the names of lines to the right of their ends, pushed apart; a legend below where they are too many."""

    renderer = _drawn(ax)
    frame, row = ax.get_window_extent(renderer), 1.2 * small() * figure_of(ax).dpi / 72
    if len(spots) * row > frame.height:
        return legend({ax: spots}, own=own)
    ordered = sorted(spots, key=lambda spot: spot.at[1])
    ends = np.array([ax.transData.transform(spot.at)[1] for spot in ordered])
    heights = _apart(ends, row, frame.y0 + row / 2, frame.y1)
    if np.abs(heights - ends).max() > 3 * row:
        return legend({ax: spots}, own=own)
    for spot, height in zip(ordered, heights, strict=True):
        share = (height - frame.y0) / frame.height
        line = {"arrowstyle": "-", "color": spot.look.color, "lw": 0.5, "shrinkA": 0, "shrinkB": 3, "relpos": (0, 0.5)}
        ax.annotate(spot.text, spot.at, (1.06, share), xycoords="data", textcoords="axes fraction",
                    va="center", ha="left", fontsize=small(), arrowprops=line, annotation_clip=False)  # fmt: skip


def name_level(ax: Axes, height: float, text: str, spots: Sequence[Spot]) -> None:
    """A dashed line across with its name at the end, above or below, where fewest points are hidden."""
    ax.axhline(height, color=FAINT, lw=0.8, ls=(0, (4, 3)), zorder=1)
    renderer = _drawn(ax)
    marks = [_around(x, y, 9) for x, y in (ax.transData.transform(spot.at) for spot in spots)]
    marks += [other.get_window_extent(renderer).extents for other in ax.texts]
    props: Any = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "color": MUTED, "fontsize": small()}
    tried = []
    for end, up in product((1, 0), (True, False)):
        side: Any = {"ha": "right" if end else "left", "va": "bottom" if up else "top"}
        tried.append(ax.annotate(text, (end, height), (2 - 4 * end, 1.5 if up else -2), in_layout=False, **props, **side))
    frame = ax.get_window_extent(renderer).extents
    costs = [_hidden(each.get_window_extent(renderer).extents, marks, frame) for each in tried]
    for i, each in enumerate(tried):
        if i != costs.index(min(costs)):
            each.remove()


def legend(places: Mapping[Axes, Sequence[Spot]], *, own: bool) -> None:
    """One legend of all names below the figure, which grows by as much if it is ours, else below the axes."""
    from matplotlib.lines import Line2D
    from matplotlib.transforms import ScaledTranslation

    ax = next(iter(places))
    figure = figure_of(ax)
    spots = {spot.text: spot for spots in places.values() for spot in spots}
    handles = [
        Line2D([], [], ls="none", ms=4.5 * s.look.size, **marker_props(s.look, hollow=s.hollow)) for s in spots.values()
    ]
    bounds = figure.bbox if own else ax.get_window_extent()
    each = max(map(len, spots)) * 0.6 * small() + 14
    look: Any = {
        "ncols": int(np.clip(bounds.width / figure.dpi * 72 // each, 1, len(spots))), "fontsize": small(),
        "handlelength": 1, "handletextpad": 0.3, "columnspacing": 0.8, "labelspacing": 0.25, "borderpad": 0.2,
    }  # fmt: skip
    if own:
        height = figure.get_figheight()
        figure.set_figheight(height + 1.5 * small() / 72 * -(-len(spots) // look["ncols"]))  # about; room to lay it out
        made = figure.legend(handles, list(spots), loc="outside lower center", **look)
        renderer = _drawn(ax)
        figure.set_figheight(height + made.get_window_extent(renderer).height / figure.dpi)
    else:
        below = ax.get_window_extent(_drawn(ax)).y0 - ax.get_tightbbox(_drawn(ax)).y0  # type: ignore[union-attr]
        lower = ScaledTranslation(0, -below / figure.dpi - 0.03, figure.dpi_scale_trans)
        ax.legend(
            handles, list(spots), loc="upper center", bbox_to_anchor=(0.5, 0), bbox_transform=ax.transAxes + lower, **look
        )


def _apart(wanted: np.ndarray, gap: float, low: float, high: float) -> np.ndarray:
    """Ascending heights near those wanted, at least `gap` apart, from `low` up and, where there is room, below `high`."""
    places = np.maximum(wanted, low)
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + gap)
    places[-1] = min(places[-1], high)
    for i in range(len(places) - 2, -1, -1):
        places[i] = min(places[i], places[i + 1] - gap)
    return places


def _beside(
    ax: Axes, spots: Sequence[Spot], *, partly: bool = False, hard: Sequence[Box] = (), soft: Sequence[Box] = ()
) -> tuple[list[Any], bool]:
    """Write each name where it overlaps least with points, bars and names placed before it.

    Args:
        ax: where.
        spots: what to name.
        partly: leave out names that would lie on a point or on a name.
        hard: what more to keep off.
        soft: what more to keep off where that is possible.

    Returns:
        The texts, and whether none lies on a point or a name and few need a line to their point.
    """
    renderer = _drawn(ax)
    scale = figure_of(ax).dpi / 72
    points: list[Any] = [ax.transData.transform(spot.at) for spot in spots]
    solid: list[Box] = [_around(x, y, 3.5 * scale) for x, y in points]
    solid += [*hard, *(text.get_window_extent(renderer).extents for text in ax.texts)]
    thin = [*soft, *(bar for spot in spots for bar in _bars(ax, spot))]
    thin += [_padded(line.get_window_extent(renderer).extents) for line in ax.lines if line.is_dashed()]  # straight ones
    frame = ax.get_window_extent(renderer).extents
    artists: list[Any] = []
    fits = True
    order = zip(spots, points, strict=True)
    for spot, point in order if partly else sorted(order, key=lambda pair: tuple(pair[1])):
        color = MUTED if spot.look.color == MUTED else INK
        text = ax.annotate(spot.text, spot.at, (0, 0), textcoords="offset points", fontsize=small(), color=color, zorder=5)
        text.set_in_layout(False)
        size = text.get_window_extent(renderer)
        places = [(p, _box(p, point, size, scale)) for p in _places(size.width / scale, size.height / scale)]
        costs = [(_hidden(box, solid, frame), sum(_common(box, bar) for bar in thin), p[2]) for p, box in places]
        i = min(range(len(places)), key=lambda i: (round(4 * costs[i][0] + costs[i][1], 3), costs[i][2]))
        clash = costs[i][0] > 0.02 * size.width * size.height
        fits &= not clash
        if partly and clash:
            text.remove()
            continue
        (left, bottom, ring), box = places[i]
        text.set_position((left, bottom))
        solid.append(box)
        artists.append(text)
        if ring > 1:  # too far off to belong to its point without a line
            nearest = np.clip((0, 0), (left, bottom), (left + size.width / scale, bottom + size.height / scale))
            line = {"arrowstyle": "-", "color": FAINT, "lw": 0.5, "shrinkA": 0, "shrinkB": 2}
            leader = ax.annotate("", spot.at, tuple(nearest), textcoords="offset points", arrowprops=line, zorder=2)
            leader.set_in_layout(False)
            artists.append(leader)
    n_leaders = len(artists) - len(spots)
    return artists, fits and 4 * n_leaders <= len(spots)  # more of them are a puzzle


def _drawn(ax: Axes) -> Any:
    """The renderer, after the layout has been worked out."""
    figure: Any = figure_of(ax)
    figure.draw_without_rendering()
    return figure.canvas.get_renderer()


def small() -> float:
    """The size of names, in points: that of the numbers on an axis."""
    import matplotlib
    from matplotlib.font_manager import FontProperties

    return FontProperties(size=matplotlib.rcParams["xtick.labelsize"]).get_size_in_points()  # it may be a word


def _bars(ax: Axes, spot: Spot) -> Iterator[Box]:
    """The pixels that a point's error bars cover."""
    x, y = spot.x, spot.y
    for ends in ([(x.low, y.value), (x.high, y.value)], [(x.value, y.low), (x.value, y.high)]):
        if all(v is not None for end in ends for v in end):
            (x0, y0), (x1, y1) = ax.transData.transform(np.array(ends, dtype=float))
            yield _padded((x0, y0, x1, y1))


def _around(x: float, y: float, reach: float) -> Box:
    return x - reach, y - reach, x + reach, y + reach


def _padded(box: Box) -> Box:
    return box[0] - 1, box[1] - 1, box[2] + 1, box[3] + 1


def _places(width: float, height: float) -> Iterator[tuple[float, float, int]]:
    """Offsets in points of a text's lower left corner, nearest first, with the ring they lie on.

    No further out: beside a crowd nobody finds the point that a name belongs to.
    """
    for ring, away in enumerate((5, 10, 16), start=1):
        yield away, -height / 2 + 1, ring
        yield -away - width, -height / 2 + 1, ring
        for up in (away - 1, -away - height + 2):
            yield away - 2, up, ring
            yield -away - width + 2, up, ring
            yield -width / 2, up, ring


def _box(place: tuple[float, float, int], point: Any, size: Any, scale: float) -> Box:
    left, bottom = point[0] + place[0] * scale, point[1] + place[1] * scale
    return left, bottom, left + size.width, bottom + size.height


def _hidden(box: Box, solid: Iterable[Box], frame: Box) -> float:
    """The area of a box that lies on points and names, or outside the frame."""
    outside = (box[2] - box[0]) * (box[3] - box[1]) - _common(box, frame)
    return sum(_common(box, other) for other in solid) + outside


def _common(a: Box, b: Box) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
