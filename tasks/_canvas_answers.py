"""What a model of `canvas` is asked to draw, and what frozen classifiers see in it.

Questions are prompts of the grid of styles and objects with seeds. Seeds belong to prompts, not to models: all models start
from the same noise. Legend for array shapes: N pictures, B in a batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from slugbench.bench import Answers, Model
from slugbench.bench.entropies import entropies

from . import _canvas_recipe as recipe
from ._canvas_model import new_clip, prompts, tokens
from ._canvas_scenes import OBJECTS, SIDE, STYLES
from ._diffusion import Drawn, denoising_error, generate, with_model
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
    """What is to be forgotten: one concept, or several of a domain."""

    domain: str
    """`style` or `object`."""
    numbers: tuple[int, ...]

    @property
    def concepts(self) -> tuple[str, ...]:
        """As they are called in prompts."""
        return tuple(DOMAINS[self.domain][number] for number in self.numbers)

    @property
    def name(self) -> str:
        """Of the request to forget it, and of its files."""
        return "-".join(self.concepts)

    def holds(self, label: Any) -> np.ndarray:
        """(N,) whether these labels (N,) in its domain are to be forgotten."""
        return np.isin(label, self.numbers)

    def one(self, place: int) -> Target:
        """Of several concepts the one at that place, by itself."""
        return Target(self.domain, self.numbers[place : place + 1])


@dataclass(frozen=True)
class Asked:
    """The questions of a request: what to draw, then what pictures to denoise."""

    target: Target
    cell: np.ndarray
    """(N,) place of the prompt in the grid, styles outermost."""
    part: np.ndarray
    """(N,) the part that a picture to be denoised is of, `train` or `test`; empty where something is to be drawn."""
    picture: np.ndarray
    """(N,) number of that picture in its part, else -1."""
    questions: dict[str, np.ndarray]
    """As `Trial.questions` of a model that makes images."""

    def rows(self, rows: np.ndarray) -> Asked:
        """Some of them."""
        questions = {name: column[rows] for name, column in self.questions.items()}
        return Asked(self.target, self.cell[rows], self.part[rows], self.picture[rows], questions)


def grid(target: Target, seeds: int) -> Asked:
    """So many seeds of each prompt, and `TARGET_TIMES` as many of those with the target; then all pictures of the target
    that were trained on, and as many that no model saw."""
    style, thing = recipe.cells()
    own = target.holds(style if target.domain == "style" else thing)
    drawn = np.repeat(np.arange(len(own)), np.where(own, TARGET_TIMES * seeds, seeds))
    seed = np.concatenate([np.arange(TARGET_TIMES * seeds if mine else seeds) for mine in own])
    split = np.where(own[drawn], "forget", "retain")
    shown = shows(target)
    n = len(shown)
    cell = np.concatenate([drawn, *[shown % len(own)] * 2])
    label = (style if target.domain == "style" else thing)[cell]
    questions = {
        "split": np.concatenate([split, np.repeat(["forget_train", "forget_unseen"], n)]),
        "unit": label,
        "label": label,
        "near": np.zeros(len(cell), dtype=bool),
        "index": np.arange(len(cell)),
        "style": style[cell],
        "object": thing[cell],
        "seed": np.concatenate([seed, np.zeros(2 * n, dtype=int)]),
    }
    part = np.repeat(["", *KNOWN], [len(drawn), n, n])
    return Asked(target, cell, part, np.concatenate([np.full(len(drawn), -1), shown, shown]), questions)


def shows(target: Target) -> np.ndarray:
    """Numbers of the pictures of each part that show the target."""
    cell = np.arange(len(recipe.cells()[0]) * recipe.TRAIN_PER_CELL) % len(recipe.cells()[0])
    return np.flatnonzero(target.holds(recipe.cells()[0 if target.domain == "style" else 1][cell]))


KNOWN = ("train", "test")
"""Parts whose pictures are denoised: members, then others."""


def answers(pipeline: StableDiffusionPipeline, asked: Asked, model: Model, rows: np.ndarray | None = None) -> Answers:
    """What a model draws at those questions, as `Trial` has it of a model that makes images.

    Besides: `second_style` and `second_object` (int), what a classifier of another kind sees; `image` (N, 3, 16, 16) uint8;
    `features` (N, 96) of the first classifier before its last layer; `cosine`, as of that function. Of a picture to be
    denoised they are that picture's.
    """
    asked = asked if rows is None else asked.rows(rows)
    drawn, errors = np.flatnonzero(asked.part == ""), {}
    found = ask(pipeline, model, asked.cell[drawn], noise(asked.cell, asked.questions["seed"])[drawn], steps=STEPS)
    for part in KNOWN:
        errors[part] = error(pipeline, model, part, asked.picture[asked.part == part])
    return whole(found, errors, asked)


def whole(found: Answers, errors: Mapping[str, np.ndarray], asked: Asked) -> Answers:
    """All answers to those questions, from those about what was drawn and, by part, the errors on known pictures."""
    places, pieces = [np.flatnonzero(asked.part == "")], [found]
    score = np.zeros(len(asked.part))
    for part in KNOWN:
        rows = np.flatnonzero(asked.part == part)
        places.append(rows)
        pieces.append(_classified((recipe.pictures(part).image[asked.picture[rows]] + 1) / 2))
        score[rows] = -errors[part]
    back = np.argsort(np.concatenate(places))
    told = seen({name: np.concatenate([piece[name] for piece in pieces])[back] for name in pieces[1]}, asked)
    fits = cosine(told["image"], asked.cell)
    return told | {"score": np.where(asked.part == "", told["score"], score), "cosine": fits}


def error(pipeline: StableDiffusionPipeline, model: Model, part: str, picture: np.ndarray) -> np.ndarray:
    """(n,) denoising errors on pictures of a part under their prompts: at the same times and noises for every model."""
    import torch

    known, edited = recipe.pictures(part), with_model(pipeline, model)
    errors = [np.zeros(0)]
    for start in range(0, len(picture), AT_A_TIME):
        rows = torch.from_numpy(picture[start : start + AT_A_TIME])
        text = recipe.tokens_of_cells()[rows % len(recipe.cells()[0])]
        errors.append(denoising_error(edited, known.image[rows], text, _noises(part)[:, rows], TIMES).double().numpy())
    return np.concatenate(errors)


TIMES = (100, 250, 400)
"""Of 1,000: pictures are still to be seen in their noise."""


@cache
def _noises(part: str) -> torch.Tensor:
    """(times, pictures, 3, 16, 16)"""
    import torch

    generator = torch.Generator().manual_seed(recipe.PARTS[part])
    return torch.randn((len(TIMES), *recipe.pictures(part).image.shape), generator=generator)


def noise(cell: np.ndarray, seed: np.ndarray) -> np.ndarray:
    """Seeds of a question's noise: each prompt and seed has one of its own, the same for every model."""
    return 1000 * cell + seed


