"""Forgetting a style or an object that a small, real Stable Diffusion pipeline draws: ten styles, eight objects, 16 pixels.

The embedded stand-in for UnlearnCanvas. Retraining takes some minutes, so models that never saw the target are at hand.
What ships was made by `slugbench artifacts rebuild canvas` (`_canvas_recipe`); pictures are drawn by `_canvas_scenes`, the
pipeline is put together in `_canvas_model`, and what methods see of it is in `_diffusion`.

References:
    Zhang et al., UnlearnCanvas: Enhanced Stylized Image Dataset for Benchmarking Machine Unlearning in Diffusion
    Models, 2024 (the grid, the wording, UA, IRA and CRA).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from slugbench.bench import (
    Answers,
    Budget,
    Gate,
    Listed,
    Model,
    Request,
    Scores,
    Size,
    TensorSplit,
    Trial,
    UsageError,
    Validation,
    Wanted,
    digest,
    file_digest,
    task,
)
from slugbench.bench.types import Pool

from . import _canvas_rebuild as models
from . import _canvas_recipe as recipe
from ._canvas_answers import (
    DOMAINS,
    KNOWN,
    SEEDS,
    Asked,
    Target,
    answers,
    ask,
    classifier_file,
    clip_files,
    drawing,
    drawn_at,
    features,
    grid,
    opinions,
    whole,
)
from ._canvas_model import prompts, tokenizer, tokens
from ._canvas_scenes import OBJECTS, STYLES
from ._diffusion import Contrast, Denoising, drawn_scores, editable
from ._gates import at_least, at_most
from ._shipped import assets, load_answers

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from diffusers import StableDiffusionPipeline

POOLS: dict[str, Pool] = {"chalk": "dev", "moon": "dev", "blueprint": "tune", "plank": "tune"}
"""Of the targets that are not for testing, a style and an object each."""
LEAST_AGREED = 0.95
"""Share of a base's pictures in which both classifiers have to see the same, or what one sees says little."""
LEAST_KNOWN = 0.98
"""Share of pictures that no model drew in which both have to see what is shown."""
SEARCH_STEPS = 8
"""Of sampling for validation, which methods ask for again and again."""


