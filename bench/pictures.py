"""A handful of small pictures that a cell keeps of what its model draws, for people to look at; no number is made of them.

They lie in the cell's arrays as the columns `picture.image` (n, H, W, 3) uint8, `picture.kind`, `picture.prompt` and
`picture.seed`. Which prompts and seeds they are of depends on the questions alone, so that all models of a request show the
same ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from .types import Answers, Trial

if TYPE_CHECKING:
    from PIL.Image import Image

Kind = Literal["target", "neighbour", "unrelated"]
SIDE = 128
"""Most pixels of a side; larger pictures are reduced."""
PROMPTS, SEEDS = 3, 2
"""Of each kind, and of each prompt with the target: it is what readers look for, and one picture may be a lucky one."""


class Pictures(NamedTuple):
    """What one model drew."""

    image: np.ndarray
    """(n, H, W, 3) uint8."""
    kind: tuple[Kind, ...]
    """`neighbour`: of a prompt that has all but the target in common with one that names it."""
    prompt: tuple[str, ...]
    """The classes prompted, such as `neon ball`."""
    seed: tuple[int, ...]


def columns(trial: Trial, answers: Answers) -> dict[str, np.ndarray]:
    """What to keep of a model's pictures; nothing where a trial has none, or has them no longer."""
    if trial.pictures is None:
        return {}
    chosen = choose(trial)
    rows = np.array([row for _, row in chosen], dtype=int)
    images = trial.pictures(answers, rows)
    if images is None:
        return {}
    q = trial.questions
    prompts = [" ".join(names[q[domain][row]] for domain, names in trial.classes.items()) for row in rows]
    return {
        "picture.image": np.stack([reduced(image) for image in images]),
        "picture.kind": np.array([kind for kind, _ in chosen]),
        "picture.prompt": np.array([prompt.replace("_", " ") for prompt in prompts]),
        "picture.seed": q["seed"][rows],
    }


def read(path: Path) -> Pictures | None:
    """The pictures in a cell's arrays; None where there are none."""
    if not path.is_file():
        return None
    with np.load(path) as stored:
        if "picture.image" not in stored.files:
            return None
        kind, prompt, seed = (stored[f"picture.{name}"].tolist() for name in ("kind", "prompt", "seed"))
        return Pictures(stored["picture.image"], tuple(kind), tuple(prompt), tuple(seed))


def choose(trial: Trial) -> list[tuple[Kind, int]]:
    """Rows of the questions to show, at most 12: prompts with the target, their neighbours, and what is unlike any of them.

    With d the target's domain and e the other one (a style and an object), neighbours have the same class of e and another
    of d, and unrelated prompts other classes of both. Classes are taken evenly from all, as they are numbered.
    """
    q, targets = trial.questions, set(trial.request.targets)
    own, other = sorted(trial.classes, key=lambda domain: not targets <= set(trial.classes[domain]))
    forget = q["split"] == "forget"
    shown = _spread(np.unique(q[other][forget]), PROMPTS)
    rows = {e: _first(q["seed"], forget & (q[other] == e), SEEDS) for e in shown}
    found: list[tuple[Kind, int]] = [("target", row) for e in shown for row in rows[e]]
    retain = q["split"] == "retain"
    near = retain & q["near"] if q["near"].any() else retain
    for number, e in enumerate(shown):
        instead = _spread(np.unique(q[own][near & (q[other] == e)]), len(shown))
        if instead:
            here = retain & (q[other] == e) & (q[own] == instead[number % len(instead)])
            found += [("neighbour", row) for row in _first(q["seed"], here, 1)]
    apart = retain & ~np.isin(q[other], shown)
    for number, e in enumerate(_spread(np.unique(q[other][apart]), PROMPTS)):
        instead = _spread(np.unique(q[own][apart & (q[other] == e)]), PROMPTS)
        here = apart & (q[other] == e) & (q[own] == instead[number % len(instead)])
        found += [("unrelated", row) for row in _first(q["seed"], here, 1)]
    return found


def _spread(numbers: np.ndarray, n: int) -> list[int]:
    """At most n of them, evenly spaced."""
    places = np.unique(np.linspace(0, len(numbers) - 1, min(n, len(numbers))).round().astype(int))
    found: list[int] = numbers[places].tolist()
    return found


def _first(seed: np.ndarray, mask: np.ndarray, n: int) -> list[int]:
    """The rows of the n lowest seeds."""
    rows = np.flatnonzero(mask)
    found: list[int] = rows[np.argsort(seed[rows], kind="stable")][:n].tolist()
    return found


def reduced(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 with no side above `SIDE`, its proportions kept."""
    if max(image.shape[:2]) <= SIDE:
        return image
    from PIL import Image as pillow

    made: Image = pillow.fromarray(image)
    made.thumbnail((SIDE, SIDE))
    return np.asarray(made)