def ask(
    pipeline: StableDiffusionPipeline,
    model: Model,
    cell: np.ndarray,
    seed: np.ndarray,
    *,
    steps: int,
    classifiers: Path | None = None,
) -> Answers:
    """Draw, and classify: `style`, `object`, `style_log_p`, `object_log_p`, `second_*`, `image`, `features`.

    Args:
        pipeline: all that is not edited.
        model: text encoder and U-Net.
        cell: (N,) places of prompts in the grid.
        seed: (N,) of each picture's noise.
        steps: of sampling.
        classifiers: folder of those to look with; else the shipped ones.
    """
    import torch

    style, thing = recipe.cells()
    texts = prompts(style[cell], thing[cell])
    parts = [_classified(torch.zeros(0, 3, SIDE, SIDE), classifiers)]
    with torch.no_grad():
        edited = with_model(pipeline, model)
        for image in generate(edited, texts, seed.tolist(), steps=steps, guidance=GUIDANCE, batch=AT_A_TIME):
            parts.append(_classified(image, classifiers))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _classified(image: torch.Tensor, classifiers: Path | None = None) -> Answers:
    import torch

    first, second = (classifier(kind, classifiers) for kind in recipe.CLASSIFIERS)
    shown = image.cpu().clamp(0, 1)
    with torch.no_grad():
        before_last = first[:-1](shown * 2 - 1)
        by_kind = (("", first[-1](before_last)), ("second_", second(shown * 2 - 1)))
    found: Answers = {"image": (shown * 255).round().byte().numpy(), "features": before_last.numpy().astype(np.float16)}
    for prefix, logits in by_kind:
        for domain, columns in zip(DOMAINS, logits.double().split([len(STYLES), len(OBJECTS)], dim=1), strict=True):
            found[f"{prefix}{domain}"] = columns.argmax(1).numpy()
            if not prefix:
                found[f"{domain}_log_p"] = torch.log_softmax(columns, 1).numpy()
    return found


