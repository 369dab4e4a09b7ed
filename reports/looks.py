"""How each method is drawn: one colour and one marker for a name, whoever else is on the board.

Known methods have a look of their own, given here; any other name has one that a hash of it picks from what is left.
Colours are told apart under the three kinds of colour blindness, and the known methods by their markers alone, too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from itertools import product
from typing import Literal, NamedTuple, TypeVar

from .tables import Line, untuned

INK, MUTED, FAINT, PAPER = "#1f2430", "#667080", "#9aa0ab", "#fefefe"
"""Text, side remarks, lines, background; the page swaps them for its own light and dark colours."""

# Six of Okabe and Ito's colours (Color universal design, 2008): without yellow, which is lost on white. Indigo and wine
# are from Paul Tol's scheme `muted`; among the former a purple or a brown would be blue or green to some.
BLUE, VERMILLION, GREEN, PINK, SKY, ORANGE = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00"
INDIGO, WINE = "#332288", "#882255"
PALETTE = (BLUE, VERMILLION, GREEN, PINK, SKY, ORANGE, INDIGO, WINE)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p", "<", ">", "d", "h")
KNOWN = {
    "slug": (BLUE, "o"),
    "salun": (VERMILLION, "s"),
    "salun_slug": (VERMILLION, "D"),
    "random_label": (PINK, "^"),
    "ga": (GREEN, "v"),
    "gaft": (GREEN, "P"),
    "neggrad_plus": (INDIGO, "X"),
    "scrub": (WINE, "p"),
    "l1_sparse": (SKY, "<"),
    "ft": (SKY, ">"),
    "svd": (ORANGE, "d"),
    "ssd": (INDIGO, "h"),
}
CONTROLS = {"original": "s", "oracle": "*", "mask": "P", "noise": "X", "random_layer": "d", "shuffled": "h"}
"""Their markers; all controls are grey."""
TOWERS = {"vision": (BLUE, "o"), "text": (VERMILLION, "^"), "model": (GREEN, "s")}

T = TypeVar("T")
Fill = Literal["full", "left", "top"]


class Look(NamedTuple):
    """How a method is drawn."""

    color: str
    marker: str
    size: float = 1.0
    """In marker sizes of the style in force."""
    ringed: bool = False
    """Whether its mark has a dark edge: the tuned variant of the method that has the same mark without."""
    fill: Fill = "full"
    """Which part of the marker has the colour, as matplotlib's `fillstyle`."""


FILLS: tuple[Fill, ...] = ("full", "left", "top")
REST = tuple((c, m, f) for f, m, c in product(FILLS, MARKERS, PALETTE) if (c, m) not in KNOWN.values())
"""What is left for other names. Two of them share a look with probability 1 in `len(REST)`: their labels differ."""


def look(method: str, *, control: bool = False) -> Look:
    """The look of a method by its name, or by its label on a board: `salun (tuned)` is `salun` with a ring."""
    name = untuned(method)
    if control:
        marker = CONTROLS.get(name.split("(")[0]) or _pick(name, ("8", "<", ">", "H"))
        return Look(MUTED, marker, 1.8 if marker == "*" else 0.9)
    color, marker, fill = (*KNOWN[name], FILLS[0]) if name in KNOWN else _pick(name, REST)
    return Look(color, marker, 1.15 if marker in "^v<>d" else 1.0, ringed=name != method, fill=fill)


def looks(lines: Iterable[Line]) -> dict[str, Look]:
    """The look of every line of a board."""
    return {x.method: look(x.method, control=x.control) for x in lines}


def tower_look(tower: str) -> Look:
    """The look of a tower's layers."""
    return Look(*(TOWERS.get(tower) or _pick(tower, REST)[:2]))


def _pick(name: str, among: Sequence[T]) -> T:
    """The same one for the same name, in any process (Python's own `hash` is salted)."""
    return among[int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % len(among)]
