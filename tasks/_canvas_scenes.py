"""Draws small pictures of one of eight objects in one of ten styles: what the models of `canvas` learn and classifiers name.

Eight of the styles and six of the objects are for testing, the others for development and tuning.

Every picture has its own place, size, angle, colour, pattern phase and noise. Each object can be told in each style, and
each style on each object: an object in a style it does not survive would look forgotten for free.

Legend for array shapes: N pictures, S = SIDE * FINE points along a side, 3 colour channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

STYLES = ("plain", "dots", "stripes", "neon", "mosaic", "ink", "warm", "night", "chalk", "blueprint")
OBJECTS = ("ball", "box", "triangle", "ring", "cross", "bars", "moon", "plank")
SIDE, FINE = 16, 4
"""Pixels along a side, and points drawn along a pixel: edges are grey, which tells a ball from a box at this size."""
NOISE = 0.02
"""Standard deviation of the noise on each channel, of 1."""

COLOURS = np.array(
    [[0.85, 0.15, 0.15], [0.10, 0.55, 0.20], [0.15, 0.30, 0.85], [0.80, 0.20, 0.70], [0.05, 0.60, 0.65], [0.55, 0.35, 0.10]]
)
"""Of objects, where the style leaves them theirs."""


class Scene(NamedTuple):
    """What varies from picture to picture of one cell; one entry a picture."""

    x: np.ndarray
    y: np.ndarray
    size: np.ndarray
    angle: np.ndarray
    colour: np.ndarray
    """(N, 3)."""
    phase: np.ndarray
    """(N, 2) of patterns, in [0, 1)."""

    def rows(self, rows: slice | np.ndarray) -> Scene:
        """Of some pictures."""
        return Scene(*(column[rows] for column in self))


def draw(style: np.ndarray, thing: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Pictures (N, 3, 16, 16), float32 in [0, 1], of `OBJECTS[thing[i]]` in `STYLES[style[i]]`."""
    style, thing = np.asarray(style), np.asarray(thing)
    scene = drawn_scene(len(style), rng)
    parts = [slice(first, first + AT_A_TIME) for first in range(0, len(style), AT_A_TIME)]
    small = np.concatenate([_clean(scene.rows(part), style[part], thing[part]) for part in parts])
    small = small + NOISE * rng.standard_normal(small.shape)
    return np.clip(small, 0, 1).astype(np.float32).transpose(0, 3, 1, 2)


AT_A_TIME = 80
"""Pictures drawn together: their points fit into a processor's cache."""


def _clean(scene: Scene, style: np.ndarray, thing: np.ndarray) -> np.ndarray:
    """(N, 16, 16, 3) without noise."""
    inside, edge = _shapes(scene, thing)
    picture = np.empty((len(style), SIDE * FINE, SIDE * FINE, 3))
    for number, name in enumerate(STYLES):
        mine = style == number
        if mine.any():
            picture[mine] = _STYLES[name](scene.rows(mine), inside[mine], edge[mine])
    return picture.reshape(len(style), SIDE, FINE, SIDE, FINE, 3).mean((2, 4))


def drawn_scene(n: int, rng: np.random.Generator) -> Scene:
    """What varies, drawn: places within a pixel or so of the middle, sizes of half a side, 15 degrees either way, and the
    palette's colours a little lighter or darker."""
    colour = COLOURS[rng.integers(len(COLOURS), size=n)] + rng.uniform(-0.07, 0.07, (n, 3))
    return Scene(
        rng.uniform(-0.16, 0.16, n),
        rng.uniform(-0.16, 0.16, n),
        rng.uniform(0.52, 0.72, n),
        rng.uniform(-0.26, 0.26, n),
        np.clip(colour, 0, 1),
        rng.random((n, 2)),
    )


# ---------------------------------------------------------------- objects


def _grid() -> tuple[np.ndarray, np.ndarray]:
    line = (np.arange(SIDE * FINE) + 0.5) / (SIDE * FINE) * 2 - 1
    return np.meshgrid(line, line)