@task("canvas")
@dataclass(frozen=True)
class Canvas:
    """Forgetting a style, an object or four styles that a small Stable Diffusion draws; no download, retrained oracles.

    Attributes:
        seeds: pictures of each prompt without the target, 1 or 2; there are three times as many with it. One makes 96 or 100
            pictures a model.
    """

    seeds: int = 2

    base_seeds: ClassVar[tuple[int, ...]] = models.BASE_SEEDS
    preload: ClassVar[tuple[str, ...]] = (
        "diffusers.pipelines.stable_diffusion",  # else the first cell of a process imports it for two seconds
        "transformers",
        "timm",
        "safetensors.torch",
    )

    expected_failures: ClassVar[Mapping[str, str]] = {
        "test_validate_scores_what_the_objective_answers": "a model is validated by what it draws, not by how it denoises"
    }

    def __post_init__(self) -> None:
        if not 1 <= self.seeds <= SEEDS:
            raise ValueError(f"seeds={self.seeds}; it may be 1 to {SEEDS}.")

    def requests(self) -> tuple[Listed, ...]:
        """Styles, objects, then four styles together, each named after what is to be forgotten."""
        return tuple(Listed(t.name, t.concepts, POOLS.get(t.name, "test")) for t in models.TARGETS)

    def sizes(self, request_id: str) -> dict[str, Size]:
        """Pictures and concepts of the target's domain in each split."""
        asked = grid(_target(request_id), self.seeds).questions
        found = {str(name): asked["unit"][asked["split"] == name] for name in np.unique(asked["split"])}
        return {name: Size(len(unit), len(np.unique(unit))) for name, unit in found.items()}

    def build(self, request_id: str, base_seed: int) -> Trial:
        """The trial of a request for one base model."""
        target, seed = _target(request_id), _seed(base_seed)
        asked, pipeline, joint = grid(target, self.seeds), models.base(seed), len(target.numbers) > 1
        return Trial(
            request=_asked_of(pipeline, editable(pipeline), seed, target),
            questions=asked.questions,
            answer=partial(answers, pipeline, asked),
            original=_stored(f"base-{seed}", asked),
            oracles=tuple(_stored(name, asked) for name in _oracles(request_id)),
            oracle_model=partial(models.oracle, target),
            n_classes=len(DOMAINS[target.domain]),
            joint=joint,
            original_model=lambda: editable(models.base(seed)),
            classes=DOMAINS,
            real=_real(target),
            pictures=drawn_at,
            drawing=drawing(bare_names(), pipeline, target),
            alone=partial(_one_after_others, pipeline, seed, target) if joint else None,
        )

    def fingerprint(self, request_id: str, base_seed: int) -> str:
        """Digest of the base pipeline, the classifiers, and the answers that ship."""
        _target(request_id)
        folder, seed = assets("canvas"), _seed(base_seed)
        files = [*models.files_of(folder / f"base-{seed}"), *(classifier_file(folder, kind) for kind in recipe.CLASSIFIERS)]
        files += [*clip_files(), *(folder / f"{name}.npz" for name in (f"base-{seed}", *_oracles(request_id)))]
        return digest({"files": [file_digest(file) for file in files]})

    def gates(self, request_ids: Sequence[str], base_seeds: Sequence[int]) -> list[Gate]:
        """Two classifiers see the same, bases draw what they are asked for, oracles do not draw the target and all else as
        well; from shipped answers, and of classifiers from pictures that no model drew."""
        found = _real_gates()
        for seed in base_seeds:
            base = load_answers(assets("canvas") / f"base-{seed}.npz")
            for domain, least in (("style", 0.95), ("object", 0.85)):
                right = base[domain] == base[f"{domain}_asked"]
                found.append(at_least(f"base {seed} draws the {domain} asked for: share", right.mean(), least))
                same = base[domain] == base[f"second_{domain}"]
                found.append(at_least(f"base {seed}: classifiers see the same {domain}: share", same.mean(), LEAST_AGREED))
            found.append(_memory(seed, base))
        for request_id in request_ids:
            found += _request_gates(_target(request_id), base_seeds)
        return found

    def gates_after(self, frame: pd.DataFrame) -> list[Gate]:
        """None yet that the table alone could tell."""
        return []

    def wanted(self) -> list[Wanted]:
        """What ships with the package: base pipelines, classifiers, answers of bases and oracles, some oracles."""
        folder, note = assets("canvas"), "ships with the package; `slugbench artifacts rebuild canvas` makes it anew"
        files = [folder / f"base-{seed}" / "model_index.json" for seed in models.BASE_SEEDS]
        files += [classifier_file(folder, kind) for kind in recipe.CLASSIFIERS]
        files += [folder / f"base-{seed}.npz" for seed in models.BASE_SEEDS]
        files += [folder / f"{name}.npz" for request in self.requests() for name in _oracles(request.id)]
        return [Wanted(file, file.is_file(), note) for file in files]

    def rebuild(self, folder: Path, *, jobs: int = 1) -> None:
        """Train everything anew: about four hours of one core."""
        models.rebuild(folder, jobs=jobs)


# ---------------------------------------------------------------- requests


def _target(request_id: str) -> Target:
    by_name = {target.name: target for target in models.TARGETS}
    if request_id not in by_name:
        raise UsageError(f"canvas has no request '{request_id}'; it has {', '.join(by_name)}.")
    return by_name[request_id]


def _seed(seed: int) -> int:
    if seed not in models.BASE_SEEDS:
        raise UsageError(f"canvas has no base model of seed {seed}; it has {', '.join(map(str, models.BASE_SEEDS))}.")
    return seed


def _oracles(request_id: str) -> list[str]:
    return [models.oracle_name(_target(request_id), s) for s in range(models.N_ORACLES)]