def opinions(part: str) -> Answers:
    """What both classifiers see in the pictures of a part, as of `ask`."""
    return _classified((recipe.pictures(part).image + 1) / 2)


def drawn_at(found: Answers, rows: np.ndarray) -> np.ndarray:
    """(n, 16, 16, 3) uint8 pictures at those rows of a model's answers."""
    return found["image"][rows].transpose(0, 2, 3, 1).astype(np.uint8)


def drawing(named: Mapping[str, torch.Tensor], pipeline: StableDiffusionPipeline, target: Target) -> Drawn:
    """`bench.types.Drawing` of the task, given the tokens of all bare names: pictures are seen by the first classifier."""
    return Drawn(named, pipeline, lambda image: _classified(image)[target.domain], GUIDANCE, AT_A_TIME)


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


# ---------------------------------------------------------------- a frozen CLIP


def cosine(image: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """(N,) cosine of pictures (N, 3, 16, 16) of whole numbers to 255 with the prompts of their cells, in [-1, 1].

    By base 0's CLIP, both towers of it, whichever model drew: an edited text encoder does not judge its own pictures. Of
    pictures as they are stored, or models that ship as answers would be seen otherwise than those that draw now.
    """
    import torch

    clip, text = _clip()
    with torch.no_grad():
        seen = clip(input_ids=text, pixel_values=torch.from_numpy(image).float() / 127.5 - 1)
    found: np.ndarray = (seen.image_embeds * seen.text_embeds[cell]).sum(1).double().numpy()
    return found


def clip_files() -> list[Path]:
    """Where the CLIP is that judges: its weights, and the tokenizer it was trained with."""
    base = assets("canvas") / "base-0"
    return [base / "clip" / "model.safetensors", base / "tokenizer" / "tokenizer.json"]


@cache
def _clip() -> tuple[Any, torch.Tensor]:
    """The CLIP, and each cell's prompt in the tokens that it knows: another learning may number the words otherwise."""
    from transformers import CLIPTokenizer

    weights, words = clip_files()
    tokenizer = CLIPTokenizer.from_pretrained(words.parent, local_files_only=True)
    return load_weights(new_clip(0), weights), tokens(tokenizer, prompts(*recipe.cells()))


# ---------------------------------------------------------------- classifiers


def classifier_file(folder: Path, kind: str) -> Path:
    """Where a classifier's weights are."""
    return folder / f"classifier-{kind}.safetensors"


@cache
def classifier(kind: str, folder: Path | None = None) -> Any:
    """A classifier of a folder, or a shipped one, (N, 3, 16, 16) from -1 to 1 -> (N, 10 + 8) logits."""
    return load_weights(recipe.new_classifier(kind), classifier_file(folder or assets("canvas"), kind))