def _shapes(scene: Scene, thing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, S, S) where the object is, and where it is within a pixel and a half of its outline."""
    gx, gy = _grid()
    x, y = gx - scene.x[:, None, None], gy - scene.y[:, None, None]
    cos, sin = np.cos(scene.angle)[:, None, None], np.sin(scene.angle)[:, None, None]
    u, v = cos * x + sin * y, cos * y - sin * x
    size = scene.size[:, None, None]
    distance = np.empty(u.shape)
    for number, name in enumerate(OBJECTS):
        mine = thing == number
        if mine.any():
            distance[mine] = _OBJECTS[name](u[mine], v[mine], size[mine])
    return distance < 0, np.abs(distance) < 1.5 / SIDE


def _ball(u: np.ndarray, v: np.ndarray, size: np.ndarray) -> np.ndarray:
    return np.hypot(u, v) - 0.88 * size  # smaller than a box, whose corners are hard to draw at this size


def _box(u: np.ndarray, v: np.ndarray, size: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(u), np.abs(v)) - size


def _triangle(u: np.ndarray, v: np.ndarray, size: np.ndarray) -> np.ndarray:
    slanted = 0.866 * np.abs(u) - 0.5 * v
    return np.maximum(slanted, v) - 0.62 * size


def _ring(u: np.ndarray, v: np.ndarray, size: np.ndarray) -> np.ndarray:
    return np.abs(np.hypot(u, v) - 0.78 * size) - 0.24 * size


def _cross(u: np.ndarray, v: np.ndarray, size: np.ndarray) -> np.ndarray:
    arms = np.minimum(np.abs(u), np.abs(v)) - 0.3 * size
    return np.maximum(arms, np.maximum(np.abs(u), np.abs(v)) - size)


def _bars(u: np.ndarray, v: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Two upright bars, with a gap between them."""
    return np.maximum(np.abs(np.abs(u) - 0.62 * size) - 0.3 * size, np.abs(v) - size)


def _moon(u: np.ndarray, v: np.ndarray, size: np.ndarray) -> np.ndarray:
    return np.maximum(np.hypot(u, v) - size, 0.85 * size - np.hypot(u - 0.55 * size, v))


def _plank(u: np.ndarray, v: np.ndarray, size: np.ndarray) -> np.ndarray:
    """One bar across."""
    return np.maximum(np.abs(u) - 1.15 * size, np.abs(v) - 0.4 * size)


_OBJECTS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "ball": _ball,
    "box": _box,
    "triangle": _triangle,
    "ring": _ring,
    "cross": _cross,
    "bars": _bars,
    "moon": _moon,
    "plank": _plank,
}
"""Signed distances to the outline, negative inside, in halves of a side; exact enough to draw a line of even width."""


# ---------------------------------------------------------------- styles


def _over(ground: np.ndarray, inside: np.ndarray, colour: np.ndarray) -> np.ndarray:
    return np.where(inside[..., None], colour[:, None, None, :], ground)


def _paper(n: int, colour: tuple[float, float, float]) -> np.ndarray:
    return np.broadcast_to(np.array(colour), (n, SIDE * FINE, SIDE * FINE, 3))


def _plain(scene: Scene, inside: np.ndarray, edge: np.ndarray) -> np.ndarray:
    return _over(_paper(len(inside), (0.78, 0.78, 0.78)), inside, scene.colour)


def _dots(scene: Scene, inside: np.ndarray, edge: np.ndarray) -> np.ndarray:
    """Dark dots, a quarter of a side apart, on a pale yellow ground."""
    gx, gy = _grid()
    u, v = (g / 0.5 + scene.phase[:, i, None, None] for i, g in enumerate((gx, gy)))
    dot = np.hypot(u % 1 - 0.5, v % 1 - 0.5) < 0.27
    ground = np.where(dot[..., None], np.array((0.25, 0.25, 0.30)), np.array((0.97, 0.93, 0.70)))
    return _over(ground, inside, scene.colour)


def _stripes(scene: Scene, inside: np.ndarray, edge: np.ndarray) -> np.ndarray:
    """Broad slanting stripes of white and blue."""
    gx, gy = _grid()
    stripe = ((gx + gy) / 0.8 + scene.phase[:, 0, None, None]) % 1 < 0.5
    ground = np.where(stripe[..., None], np.array((0.98, 0.98, 0.98)), np.array((0.48, 0.60, 0.82)))
    return _over(ground, inside, scene.colour)


def _neon(scene: Scene, inside: np.ndarray, edge: np.ndarray) -> np.ndarray:
    """A glowing outline on black."""
    bright = scene.colour / scene.colour.max(1, keepdims=True)
    bright = 0.35 + 0.65 * bright
    ground = np.where(inside[..., None], 0.4 * bright[:, None, None, :], np.array((0.02, 0.02, 0.04)))
    return _over(ground, edge, bright)