def _asked_of(
    pipeline: StableDiffusionPipeline, model: Model, seed: int, target: Target, gone: tuple[int, ...] = ()
) -> Request:
    """The request to make a model forget; concepts that are `gone` already are in none of its splits."""
    n_classes, trained_for = len(DOMAINS[target.domain]), recipe.Recipe()
    steps = trained_for.unet_steps // 4  # of what retraining takes: more would not be worth the while
    split = partial(_split, target=target, gone=gone)
    return Request(
        model=model,
        targets=target.concepts,
        forget=split("train", forget=True),
        retain=split("train", forget=False),
        validation=Validation(split("validation", forget=True), split("validation", forget=False)),
        objective=_objective(pipeline, seed, target, gone),
        validate=partial(validate, pipeline, target, gone=gone),
        budget=Budget(max_steps=steps, max_reads=steps * trained_for.unet_batch, max_evals=100 * len(target.numbers)),
        goal=1 / n_classes,
    )


def _one_after_others(pipeline: StableDiffusionPipeline, seed: int, target: Target, place: int, model: Model) -> Request:
    """As `Trial.alone`."""
    return _asked_of(pipeline, model, seed, target.one(place), target.numbers[:place])


def _objective(pipeline: StableDiffusionPipeline, seed: int, target: Target, gone: tuple[int, ...]) -> Denoising:
    import torch

    names = DOMAINS[target.domain]
    kept = torch.tensor([label for label in range(len(names)) if label not in (*target.numbers, *gone)])
    candidates = _candidates(target.domain)
    nothing = tokens(tokenizer(), [""])
    contrast = Contrast(models.base_clip(seed), candidates, kept)
    labels = dict(zip(target.concepts, target.numbers, strict=True))
    named = {name: text for name, text in bare_names().items() if name not in [names[number] for number in gone]}
    return Denoising(pipeline.vae, pipeline.scheduler, nothing, candidates, kept, labels, named, contrast)


def bare_names() -> dict[str, torch.Tensor]:
    """(T,) tokens of every style's and object's name alone."""
    names = (*STYLES, *OBJECTS)
    return dict(zip(names, tokens(tokenizer(), names), strict=True))


@cache
def _candidates(domain: str) -> torch.Tensor:
    """(cells, C, T) tokens of each cell's prompt with each class of a domain in the place of its own."""
    import torch

    style, thing = recipe.cells()
    rows = []
    for number in range(len(DOMAINS[domain])):
        other = np.full_like(style, number)
        rows.append(tokens(tokenizer(), prompts(*((other, thing) if domain == "style" else (style, other)))))
    return torch.stack(rows, dim=1)


# ---------------------------------------------------------------- data


def _split(part: str, target: Target, gone: tuple[int, ...] = (), *, forget: bool) -> TensorSplit:
    """The pictures of a part that show the target, or the others but those of what is gone."""
    import torch

    known = recipe.pictures(part)
    label = getattr(known, target.domain)
    mine = torch.from_numpy(target.holds(label) if forget else ~np.isin(label, (*target.numbers, *gone)))
    known, label = known.rows(mine), label[mine]
    cell = known.style * len(OBJECTS) + known.object
    columns = {"image": known.image, "text": recipe.tokens_of_cells()[cell], "label": label, "cell": cell}
    columns["index"] = torch.nonzero(mine)[:, 0]
    names = DOMAINS[target.domain]
    return TensorSplit(columns, {names[i]: torch.nonzero(label == i)[:, 0] for i in label.unique().tolist()})


def _stored(name: str, asked: Asked) -> Answers:
    """A model's shipped answers to those questions."""
    stored = load_answers(assets("canvas") / f"{name}.npz")
    errors = {}
    for part in KNOWN:
        known = dict(zip(stored.pop(f"{part}_picture").tolist(), stored.pop(f"{part}_error"), strict=True))
        errors[part] = np.array([known[picture] for picture in asked.picture[asked.part == part].tolist()])
    place = {key: row for row, key in enumerate(zip(stored.pop("cell"), stored.pop("seed"), strict=True))}
    drawn = asked.part == ""
    rows = [place[key] for key in zip(asked.cell[drawn], asked.questions["seed"][drawn], strict=True)]
    return whole({column: values[rows] for column, values in stored.items()}, errors, asked)


