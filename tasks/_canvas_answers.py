"""What a model of `canvas` is asked to draw, and what frozen classifiers see in it.

Questions are prompts of the grid of styles and objects with seeds. Seeds belong to prompts, not to models: all models start
from the same noise. Legend for array shapes: N pictures, B in a batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from slugbench.bench import Answers, Batch, Model
from slugbench.bench.entropies import entropies

from . import _canvas_recipe as recipe
from ._canvas_model import prompts
from ._canvas_scenes import OBJECTS, STYLES
from ._diffusion import Names, generate, redraw, with_model
from ._shipped import assets, load_weights

if TYPE_CHECKING:
    import torch
    from diffusers import StableDiffusionPipeline

DOMAINS = {"style": STYLES, "object": OBJECTS}
SEEDS, TARGET_TIMES = 2, 3
"""Most seeds of a prompt, and times as many of one with the target: these are a tenth of the grid."""
STEPS, GUIDANCE, AT_A_TIME = 12, 3.0, 96
"""Of sampling; twenty steps were seen to draw no better."""


class Target(NamedTuple):
    """What is to be forgotten."""

    domain: str
    """`style` or `object`."""
    number: int

    @property
    def name(self) -> str:
        """As it is called in prompts."""
        return DOMAINS[self.domain][self.number]


@dataclass(frozen=True)
class Asked:
    """The questions of a request."""

    target: Target
    cell: np.ndarray
    """(N,) place of the prompt in the grid, styles outermost."""
    questions: dict[str, np.ndarray]
    """As `Trial.questions` of a model that makes images."""


def grid(target: Target, seeds: int) -> Asked:
    """So many seeds of each prompt, and `TARGET_TIMES` as many of those with the target."""
    style, thing = recipe.cells()
    own = (style if target.domain == "style" else thing) == target.number
    cell = np.repeat(np.arange(len(own)), np.where(own, TARGET_TIMES * seeds, seeds))
    seed = np.concatenate([np.arange(TARGET_TIMES * seeds if mine else seeds) for mine in own])
    label = (style if target.domain == "style" else thing)[cell]
    questions = {
        "split": np.where(own[cell], "forget", "retain"),
        "unit": label,
        "label": label,
        "near": np.zeros(len(cell), dtype=bool),
        "index": np.arange(len(cell)),
        "style": style[cell],
        "object": thing[cell],
        "seed": seed,
    }
    return Asked(target, cell, questions)


def answers(pipeline: StableDiffusionPipeline, asked: Asked, model: Model, rows: np.ndarray | None = None) -> Answers:
    """What a model draws at those questions, as `Trial` has it of a model that makes images.

    Besides: `second_style` and `second_object` (int), what a classifier of another kind sees; `image` (N, 3, 16, 16) uint8;
    `features` (N, 96) of the first classifier before its last layer.
    """
    rows = np.arange(len(asked.cell)) if rows is None else rows
    cell, seed = asked.cell[rows], asked.questions["seed"][rows]
    found = ask(pipeline, model, cell, noise(cell, seed), steps=STEPS)
    return seen(found, Asked(asked.target, cell, {name: column[rows] for name, column in asked.questions.items()}))


def noise(cell: np.ndarray, seed: np.ndarray) -> np.ndarray:
    """Seeds of a question's noise: each prompt and seed has one of its own, the same for every model."""
    return 1000 * cell + seed