def _mosaic(scene: Scene, inside: np.ndarray, edge: np.ndarray) -> np.ndarray:
    """Tiles of four pixels with pale joints, some of them lighter and some darker."""
    points = np.arange(SIDE * FINE)
    tile = points // (4 * FINE)
    joint = (points % (4 * FINE)) < FINE
    shade = 0.14 * (np.sin(12.9 * tile[:, None] + 78.2 * tile[None] + 40 * scene.phase[:, 0, None, None]) > 0) - 0.07
    picture = _over(_paper(len(inside), (0.72, 0.80, 0.72)), inside, scene.colour) + shade[..., None]
    joints = (joint[:, None] | joint[None])[None, ..., None]
    return np.where(joints, 0.7 * picture + 0.28, picture)


def _ink(scene: Scene, inside: np.ndarray, edge: np.ndarray) -> np.ndarray:
    """Black on white paper, the object hatched within a heavy outline."""
    gx, _ = _grid()
    hatch = (gx / 0.25 + scene.phase[:, 0, None, None]) % 1 < 0.5
    grey = np.where(inside, np.where(hatch, 0.25, 0.6), 0.97)
    return np.where(edge & inside, 0.05, grey)[..., None].repeat(3, -1)


def _warm(scene: Scene, inside: np.ndarray, edge: np.ndarray) -> np.ndarray:
    """Everything in reds and oranges, lighter at the top."""
    _, gy = _grid()
    height = (gy / 2 + 0.5)[None, ..., None]
    ground = (1 - height) * np.array((1.0, 0.85, 0.45)) + height * np.array((0.98, 0.55, 0.25))
    depth = 0.25 + 0.35 * scene.colour.mean(1)
    return _over(np.broadcast_to(ground, (*inside.shape, 3)), inside, depth[:, None] * np.array((1.3, 0.25, 0.1)))


def _night(scene: Scene, inside: np.ndarray, edge: np.ndarray) -> np.ndarray:
    """Moonlit, on a deep blue sky with stars."""
    gx, gy = _grid()
    stars = np.zeros(inside.shape, dtype=bool)
    for i in range(4):
        place = (scene.phase * (7, 11) + i * np.array((0.37, 0.61))) % 1 * 2 - 1
        stars |= np.maximum(np.abs(gx - place[:, 0, None, None]), np.abs(gy - place[:, 1, None, None])) < 0.07
    ground = np.where(stars[..., None], 0.9, np.array((0.05, 0.07, 0.28)))
    return _over(ground, inside, 0.35 * scene.colour + np.array((0.42, 0.46, 0.60)))


def _chalk(scene: Scene, inside: np.ndarray, edge: np.ndarray) -> np.ndarray:
    """Pale strokes on a green board, the object filled in thinly."""
    gx, gy = _grid()
    stroke = ((gx - gy) / 0.25 + scene.phase[:, 0, None, None]) % 1 < 0.5
    cover = np.where(edge & inside, 0.95, np.where(inside & stroke, 0.6, np.where(inside, 0.3, 0.0)))[..., None]
    pale = 0.75 + 0.25 * scene.colour[:, None, None, :]
    return cover * pale + (1 - cover) * np.array((0.12, 0.30, 0.20))


def _blueprint(scene: Scene, inside: np.ndarray, edge: np.ndarray) -> np.ndarray:
    """White outlines on blue squared paper."""
    gx, gy = _grid()
    line = [((g / 0.5 + scene.phase[:, i, None, None]) % 1) < 0.2 for i, g in enumerate((gx, gy))]
    ground = np.where((line[0] | line[1])[..., None], np.array((0.40, 0.58, 0.90)), np.array((0.16, 0.36, 0.78)))
    ground = np.where(inside[..., None], ground * 0.55 + 0.4, ground)
    return np.where((edge & inside)[..., None], 0.97, ground)


_STYLES: dict[str, Callable[[Scene, np.ndarray, np.ndarray], np.ndarray]] = {
    "plain": _plain,
    "dots": _dots,
    "stripes": _stripes,
    "neon": _neon,
    "mosaic": _mosaic,
    "ink": _ink,
    "warm": _warm,
    "night": _night,
    "chalk": _chalk,
    "blueprint": _blueprint,
}