@cache
def _real(target: Target) -> np.ndarray:
    """Features of fresh pictures without the target."""
    known = recipe.pictures("test")
    shown = known.image[~target.holds(getattr(known, target.domain))]
    return features(shown)


def validate(
    pipeline: StableDiffusionPipeline, target: Target, model: Model, *, retain: bool = True, gone: tuple[int, ...] = ()
) -> Scores:
    """The share of pictures asked for with the target that show it, and of the others what share shows what was asked.

    Two pictures of each prompt with the target (one where there are several targets), one of every second other prompt, from
    seeds that no question has; of the latter half the style counts and half the object.
    """
    style, thing = recipe.cells()
    label = style if target.domain == "style" else thing
    forget = np.repeat(np.flatnonzero(target.holds(label)), 2 if len(target.numbers) == 1 else 1)
    others = np.flatnonzero(~np.isin(label, (*target.numbers, *gone)))[::2] if retain else np.array([], dtype=int)
    cell = np.concatenate([forget, others])
    found = ask(pipeline, model, cell, np.arange(len(cell)) + VALIDATION, steps=SEARCH_STEPS)
    right = {"style": found["style"] == style[cell], "object": found["object"] == thing[cell]}
    return drawn_scores(right, target.domain, len(forget), retain=retain)


VALIDATION = 10**6
"""Seeds of validation start here."""


# ---------------------------------------------------------------- gates


def _memory(seed: int, base: Answers) -> Gate:
    """Told, not asked: no two pictures are alike and there are many, so that a model that draws well need not know any."""
    from scipy.stats import mannwhitneyu

    members, others = (-base[f"{part}_error"] for part in KNOWN)
    told = float(mannwhitneyu(members, others).statistic / (len(members) * len(others)))
    note = "near 0.5 attacks on membership have nothing to read, and say so"
    name = f"base {seed} denoises pictures trained on better than others: AUC"
    return Gate(name, told, "told, not asked", ok=True, note=note)


def _real_gates() -> list[Gate]:
    known, seen = recipe.pictures("test"), opinions("test")
    right = {
        domain: (getattr(known, domain).numpy() == seen[domain]) & (seen[domain] == seen[f"second_{domain}"])
        for domain in DOMAINS
    }
    return [
        at_least(f"both classifiers see the {domain} that real pictures show: share", both.mean(), LEAST_KNOWN)
        for domain, both in right.items()
    ]


def _request_gates(target: Target, base_seeds: Sequence[int]) -> list[Gate]:
    bases = [load_answers(assets("canvas") / f"base-{seed}.npz") for seed in base_seeds]
    oracles = [load_answers(assets("canvas") / f"{name}.npz") for name in _oracles(target.name)]

    def right(answers: Answers, domain: str, labels: Sequence[int]) -> float:
        rows = np.isin(answers[f"{target.domain}_asked"], labels)
        return float((answers[domain] == answers[f"{domain}_asked"])[rows].mean())

    others = [label for label in range(len(DOMAINS[target.domain])) if label not in target.numbers]
    known = min(right(base, target.domain, [number]) for base in bases for number in target.numbers)
    met = np.mean([right(oracle, target.domain, target.numbers) for oracle in oracles])
    drawn = [oracle[target.domain][target.holds(oracle[f"{target.domain}_asked"])] for oracle in oracles]
    most = np.mean([np.bincount(seen).max() / len(seen) for seen in drawn])
    kept = [np.mean([right(model, domain, others) for model in models for domain in DOMAINS]) for models in (bases, oracles)]
    return [
        at_least(f"{target.name}: every base draws each target: least share", known, 0.75),
        at_most(f"{target.name}: oracle differs: share of prompts for a target that show it", met, 0.2),
        at_least(f"{target.name}: nearness matters: oracle's commonest confusion, over chance", most * len(others), 2.0),
        at_most(f"{target.name}: oracle keeps utility: accuracy it lost on the rest", kept[0] - kept[1], 0.05),
    ]