def ask(pipeline: StableDiffusionPipeline, model: Model, cell: np.ndarray, seed: np.ndarray, *, steps: int) -> Answers:
    """Draw, and classify: `style`, `object`, `style_log_p`, `object_log_p`, `second_*`, `image`, `features`."""
    import torch

    style, thing = recipe.cells()
    texts = prompts(style[cell], thing[cell])
    parts = []
    with torch.no_grad():
        drawing = with_model(pipeline, model)
        for image in generate(drawing, texts, seed.tolist(), steps=steps, guidance=GUIDANCE, batch=AT_A_TIME):
            parts.append(_classified(image))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _classified(image: torch.Tensor) -> Answers:
    import torch

    first, second = (classifier(kind) for kind in recipe.CLASSIFIERS)
    shown = image.cpu().clamp(0, 1)
    before_last = first[:-1](shown * 2 - 1)
    found: Answers = {"image": (shown * 255).round().byte().numpy(), "features": before_last.numpy().astype(np.float16)}
    for prefix, logits in (("", first[-1](before_last)), ("second_", second(shown * 2 - 1))):
        for domain, columns in zip(DOMAINS, logits.double().split([len(STYLES), len(OBJECTS)], dim=1), strict=True):
            found[f"{prefix}{domain}"] = columns.argmax(1).numpy()
            if not prefix:
                found[f"{domain}_log_p"] = torch.log_softmax(columns, 1).numpy()
    return found


def drawn_at(found: Answers, rows: np.ndarray) -> np.ndarray:
    """(n, 16, 16, 3) uint8 pictures at those rows of a model's answers."""
    drawn: np.ndarray = found["image"][rows].transpose(0, 2, 3, 1)
    return drawn


@dataclass(frozen=True)
class Drawn(Names):
    """`bench.types.Drawing` of the task: names as `_diffusion` has them, pictures seen by the classifier."""

    pipeline: Any
    target: Target

    def redraw(self, model: Model, batch: Batch, *, strength: float, seed: int) -> np.ndarray:
        """(B,) class seen, in the target's domain, in what the model makes of noised pictures under their prompts."""
        import torch

        seeds = [REDRAWN + 1000 * seed + place for place in range(len(batch["image"]))]
        how: Any = {"steps": REDRAW_STEPS, "guidance": GUIDANCE, "strength": strength}
        with torch.no_grad():
            image = redraw(with_model(self.pipeline, model), batch["image"], batch["text"], seeds, **how)
            found: np.ndarray = _classified(image)[self.target.domain]
        return found


REDRAW_STEPS = 20
"""Of sampling from noise alone, of which parts in tenths are whole numbers."""
REDRAWN = 2 * 10**6
"""Seeds of noise put over pictures start here: no question has them, nor validation."""


def features(image: torch.Tensor) -> np.ndarray:
    """(N, 96) of pictures from -1 to 1, by the first classifier before its last layer."""
    import torch

    with torch.no_grad():
        found: np.ndarray = classifier(recipe.CLASSIFIERS[0])[:-1](image).numpy()
    return found.astype(np.float16)


def seen(found: Answers, asked: Asked) -> Answers:
    """Answers with what follows from them and the questions: scores, ranks and entropies in the target's domain."""
    import torch

    found = dict(found)
    for domain in DOMAINS:
        log_p, prompted = found[f"{domain}_log_p"], asked.questions[domain]
        own = np.take_along_axis(log_p, prompted[:, None], 1)[:, 0]
        others = np.where(np.arange(log_p.shape[1]) == prompted[:, None], -np.inf, log_p)
        found[f"{domain}_score"] = own - np.logaddexp.reduce(others, axis=1)
    domain, label = asked.target.domain, asked.questions["label"]
    log_p = found[f"{domain}_log_p"]
    own = np.take_along_axis(log_p, label[:, None], 1)
    ahead = (log_p > own) | ((log_p == own) & (np.arange(log_p.shape[1]) < label[:, None]))
    found |= {"predicted": found[domain], "rank": ahead.sum(1), "score": found[f"{domain}_score"]}
    said = entropies(torch.from_numpy(log_p), torch.from_numpy(label))
    return found | {name: column.numpy() for name, column in said.items()}


# ---------------------------------------------------------------- classifiers


def classifier_file(folder: Path, kind: str) -> Path:
    """Where a classifier's weights are."""
    return folder / f"classifier-{kind}.safetensors"


@cache
def classifier(kind: str) -> Any:
    """A shipped classifier, (N, 3, 16, 16) from -1 to 1 -> (N, 10 + 8) logits."""
    return load_weights(recipe.new_classifier(kind), classifier_file(assets("canvas"), kind))
