"""The pictures of UnlearnCanvas as they are released, `{Style}/{Object}/{n}.jpg`, and what each of them serves for.

Picture n of an object shows the same photograph in all styles. So a number as a whole goes to one part: no photograph is
trained on in one style and asked about in another. Nothing here needs torch but `split`.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from slugbench.bench import UsageError, cached
from slugbench.bench.registry import did_you_mean

from ._image_folders import Gallery, PictureSplit, Preparation, Shown, and_more, folders_in, pictures_in, unreadable
from ._unlearncanvas import DOMAINS, OBJECTS, STYLES, Grid

if TYPE_CHECKING:
    import torch

IMAGES = 20
"""Of each style and object."""
TRAINED_SIDE = 256
"""Pixels of a side at which the released model was fine-tuned, though it draws larger ones."""


# ---------------------------------------------------------------- listing


@cache
def gallery(root: Path, grid: Grid, images: int) -> Gallery:
    """The first pictures of each style and object; `label` is the place of style and object in the benchmark's whole grid,
    `index` the number in the file's name.

    Raises:
        UsageError: a folder or a picture is missing, or they lie a folder too deep.
    """
    _check_folders(root, grid)
    numbers = range(1, images + 1)
    names = [f"{style}/{object_}/{n}.jpg" for style, object_ in grid.cells for n in numbers]
    there = {f"{style}/{object_}/{name}" for style, object_ in grid.cells for name in pictures_in(root / style / object_)}
    if missing := [name for name in names if name not in there]:
        raise UsageError(
            f"{root} misses {len(missing)} of its {len(names)} pictures: {and_more(missing)}; unpack all of them."
        )
    cells = [cell_of(style, object_) for style, object_ in grid.cells]
    return Gallery(root, names, np.repeat(cells, images), np.tile(numbers, len(cells)))


def cell_of(style: str, object_: str) -> int:
    """The place of a style and an object in the whole grid, styles outermost."""
    return STYLES.index(style) * len(OBJECTS) + OBJECTS.index(object_)


def concept(cell: np.ndarray, domain: str) -> np.ndarray:
    """Which class of a domain such places have."""
    style, object_ = np.divmod(cell, len(OBJECTS))
    return style if domain == "style" else object_


def _check_folders(root: Path, grid: Grid) -> None:
    """Whether all styles lie where they should."""
    there = folders_in(root)
    missing = [style for style in grid.styles if style not in there]
    if not missing:
        return
    if len(missing) == len(grid.styles):
        if any(style in folders_in(root.parent) for style in grid.styles):
            raise UsageError(f"data={root.parent} is a folder too deep: it holds the styles; give the one above it.")
        if inside := [name for name in there if any(style in folders_in(root / name) for style in grid.styles)]:
            raise UsageError(f"the styles lie a folder too deep, in {root / inside[0]}; move them up into {root}.")
    hint = did_you_mean(missing[0], there)
    raise UsageError(
        f"{root} has no folder for {len(missing)} of {len(grid.styles)} styles: {and_more(missing)}{hint}; it needs "
        "{Style}/{Object}/{n}.jpg as UnlearnCanvas releases them, see `slugbench doctor unlearncanvas`."
    )


# ---------------------------------------------------------------- dealing


class Parts(NamedTuple):
    """Which pictures of each style and object serve for what, by the numbers in their names."""

    real: range
    """What drawn pictures are compared with: the first quarter, 1 to 5 of 20 as by the protocol."""
    validation: range
    train: range


def parts(images: int) -> Parts:
    """Of so many pictures: the first quarter, then a seventh, then the rest; at least one in each."""
    real = max(1, images // 4)
    validation = max(1, images // 7)
    return Parts(range(1, real + 1), range(real + 1, real + validation + 1), range(real + validation + 1, images + 1))


def chosen(known: Gallery, numbers: range, domain: str, target: int, *, forget: bool) -> Shown:
    """The pictures of a part that show a class, or the others."""
    return known.where(np.isin(known.index, numbers) & ((concept(known.label, domain) == target) == forget))


# ---------------------------------------------------------------- pixels


def preparation(side: int) -> Preparation:
    """The square in the middle, of so many pixels a side, from -1 to 1: as the release trained."""
    half = (0.5, 0.5, 0.5)
    return Preparation({"size": (side, side), "mean": half, "std": half, "interpolation": "bilinear"})


def split(shown: Shown, tokens_CT: torch.Tensor, domain: str, side: int) -> PictureSplit:
    """Pictures under their prompts; `label` in a domain, `cell` and `index` as the gallery has them."""
    import torch

    cell = torch.from_numpy(shown.label)
    label = torch.from_numpy(concept(shown.label, domain))
    columns = {"text": tokens_CT[cell], "label": label, "cell": cell, "index": torch.from_numpy(shown.rows)}
    members = {DOMAINS[domain][i]: torch.nonzero(label == i)[:, 0] for i in label.unique().tolist()}
    return PictureSplit(shown.gallery.pictures(preparation(side), keep=False), shown.rows, columns, members)


def check_whole(known: Gallery) -> None:
    """Decode all pictures, once for each state of the data set.

    Raises:
        UsageError: some are not whole; all of them are named.
    """

    def make(path: Path) -> None:
        with ThreadPoolExecutor() as pool:  # Pillow lets others run while it decodes
            faults = list(pool.map(unreadable, known.files))
        if broken := [name for name, fault in zip(known.names, faults, strict=True) if fault]:
            raise UsageError(_broken(known.root, broken))
        path.write_text("whole")

    cached("whole", {"content": known.content}, make, suffix=".txt")


def _broken(root: Path, names: Sequence[str]) -> str:
    return f"{len(names)} pictures in {root} are not whole: {and_more(names)}; fetch these anew."
