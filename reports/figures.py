"""Pictures of a board: forgetting against retaining, quality against time, every metric against the oracle.

Each function takes a board and returns a matplotlib `Figure` made without pyplot, so nothing is kept between calls.
One colour and marker belongs to one method everywhere; all are told apart without colour, too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from slugbench.bench import report

from .glossary import about, unit_of
from .statistics import Estimate
from .tables import Board, Column, Line, boards, untuned
from .tuning import Choice, by_task

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, FAINT, PAPER = "#1f2430", "#667080", "#9aa0ab", "#fefefe"
"""Text, side remarks, lines, background; the page swaps them for its own light and dark colours."""

# Okabe and Ito's colours (Color universal design, 2008) less yellow, which is lost on white.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#7f5ab8", "#8c5a2b")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
FIXED = (
    "slug",
    "salun",
    "ga",
    "svd",
    "ft",
    "gaft",
    "random_label",
    "ssd",
    "neggrad_plus",
    "l1_sparse",
    "scrub",
    "salun_slug",
)
CONTROL_MARKERS = {"original": "s", "oracle": "*", "mask": "P", "noise": "X", "random_layer": "d", "shuffled": "h"}


class Look(NamedTuple):
    """How a method is drawn."""

    color: str
    marker: str
    size: float
    ringed: bool = False
    """Whether its mark has a dark edge: the tuned variant of the method that has the same mark without."""


def looks(lines: Sequence[Line]) -> dict[str, Look]:
    """Colour and marker of every line: fixed for our own methods, by name for others, ink for controls."""
    methods = method_looks([x.method for x in lines if not x.control])
    return {x.method: _control_look(x) if x.control else methods[x.method] for x in lines}


def method_looks(labels: Sequence[str]) -> dict[str, Look]:
    """Colour and marker of methods; a tuned one has those of its defaults, with a ring."""
    taken = {name: i for i, name in enumerate(FIXED)}
    for label in sorted(labels):
        taken.setdefault(untuned(label), len(taken))
    return {x: _method_look(taken[untuned(x)])._replace(ringed=x != untuned(x)) for x in labels}


def _method_look(i: int) -> Look:
    return Look(PALETTE[i % len(PALETTE)], MARKERS[(i + i // len(PALETTE)) % len(MARKERS)], 7)


def _control_look(line: Line) -> Look:
    marker = CONTROL_MARKERS.get(line.method.split("(")[0], "h")
    return Look(INK, marker, 11 if marker == "*" else 6)


# ---------------------------------------------------------------- the figures


def trade_off(board: Board) -> Figure | None:
    """Forgetting (x) against retaining (y); the dotted cross is the oracle. None where the board has no such pair."""
    if len(board.axes) < 2:
        return None
    x, y = (board.column(name) for name in board.axes[:2])
    assert x is not None and y is not None  # axes are columns of the board
    if "retain" not in about(y.name).kind and y.better != "higher":
        return None
    with _style():
        figure, ax = _figure(6.4, 4.8)
        if x.oracle is not None and y.oracle is not None:
            _cross(ax, x, y)
        spots = _points(ax, board, lambda line: (line.entries[x.name].estimate, line.entries[y.name].estimate))
        ax.set(xlabel=_axis_label(x), ylabel=_axis_label(y), title="What is forgotten, what is kept")
        ax.margins(0.08)
        _label(figure, ax, spots)
    return figure


def quality_time(board: Board) -> Figure | None:
    """Distance to the oracle against seconds, search included (log scale). None where either is unknown."""
    time = board.column("t_total")
    shown = [x for x in board.lines if x.distance is not None and time and (x.entries["t_total"].estimate.value or 0) > 0]
    shown = [x for x in shown if not x.control or x.method.split("(")[0] not in {"original", "oracle"}]
    if not any(not x.control for x in shown):
        return None
    with _style():
        figure, ax = _figure(6.4, 4.8)
        ax.set_xscale("log")
        spots = _points(ax, board, lambda line: (line.entries["t_total"].estimate, line.distance), shown)
        ax.margins(x=0.12)
        for line in board.controls:
            if line.method in {"original", "oracle"} and line.distance is not None and line.distance.value is not None:
                _level(ax, line.distance.value, {"original": "untouched original", "oracle": "another oracle"}[line.method])
        ax.set_ylim(0, 1.08 * max(top for x in board.lines if x.distance and (top := x.distance.high or x.distance.value)))
        ax.set(xlabel="time, search included (s)", ylabel="mean distance to the oracle", title="What a second buys")
        ax.xaxis.set_major_formatter(_plain)
        ax.xaxis.set_minor_formatter(_few_minor)
        _label(figure, ax, spots)
    return figure


def profile(board: Board) -> Figure | None:
    """Every quality metric, a panel each: value and interval of every method, the oracle's band, chance dotted."""
    import seaborn as sns

    columns = [c for c in board.quality() if any(x.entries[c.name].estimate.value is not None for x in board.lines)]
    lines = [x for x in board.lines if any(x.entries[c.name].estimate.value is not None for c in columns)]
    if not columns or not lines:
        return None
    with _style():
        across = min(5, len(columns))
        down = -(-len(columns) // across)
        figure, _ = _figure(2.25 * across + 1.3, down * (0.26 * len(lines) + 0.95), axes=False)
        grid = figure.subplots(down, across, squeeze=False, sharey=True)
        look = looks(board.lines)
        for ax, column in zip(grid.flat, columns, strict=False):
            _panel(ax, column, lines, look, board.rows)
            sns.despine(ax=ax, left=True)
        for ax in list(grid.flat)[len(columns) :]:
            ax.set_visible(False)
        grid[0, 0].set_ylim(len(lines) - 0.5, -0.5)
    return figure


def _panel(ax: Axes, column: Column, lines: Sequence[Line], look: Mapping[str, Look], rows: pd.DataFrame) -> None:
    if column.oracle is not None:
        sd = column.oracle_sd or 0.0
        ax.axvspan(column.oracle - sd, column.oracle + sd, color=FAINT, alpha=0.35, lw=0, zorder=0)
        ax.axvline(column.oracle, color=FAINT, lw=1, zorder=1)
    if column.chance is not None:
        ax.axvline(column.chance, color=INK, lw=0.8, ls=":", zorder=1)
    for i, line in enumerate(lines):
        e = line.entries[column.name].estimate
        if e.value is None:
            ax.annotate("—", (0.5, i), xycoords=("axes fraction", "data"), ha="center", va="center", color=MUTED)
            continue
        cells = rows[(rows["label"] == line.method) & (rows["metric"] == column.name) & rows["value"].notna()]["value"]
        ax.plot(cells, [i] * len(cells), "|", color=look[line.method].color, ms=6, alpha=0.5, zorder=2)
        _mark(ax, (e.value, i), look[line.method], (e, None), hollow=line.control or not line.complete)
    unit = f" ({u})" if (u := unit_of(column.name, column.unit)) else ""
    ax.set_title(f"{column.name}{unit}", loc="left")
    ax.set_yticks(range(len(lines)), [x.method + ("†" if not x.complete else "") for x in lines])
    ax.tick_params(axis="y", length=0)
    ax.locator_params(axis="x", nbins=4)
    ax.margins(x=0.08)
    n_ranked = sum(not x.control for x in lines)
    if 0 < n_ranked < len(lines):
        ax.axhline(n_ranked - 0.5, color=FAINT, lw=0.6)


def best_of_k(known: Sequence[Choice]) -> Figure:
    """Tuning on one task: expected shortfall and retain accuracy of what is chosen among k configurations of a method.

    To the left, hollow, the defaults; at the right end of its curve what was chosen.
    """
    import seaborn as sns
    from matplotlib.ticker import MaxNLocator

    look = method_looks([choice.method for choice in known])
    titles = {"shortfall": "shortfall (lower is better)", "retain": "retain accuracy (higher is better)"}
    with _style():
        figure, _ = _figure(8.4, max(3.4, 1.2 + 0.2 * len(known)), axes=False)
        for ax, (name, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
            for method, how in ((choice.method, choice.how or {}) for choice in known):
                color, marker, *_ = look[method]
                curve = how["best_of_k"][name]
                ax.plot(
                    range(1, len(curve) + 1), curve, color=color, lw=1.4, label=method, marker=marker, ms=5, markevery=[-1]
                )
                ax.plot(0, how["default_scores"][name], marker, ms=5, mfc=PAPER, mec=color, mew=1.2)
            ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            ax.xaxis.set_major_formatter(lambda k, _: "default" if k == 0 else f"{k:g}")
            ax.set(xlabel="configurations to choose among", title=title)
            sns.despine(ax=ax)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=8)
    return figure


# ---------------------------------------------------------------- pieces


@dataclass(frozen=True)
class _Spot:
    """A drawn point that wants its name beside it."""

    text: str
    x: Estimate
    y: Estimate
    color: str


def _points(
    ax: Axes, board: Board, at: Callable[[Line], tuple[Estimate, Estimate | None]], lines: Sequence[Line] | None = None
) -> list[_Spot]:
    look = looks(board.lines)
    spots = []
    for line in board.lines if lines is None else lines:
        x, y = at(line)
        if x.value is None or y is None or y.value is None:
            continue
        _mark(ax, (x.value, y.value), look[line.method], (x, y), hollow=line.control or not line.complete)
        spots.append(_Spot(line.method + ("" if line.complete else "†"), x, y, MUTED if line.control else INK))
    return spots


def _mark(
    ax: Axes, at: tuple[float, float], look: Look, spreads: tuple[Estimate | None, Estimate | None], *, hollow: bool
) -> None:
    """A point with its bars; thin bars for ranges, which are no intervals; hollow for what is not ordered."""
    for spread, axis in zip(spreads, ("xerr", "yerr"), strict=True):
        if spread is None or spread.low is None or spread.high is None or spread.value is None:
            continue
        reach: Any = {axis: [[max(spread.value - spread.low, 0)], [max(spread.high - spread.value, 0)]]}
        thick = 0.8 if spread.spread == "range" else 1.6
        ax.errorbar(*at, **reach, fmt="none", ecolor=look.color, elinewidth=thick, alpha=0.75, zorder=3)
    face = PAPER if hollow and look.marker != "*" else look.color
    edge = look.color if hollow else INK if look.ringed else PAPER
    ax.plot(*at, look.marker, ms=look.size, mfc=face, mec=edge, mew=1.2 if hollow or look.ringed else 0.8, zorder=4)


def _cross(ax: Axes, x: Column, y: Column) -> None:
    assert x.oracle is not None and y.oracle is not None
    ax.axvline(x.oracle, color=FAINT, lw=1, ls=(0, (1, 2)), zorder=1)
    ax.axhline(y.oracle, color=FAINT, lw=1, ls=(0, (1, 2)), zorder=1)


def _level(ax: Axes, height: float, text: str) -> None:
    ax.axhline(height, color=FAINT, lw=1, ls=(0, (4, 3)), zorder=1)
    ax.annotate(text, (1, height), xycoords=("axes fraction", "data"), xytext=(-2, 3), textcoords="offset points",
                ha="right", va="bottom", fontsize=8, color=MUTED, in_layout=False)  # fmt: skip


def _label(figure: Figure, ax: Axes, spots: Sequence[_Spot]) -> None:
    """Write each name beside its point where it overlaps least with points, bars and names placed before it."""
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]  # the Agg canvas has one
    figure.draw_without_rendering()
    scale = figure.dpi / 72
    points: list[Any] = [ax.transData.transform(np.array([s.x.value, s.y.value], dtype=float)) for s in spots]
    taken = [(x - 6 * scale, y - 6 * scale, x + 6 * scale, y + 6 * scale) for x, y in points]
    taken += [bar for spot in spots for bar in _bars(ax, spot)]
    taken += [text.get_window_extent(renderer).extents for text in ax.texts]
    inside = ax.get_window_extent(renderer)
    frame = (inside.x0, inside.y0, inside.x1, inside.y1)
    for spot, at in sorted(zip(spots, points, strict=True), key=lambda pair: tuple(pair[1])):
        where: Any = {"xy": (spot.x.value, spot.y.value), "textcoords": "offset points"}
        text = ax.annotate(spot.text, xytext=(0, 0), fontsize=9, color=spot.color, zorder=5, **where)
        text.set_in_layout(False)
        size = text.get_window_extent(renderer)
        width, height = size.width / scale, size.height / scale
        best = min(_places(width, height), key=lambda p: _overlap(p, at, size, scale, taken, frame))
        text.set_position(best[:2])
        taken.append(_box(best, at, size, scale))
        if best[2] > 1:  # too far off to belong to its point without a line
            middle = best[0] + width / 2, best[1] + height / 2
            line = {"arrowstyle": "-", "color": FAINT, "lw": 0.6, "shrinkA": 6, "shrinkB": 4}
            ax.annotate("", xytext=middle, arrowprops=line, zorder=2, **where).set_in_layout(False)


