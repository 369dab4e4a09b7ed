"""Draws the fictitious people of the task `identities`: parametric faces, 32 x 32 RGB, from a seed alone.

A person is a point of 22 latents; a picture of it adds what changes from photograph to photograph. Shapes are
composed from back to front by their signed distance, so that edges are smooth at one sample a pixel, and only
arithmetic and square roots touch pixels, so that every platform draws the same bytes.

Legend for array shapes: N pictures, P people, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
SIZE = 32
CHUNK = 512  # pictures drawn at once: keeps the working set in the cache

LATENTS = (
    "skin_hue", "skin_light", "face_width", "face_height", "jaw", "hair_red", "hair_light", "hair_volume",
    "hair_length", "fringe", "parting", "eye_spacing", "eye_size", "eye_height", "iris", "brow_weight",
    "brow_tilt", "nose_length", "nose_width", "mouth_width", "lip_weight", "ear_size",
)  # fmt: skip
SIBLING_SPREAD = 0.35
"""How far members of a family lie from its centre, in standard deviations of the population."""

BACKGROUNDS = {
    "red": (0.80, 0.25, 0.22),
    "green": (0.25, 0.65, 0.30),
    "blue": (0.25, 0.35, 0.80),
    "yellow": (0.88, 0.80, 0.30),
    "white": (0.95, 0.95, 0.95),
    "black": (0.10, 0.10, 0.12),
}
OCCLUDED = 0.3
"""Share of pictures in which something is held before the face."""


class Pictures(NamedTuple):
    """Drawn pictures and what is true of each."""

    image_N3HW: NDArray[np.uint8]
    background_N: NDArray[np.int64]
    """Position in `BACKGROUNDS`."""
    glasses_N: NDArray[np.int64]
    beard_N: NDArray[np.int64]


def families(seed: int, *, count: int, members: int) -> Array:
    """(count * members, 22) latents: each family has a centre, its members lie around it."""
    stream = np.random.default_rng([seed, 1])
    centre = stream.standard_normal((count, 1, len(LATENTS)))
    spread = SIBLING_SPREAD * stream.standard_normal((count, members, len(LATENTS)))
    return (centre + spread).reshape(count * members, -1).astype(np.float32)


def strangers(seed: int, *, count: int) -> Array:
    """(count, 22) latents of people of no family."""
    return np.random.default_rng([seed, 2]).standard_normal((count, len(LATENTS))).astype(np.float32)


def photograph(latents_PD: Array, stream: Sequence[int], attributes_P3: NDArray[np.int64] | None = None) -> Pictures:
    """One picture of each row of latents; `attributes` (background, glasses, beard) are drawn where not given."""
    random = np.random.default_rng(list(stream))
    n = len(latents_PD)
    drawn = np.stack([random.integers(0, len(BACKGROUNDS), n), random.integers(0, 2, n), random.integers(0, 2, n)], axis=1)
    attributes = drawn if attributes_P3 is None else attributes_P3
    nuisance = {name: random.uniform(low, high, n).astype(np.float32) for name, (low, high) in _NUISANCE.items()}
    cloth_N3 = random.uniform(0.1, 0.9, (n, 3)).astype(np.float32)
    grain = random.standard_normal((n, 3, SIZE, SIZE), dtype=np.float32)
    image = np.empty((n, 3, SIZE, SIZE), np.uint8)
    for start in range(0, n, CHUNK):
        rows = slice(start, start + CHUNK)
        scene = {name: column[rows, None, None] for name, column in nuisance.items()}
        drawing = _draw(latents_PD[rows], attributes[rows], scene, cloth_N3[rows])
        image[rows] = np.clip(drawing + 0.02 * grain[rows], 0, 1) * 255 + 0.5
    return Pictures(image, *attributes.T)


_NUISANCE = {
    "shift_x": (-0.05, 0.05),
    "shift_y": (-0.05, 0.05),
    "scale": (0.95, 1.05),
    "roll": (-0.06, 0.06),  # tangent of the angle, about 3 degrees
    "yaw": (-0.05, 0.05),
    "mouth_open": (0.0, 1.0),
    "blink": (0.0, 1.0),
    "light": (-0.15, 0.15),
    "exposure": (0.94, 1.06),
    "occluder": (0.0, 1.0),
    "occluder_x": (-0.7, 0.7),
    "occluder_y": (-0.3, 0.8),
    "occluder_tone": (0.1, 0.9),
}


# ---------------------------------------------------------------- drawing


def _draw(latents_PD: Array, attributes_P3: NDArray[np.int64], scene: dict[str, Array], cloth_N3: Array) -> Array:
    """(N, 3, H, W) in [0, 1], back to front."""
    # s / sqrt(1 + s^2) squashes a latent to (-1, 1) without a transcendental function
    face = {name: (v / np.sqrt(1 + v * v))[:, None, None] for name, v in zip(LATENTS, latents_PD.T, strict=True)}
    x, y = _head_coordinates(scene)
    skin, hair = _skin(face), _hair(face)
    width, height = 0.50 + 0.09 * face["face_width"], 0.62 + 0.08 * face["face_height"]
    narrowed = width * (1 - (0.22 + 0.20 * face["jaw"]) * np.maximum(y, 0))
    head = _ellipse(x, y, 0, 0, narrowed, height)
    canvas = _background(attributes_P3[:, 0], len(cloth_N3))
    canvas = _paint(canvas, _ellipse(x, y, 0, 1.25, 0.85, 0.5), cloth_N3[:, :, None, None])
    volume, length = 0.12 + 0.09 * face["hair_volume"], 0.25 + 0.40 * face["hair_length"]
    back = _ellipse(x, y, 0, 0.5 * length - 0.1, width + volume, height + volume + 0.5 * np.abs(length) - 0.15)
    canvas = _paint(canvas, back, 0.85 * hair)
    canvas = _paint(canvas, _ellipse(x, y, 0, 0.75, 0.22, 0.35), 0.85 * skin)
    ear = 0.10 + 0.05 * face["ear_size"]
    for side in (-1, 1):
        canvas = _paint(canvas, _ellipse(x, y, side * width, 0.02, ear, 1.4 * ear), 0.92 * skin)
    canvas = _paint(canvas, head, skin)
    line = -height + 0.28 + 0.18 * face["fringe"] + 0.35 * face["parting"] * x
    canvas = _paint(canvas, np.maximum(head, y - line), hair)
    beard = np.where(attributes_P3[:, 2] > 0, 0.9, 0.0).astype(np.float32)[:, None, None]
    canvas = _paint(canvas, np.maximum(head, 0.30 + 0.15 * np.abs(x) - y), 0.75 * hair, beard)
    canvas = _features(canvas, x - scene["yaw"], y, face, scene, skin, hair)
    canvas = _glasses(canvas, x - scene["yaw"], y, face, attributes_P3[:, 1])
    held = np.where(scene["occluder"] < OCCLUDED, 1.0, 0.0).astype(np.float32)
    box = np.maximum(np.abs(x - scene["occluder_x"]) - 0.20, np.abs(y - scene["occluder_y"]) - 0.20)
    canvas = _paint(canvas, box, scene["occluder_tone"][:, None], held)
    return canvas * (scene["exposure"] * (1 + scene["light"] * x))[:, None]


def _features(
    canvas: Array, x: Array, y: Array, face: dict[str, Array], scene: dict[str, Array], skin: Array, hair: Array
) -> Array:
    """Nose, mouth, eyes and brows, on coordinates turned with the head."""
    spacing, size = 0.21 + 0.05 * face["eye_spacing"], 0.095 + 0.03 * face["eye_size"]
    level = -0.08 + 0.07 * face["eye_height"]
    nose = 0.16 + 0.06 * face["nose_length"]
    canvas = _paint(canvas, _ellipse(x, y, 0, level + nose, 0.07 + 0.035 * face["nose_width"], nose), 0.80 * skin)
    lips = np.stack([0.72 + 0 * level, 0.28 + 0.10 * face["lip_weight"], 0.30 + 0 * level], axis=1)
    opening = (0.035 + 0.02 * face["lip_weight"]) * (1 + 1.2 * scene["mouth_open"])
    canvas = _paint(canvas, _ellipse(x, y, 0, 0.40, 0.19 + 0.07 * face["mouth_width"], opening), lips)
    iris = np.stack([0.22 + 0.12 * face["iris"], 0.30 + 0 * level, 0.38 - 0.28 * face["iris"]], axis=1)
    lid = np.where(scene["blink"] < 0.12, 0.25, 1.0).astype(np.float32)
    for side in (-1, 1):
        at = side * spacing
        canvas = _paint(canvas, _ellipse(x, y, at, level, size, 0.65 * size * lid), np.full((1, 3, 1, 1), 0.97, np.float32))
        canvas = _paint(canvas, _ellipse(x, y, at, level, 0.5 * size, 0.6 * size * lid), iris)
        tilt = y - level + 0.16 + side * 0.35 * face["brow_tilt"] * (x - at)
        canvas = _paint(canvas, _ellipse(x, tilt, at, 0, 1.4 * size, 0.030 + 0.018 * face["brow_weight"]), 0.6 * hair)
    return canvas


def _glasses(canvas: Array, x: Array, y: Array, face: dict[str, Array], worn_N: NDArray[np.int64]) -> Array:
    spacing, level = 0.21 + 0.05 * face["eye_spacing"], -0.08 + 0.07 * face["eye_height"]
    worn = np.where(worn_N > 0, 1.0, 0.0).astype(np.float32)[:, None, None]
    frame = (
        np.abs(np.minimum(_ellipse(x, y, -spacing, level, 0.17, 0.15), _ellipse(x, y, spacing, level, 0.17, 0.15))) - 0.025
    )
    return _paint(canvas, frame, np.full((1, 3, 1, 1), 0.05, np.float32), worn)


def _head_coordinates(scene: dict[str, Array]) -> tuple[Array, Array]:
    """(N, H, W) coordinates in which every head is upright, centred and of one size; the picture spans -1 to 1."""
    axis = (np.arange(SIZE, dtype=np.float32) + 0.5) / SIZE * 2 - 1
    x, y = axis[None, None, :] - scene["shift_x"], axis[None, :, None] - scene["shift_y"]
    shrink = 1 / (scene["scale"] * np.sqrt(1 + scene["roll"] ** 2))
    return (x + scene["roll"] * y) * shrink, (y - scene["roll"] * x) * shrink


def _ellipse(x: Array, y: Array, at_x: Array | float, at_y: Array | float, a: Array | float, b: Array | float) -> Array:
    """Approximate signed distance to an ellipse, negative inside."""
    return (np.sqrt(((x - at_x) / a) ** 2 + ((y - at_y) / b) ** 2) - 1) * np.minimum(a, b)


def _paint(canvas: Array, distance: Array, colour: Array, opacity: Array | float = 1.0) -> Array:
    """Cover what lies inside; an edge is as wide as a pixel."""
    cover = (np.clip(0.5 - distance * (SIZE / 2), 0, 1) * opacity)[:, None]
    return canvas + cover * (colour - canvas)


def _background(background_N: NDArray[np.int64], n: int) -> Array:
    colours = np.array(list(BACKGROUNDS.values()), np.float32)
    return np.broadcast_to(colours[background_N][:, :, None, None], (n, 3, SIZE, SIZE)).copy()


def _skin(face: dict[str, Array]) -> Array:
    """(N, 3, 1, 1)"""
    light = 0.70 + 0.22 * face["skin_light"]
    return np.stack([light + 0.10, light - 0.08 + 0.05 * face["skin_hue"], light - 0.20 - 0.08 * face["skin_hue"]], axis=1)


def _hair(face: dict[str, Array]) -> Array:
    """(N, 3, 1, 1)"""
    light = 0.36 + 0.28 * face["hair_light"]
    return np.stack([light + 0.10 + 0.16 * face["hair_red"], light - 0.02, light - 0.08 - 0.10 * face["hair_red"]], axis=1)
