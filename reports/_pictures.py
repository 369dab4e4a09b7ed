"""Grids of what models drew: a row a method, a column a prompt and seed, the same for all.

The pictures are those that cells keep in their arrays (`bench.pictures`), in the folders of the runs.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from slugbench.bench.pictures import Kind, Pictures, read

from ._layout import PAGE, canvas
from .looks import MUTED
from .tables import Board

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIRST = ("original", "oracle")
"""What the others are to be looked at beside."""
PIXELS = 32
"""A picture with sides of at most so many pixels is shown as squares, and kept without loss."""


class Column(NamedTuple):
    """What was asked for."""

    kind: Kind
    prompt: str
    seed: int


class Grid(NamedTuple):
    """What the models of one request drew."""

    request: str
    base_seed: int
    columns: tuple[Column, ...]
    rows: dict[str, np.ndarray]
    """(n, H, W, 3) uint8 by method: the original, an oracle, then as on the board."""

    @property
    def pixels(self) -> bool:
        """Whether the pictures are so small that their pixels are to be seen."""
        return max(next(iter(self.rows.values())).shape[1:3]) <= PIXELS

    @property
    def kinds(self) -> list[tuple[Kind, int]]:
        """Kinds of columns and how many of each stand side by side."""
        return [(kind, len(list(same))) for kind, same in groupby(column.kind for column in self.columns)]


def grids(board: Board, runs: Sequence[Mapping[str, Any]]) -> list[Grid]:
    """A grid for each of the board's requests whose cells have pictures: of the first base model, of first method seeds."""
    made = []
    cells = board.rows.drop_duplicates("cell")
    cells = cells[cells["status"] == "ok"].sort_values(["base_seed", "method_seed"], kind="stable")
    order = sorted((line.method for line in board.lines), key=lambda m: FIRST.index(m) if m in FIRST else len(FIRST))
    for request, of_request in cells.groupby("request", sort=True):
        for base_seed in of_request["base_seed"].unique().tolist():
            same_base = of_request[of_request["base_seed"] == base_seed]
            first = same_base.drop_duplicates("label").set_index("label")["cell"]
            found = {label: shown for label in order if label in first and (shown := _read(first[label], runs))}
            if found:
                columns = _columns(next(iter(found.values())))
                rows = {label: shown.image for label, shown in found.items() if _columns(shown) == columns}
                made.append(Grid(str(request), base_seed, columns, rows))
                break
    return made


def _read(cell: str, runs: Sequence[Mapping[str, Any]]) -> Pictures | None:
    places = (Path(run["folder"]) / "arrays" / f"{cell}.npz" for run in runs if "folder" in run)
    return next((found for place in places if (found := read(place))), None)


def _columns(shown: Pictures) -> tuple[Column, ...]:
    return tuple(Column(*facts) for facts in zip(shown.kind, shown.prompt, shown.seed, strict=True))


def data_uri(image: np.ndarray) -> str:
    """A picture (H, W, 3) uint8 as it stands in a page: PNG where pixels count, else JPEG."""
    from PIL import Image

    buffer, small = BytesIO(), max(image.shape[:2]) <= PIXELS
    how: dict[str, Any] = {"format": "PNG", "optimize": True} if small else {"format": "JPEG", "quality": 85}
    Image.fromarray(image).save(buffer, **how)
    return f"data:image/{how['format'].lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def picture_grid(grid: Grid, *, width: float = PAGE) -> Figure:
    """The pictures of one request side by side; makes its own figure.

    Args:
        grid: of `grids`.
        width: in inches.
    """
    gap = 0.08  # of a picture's side, which is 1; three times as much between kinds
    left = [i * (1 + gap) + 2 * gap * g for i, g in enumerate(_group(grid))]
    each = 0.82 * width / (left[-1] + 1)  # in inches: the rest of the width is for names
    figure, (ax,) = canvas(width, each * (1 + gap) * len(grid.rows) + 1.15)
    for place, images in enumerate(grid.rows.values()):
        for x, image in zip(left, images, strict=True):
            ax.imshow(_enlarged(image), extent=(x, x + 1, -(1 + gap) * place - 1, -(1 + gap) * place), interpolation="none")
    ax.set(xlim=(0, left[-1] + 1), ylim=(-(1 + gap) * len(grid.rows) + gap, 0), aspect="equal")
    ax.set_yticks([-(1 + gap) * place - 0.5 for place in range(len(grid.rows))], list(grid.rows))
    titles = [f"{column.prompt}, {column.seed}" for column in grid.columns]
    ax.set_xticks([x + 0.5 for x in left], titles, rotation=45, ha="left", rotation_mode="anchor")
    ax.tick_params(length=0, top=False, labeltop=True, bottom=False, labelbottom=False)
    ax.spines[:].set_visible(False)
    for kind, middle in _middles(grid, left):
        ax.annotate(kind, (middle, 0), (0, -3), ("data", "axes fraction"), "offset points",
                    ha="center", va="top", color=MUTED, annotation_clip=False)  # fmt: skip
    return figure


def _group(grid: Grid) -> list[int]:
    """Of each column the number of its group."""
    return [number for number, (_, n) in enumerate(grid.kinds) for _ in range(n)]


def _middles(grid: Grid, left: Sequence[float]) -> Iterator[tuple[Kind, float]]:
    """Where the middle of each group of columns is."""
    start = 0
    for kind, n in grid.kinds:
        yield kind, (left[start] + left[start + n - 1] + 1) / 2
        start += n


def _enlarged(image: np.ndarray) -> np.ndarray:
    """Pixels repeated until there are enough that viewers, which smooth what they enlarge, leave squares square."""
    times = -(-128 // max(image.shape[:2]))
    return image.repeat(times, 0).repeat(times, 1)