def _bars(ax: Axes, spot: _Spot) -> Iterator[tuple[float, float, float, float]]:
    """The pixels that a point's error bars cover."""
    x, y = spot.x, spot.y
    for ends in ([(x.low, y.value), (x.high, y.value)], [(x.value, y.low), (x.value, y.high)]):
        if all(v is not None for end in ends for v in end):
            (x0, y0), (x1, y1) = ax.transData.transform(np.array(ends, dtype=float))
            yield x0 - 1, y0 - 2, x1 + 1, y1 + 2


def _places(width: float, height: float) -> Iterator[tuple[float, float, int]]:
    """Offsets in points of a text's lower left corner, nearest first, with the ring they lie on."""
    for ring, away in enumerate((8, 16, 28, 42), start=1):
        yield away, -height / 2 + 1, ring
        yield -away - width, -height / 2 + 1, ring
        for up in (away - 2, -away - height + 4):
            yield away - 3, up, ring
            yield -away - width + 3, up, ring
            yield -width / 2, up, ring


def _box(
    place: tuple[float, float, int], at: tuple[float, float], size: Any, scale: float
) -> tuple[float, float, float, float]:
    left, bottom = at[0] + place[0] * scale, at[1] + place[1] * scale
    return left, bottom, left + size.width, bottom + size.height


