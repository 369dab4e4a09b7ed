"""Which models `canvas` ships or caches, and how all of them are made anew: one folder in, one folder out.

A file that is there is not made again, so that a stopped rebuild goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from slugbench.bench import Model, cached

from . import _canvas_answers, _canvas_model
from ._canvas_answers import DOMAINS, SEEDS, TARGET_TIMES, Target, classifier_file
from ._canvas_recipe import CLASSIFIERS, Recipe, cells, pictures, train, train_classifier
from ._diffusion import editable, read_pipeline
from ._shipped import assets, load_weights, save_answers, save_weights
from ._training import one_thread, write_whole

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPModel

BASE_SEEDS = (0, 1)
N_ORACLES = 2
TARGETS = (
    *(Target(domain, (number,)) for domain, names in DOMAINS.items() for number in range(len(names))),
    Target("style", tuple(map(DOMAINS["style"].index, ("dots", "mosaic", "ink", "night")))),
)
"""Each style and object by itself; then four styles together, which can also be forgotten one after the other."""
SHIPPED = ("neon", "ball")
"""Requests whose oracles ship as weights: those of the suite `quick`, and of which attacks need models."""


def base(seed: int) -> StableDiffusionPipeline:
    """A shipped base pipeline, read anew."""
    with _quiet():
        return read_pipeline(assets("canvas") / base_name(seed))


def base_clip(seed: int) -> CLIPModel:
    """The CLIP that a base's text encoder is of."""
    from transformers import CLIPModel

    with _quiet():
        clip = CLIPModel.from_pretrained(assets("canvas") / base_name(seed) / "clip", local_files_only=True)
    return clip.float().eval().requires_grad_(False)


def oracle(target: Target, number: int) -> Model:
    """Text encoder and U-Net that never saw the target: shipped, or trained once and kept in the cache."""
    path = assets("canvas") / f"{oracle_name(target, number)}.safetensors"
    if not path.is_file():
        key = {"target": target.name, "number": number, "recipe": asdict(Recipe())}
        path = cached("canvas-oracle", key, partial(_train_oracle, target, number), suffix=".safetensors")
    clip, unet = _canvas_model.new_clip(0), _canvas_model.new_unet(0)
    return load_weights(editable(_canvas_model.new_pipeline(clip.text_model, unet)), path)


def base_name(seed: int) -> str:
    """The folder of a base pipeline, and the file of its answers."""
    return f"base-{seed}"


def oracle_name(target: Target, number: int) -> str:
    """The files of an oracle."""
    return f"{target.name}-oracle-{number}"


def files_of(folder: Path) -> list[Path]:
    """All files of a saved pipeline."""
    return sorted(file for file in folder.rglob("*") if file.is_file())


@contextmanager
def _quiet() -> Iterator[None]:
    """No bars and no remarks of the libraries about pipelines that are known to be whole."""
    from diffusers.utils import logging as diffusers
    from transformers.utils import logging as transformers

    before = [library.get_verbosity() for library in (diffusers, transformers)]
    bars = [library.is_progress_bar_enabled() for library in (diffusers, transformers)]
    for library in (diffusers, transformers):
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, level, bar in zip((diffusers, transformers), before, bars, strict=True):
            library.set_verbosity(level)
            if bar:
                library.enable_progress_bar()


# ---------------------------------------------------------------- made anew


def rebuild(folder: Path, *, jobs: int) -> None:
    """Make everything into `folder`: two classifiers, then two bases and 38 oracles of five minutes each on one thread."""
    folder.mkdir(parents=True, exist_ok=True)
    _each(jobs, [partial(_make_classifier, folder, kind) for kind in CLASSIFIERS])
    makers = [partial(_make_base, folder, seed) for seed in BASE_SEEDS]
    makers += [partial(_make_oracle, folder, target, number) for target in TARGETS for number in range(N_ORACLES)]
    _each(jobs, makers)


def _each(jobs: int, makers: Sequence[Callable[[], None]]) -> None:
    import joblib

    joblib.Parallel(n_jobs=jobs, batch_size=1, pre_dispatch="2*n_jobs")(joblib.delayed(_alone)(make) for make in makers)


def _alone(make: Callable[[], None]) -> None:
    """On one thread, reproducibly."""
    import torch

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    make()


def _make_classifier(folder: Path, kind: str) -> None:
    path = classifier_file(folder, kind)
    if not path.is_file():
        write_whole(partial(save_weights, train_classifier(kind)), path)


def _make_base(folder: Path, seed: int) -> None:
    if (folder / f"{base_name(seed)}.npz").is_file():
        return
    made, place = train(pictures("train"), seed), folder / base_name(seed)
    with _quiet():
        made.clip.half().save_pretrained(place / "clip")  # its text encoder is the pipeline's
        made.pipeline.to(dtype=made.clip.dtype).save_pretrained(place)
        pipeline = read_pipeline(place)  # as it ships, rounded
    everything = np.arange(len(cells()[0])).repeat(TARGET_TIMES * SEEDS)
    seeds = np.tile(np.arange(TARGET_TIMES * SEEDS), len(cells()[0]))
    pictures_too = np.arange(len(pictures("train").image))
    _note(folder, base_name(seed), pipeline, editable(pipeline), everything, seeds, pictures_too)


def _make_oracle(folder: Path, target: Target, number: int) -> None:
    name = oracle_name(target, number)
    if (folder / f"{name}.npz").is_file():
        return
    path = folder / f"{name}.safetensors"
    _train_oracle(target, number, path)
    asked = _canvas_answers.grid(target, SEEDS)
    drawn = asked.part == ""
    clip, unet = _canvas_model.new_clip(0), _canvas_model.new_unet(0)
    pipeline = _canvas_model.new_pipeline(clip.text_model, unet)
    model = load_weights(editable(pipeline), path)
    _note(folder, name, pipeline, model, asked.cell[drawn], asked.questions["seed"][drawn], _canvas_answers.shows(target))
    if target.name not in SHIPPED:
        path.unlink()


def _train_oracle(target: Target, number: int, path: Path) -> None:
    known = pictures("train")
    others = ~target.holds(getattr(known, target.domain))
    with one_thread():  # as in `rebuild`, or the cached one would be another
        save_weights(editable(train(known.rows(others), 1000 + number).pipeline), path)


def _note(
    folder: Path, name: str, pipeline: Any, model: Model, cell: np.ndarray, seed: np.ndarray, shown: np.ndarray
) -> None:
    """Write what a model draws, and how well it denoises those pictures; last, since it says that the model is done."""
    noise, steps = _canvas_answers.noise(cell, seed), _canvas_answers.STEPS
    found = _canvas_answers.ask(pipeline, model, cell, noise, steps=steps, classifiers=folder)
    style, thing = cells()
    found |= {"cell": cell, "seed": seed, "style_asked": style[cell], "object_asked": thing[cell]}
    for part in _canvas_answers.KNOWN:
        found |= {f"{part}_picture": shown, f"{part}_error": _canvas_answers.error(pipeline, model, part, shown)}
    write_whole(partial(save_answers, {key: _small(column) for key, column in found.items()}), folder / f"{name}.npz")


def _small(column: np.ndarray) -> np.ndarray:
    kinds = {np.dtype(np.float64): np.float32, np.dtype(np.int64): np.int16}
    return column.astype(kinds.get(column.dtype, column.dtype))