def _overlap(place: Any, at: Any, size: Any, scale: float, taken: Sequence[Any], frame: Any) -> tuple[float, int]:
    box = _box(place, at, size, scale)
    area = sum(_common(box, other) for other in taken)
    outside = size.width * size.height - _common(box, frame)
    return round(area + 3 * outside, 3), place[2]


def _common(a: Sequence[float], b: Sequence[float]) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _axis_label(column: Column) -> str:
    known = about(column.name)
    words = {"oracle": "nearest to the oracle is best", "higher": "higher is better", "lower": "lower is better"}
    name = column.name if known.title == column.name else f"{column.name}: {known.title}"
    return f"{name} ({words.get(column.better, '')})"


def _plain(value: float, _: float) -> str:
    return f"{value:g}"


def _few_minor(value: float, _: float) -> str:
    """Between powers of ten only 2 and 5 are written."""
    return f"{value:g}" if f"{value:e}"[0] in "25" and f"{value:.0e}"[0] in "25" else ""


@contextmanager
def _style() -> Iterator[None]:
    import matplotlib
    import seaborn as sns

    quiet: dict[str, Any] = {
        "axes.edgecolor": FAINT,
        "axes.labelcolor": INK,
        "text.color": INK,
        "xtick.color": INK,
        "ytick.color": INK,
    }
    sizes: dict[str, Any] = {
        "axes.titlesize": 10,
        "axes.labelsize": 9,
        "xtick.labelsize": 8,
        "ytick.labelsize": 8.5,
        "font.size": 9,
    }
    sizes |= {"axes.titlelocation": "left", "axes.titleweight": "bold", "axes.linewidth": 0.8}
    quiet |= {
        "xtick.major.width": 0.8,
        "ytick.major.width": 0.8,
        "xtick.minor.width": 0.5,
        "figure.facecolor": PAPER,
        "axes.facecolor": PAPER,
    }
    fonts: dict[str, Any] = {
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],
    }  # ships with matplotlib: the same everywhere
    style: Any = {**sns.axes_style("ticks"), **quiet, **sizes, **fonts}
    with matplotlib.rc_context(style):
        yield


def _figure(width: float, height: float, *, axes: bool = True) -> tuple[Figure, Axes]:
    import seaborn as sns
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    ax: Any = figure.add_subplot() if axes else None
    if ax is not None:
        sns.despine(ax=ax)
    return figure, ax


# ---------------------------------------------------------------- files

FIGURES: dict[str, Callable[[Board], Any]] = {"trade-off": trade_off, "quality-time": quality_time, "profile": profile}


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
    for color, variable in ((INK, "--ink"), (MUTED, "--muted"), (FAINT, "--faint"), (PAPER, "--paper")):
        text = text.replace(color, f"var({variable})")
    return text.replace("xlink:href", "href")


def slug_of(board: Board, figure: str = "") -> str:
    """A name for files and ids: `identities-joint-requests-profile`."""
    return slug(f"{board.task} {board.params} {board.setting} {figure}")


def slug(words: str) -> str:
    """Words as a name for files and ids."""
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


@report("figures")
@dataclass(frozen=True)
class Figures:
    """Every figure as PDF and PNG, for papers and slides."""

    dpi: int = 200

    def __call__(self, frame: pd.DataFrame, runs: Sequence[Mapping[str, Any]], out: Path) -> list[Path]:
        """Write `figures/*.pdf` and `figures/*.png`."""
        import matplotlib

        folder = Path(out) / "figures"
        folder.mkdir(parents=True, exist_ok=True)
        written: list[Path] = []
        for name, figure in drawn(frame, runs):
            path = folder / name
            with matplotlib.rc_context({"pdf.fonttype": 42}):  # TrueType: text stays text in editors
                figure.savefig(path.with_suffix(".pdf"), metadata={"CreationDate": None})
            figure.savefig(path.with_suffix(".png"), dpi=self.dpi)
            written += [path.with_suffix(".pdf"), path.with_suffix(".png")]
        return written


def drawn(frame: pd.DataFrame, runs: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Figure]]:
    """Every figure that there is, with its file's name."""
    for board in boards(frame, runs):
        for name, draw in FIGURES.items():
            if (figure := draw(board)) is not None:
                yield slug_of(board, name), figure
    for task, known in by_task(runs).items():
        yield slug(f"{task} tuning"), best_of_k(known)
