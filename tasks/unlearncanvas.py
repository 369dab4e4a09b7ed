"""Forgetting a style or an object that a text-to-image model draws, by the protocol of UnlearnCanvas.

Scores folders of images made elsewhere (`slugbench score unlearncanvas`). What an image is worth is in `_unlearncanvas`;
models are not run here yet, so that there is no trial to build.

References:
    Zhang et al., UnlearnCanvas: Enhanced Stylized Image Dataset for Benchmarking Machine Unlearning in Diffusion
    Models, 2024.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import numpy as np

from slugbench.bench import (
    Answers,
    Budget,
    Gate,
    Listed,
    Request,
    Scored,
    Trial,
    UsageError,
    Validation,
    Wanted,
    digest,
    task,
)
from slugbench.bench.types import Pool

from . import _unlearncanvas as canvas
from ._gates import at_least

if TYPE_CHECKING:
    import pandas as pd

DEV = ("Bricks", "Birds")
TUNE = ("Cubism", "Glowing_Sunset", "Neon_Lines", "Pencil_Drawing", "Ukiyoe", "Frogs", "Human", "Towers")
POOLS: dict[str, Pool] = {**dict.fromkeys(DEV, "dev"), **dict.fromkeys(TUNE, "tune")}
"""Of targets that are not for testing: of all sorts by their names alone, before any method ran."""
ELSEWHERE = (
    "unlearncanvas makes no images of its own yet; make an answer set elsewhere and give it to "
    "`slugbench score unlearncanvas`."
)
LEAST_SEEN = 0.95
"""Share of the original's images in which a classifier has to see what was prompted, or no accuracy says anything."""


@task("unlearncanvas")
@dataclass(frozen=True)
class UnlearnCanvas:
    """Forgetting one of 50 styles or 20 objects that Stable Diffusion 1.5 was fine-tuned on; images made elsewhere.

    A published average is over all 50 styles or 20 objects, of which the pool `test` has 44 and 16.

    Attributes:
        data: folder with `checkpoints/cls_model/`, as released.
        seeds: how many of the protocol's five seeds an answer set has, the first ones.
        side: pixels of an image's side.
        architecture: of the classifiers, by timm's name.
    """

    data: str = "data/UnlearnCanvas"
    seeds: int = len(canvas.SEEDS)
    side: int = canvas.SIDE
    architecture: str = canvas.ARCHITECTURE

    base_seeds: ClassVar[tuple[int, ...]] = (0,)
    preload: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.seeds <= len(canvas.SEEDS):
            raise ValueError(f"seeds={self.seeds}; there are 1 to {len(canvas.SEEDS)} of them.")

    def requests(self) -> tuple[Listed, ...]:
        """One a style, then one an object, named after it."""
        targets = [name for name in (*canvas.STYLES, *canvas.OBJECTS) if name != canvas.PHOTOGRAPHS]
        return tuple(Listed(name, (name,), POOLS.get(name, "test")) for name in targets)

    def build(self, request_id: str, base_seed: int) -> Trial:
        """No trial yet: it says which checkpoint is missing, or that images have to be made elsewhere."""
        self._check(request_id, base_seed)
        self._classifiers(None, "cpu")  # names a missing checkpoint
        raise UsageError(ELSEWHERE)

    def score(
        self,
        request_id: str,
        images: Path,
        *,
        cache: Path,
        classifiers: Path | None = None,
        original: Path | None = None,
        oracles: Sequence[Path] = (),
        device: str = "cpu",
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Scored:
        """Answers by the images in a folder (see `Scoring`); all folders are looked through before any is classified."""
        self._check(request_id, self.base_seeds[0])
        judges = self._classifiers(classifiers, device)
        folders = [images, *([original] if original else []), *oracles]
        sets = [canvas.read_answer_set(folder, seeds=self._seeds, side=self.side) for folder in folders]
        asked, domain = canvas.questions((request_id,), self._seeds), canvas.domain_of((request_id,))
        found = []
        for number, each in enumerate(sets):
            shown = partial(_shown, progress, number, len(sets))
            log_p = canvas.classify(each, judges, cache=cache, progress=shown)
            found.append(canvas.answers(log_p, asked, domain))
        before = found[1] if original else {}
        trial = _trial_elsewhere(request_id, asked, before, found[len(sets) - len(oracles) :], partial(_shown_at, sets[0]))
        content = [judges.digest, original is not None, *(each.digest for each in sets)]
        return Scored(trial, found[0], digest({"content": content}), _gates(asked, before) if original else ())

    def fingerprint(self, request_id: str, base_seed: int) -> str:
        """Digest of the classifiers and of the questions."""
        self._check(request_id, base_seed)
        return digest({"request": request_id, "classifiers": self._classifiers(None, "cpu").digest, "seeds": self._seeds})

    def gates(self, request_ids: Sequence[str], base_seeds: Sequence[int]) -> list[Gate]:
        """Refused: all of them ask what models draw."""
        raise UsageError(ELSEWHERE)

    def gates_after(self, frame: pd.DataFrame) -> list[Gate]:
        """None: controls are models."""
        return []

    def wanted(self) -> list[Wanted]:
        """The two classifiers."""
        note = (
            "a ViT-L/16 (1.2 GB of weights) as released under this name; the README of OPTML-Group/UnlearnCanvas says where"
        )
        files = [self._checkpoints / name for name in canvas.CHECKPOINTS.values()]
        return [Wanted(file, file.is_file(), note) for file in files]

    def rebuild(self, folder: Path, *, jobs: int = 1) -> None:
        """Refused: all that it uses is released by others."""
        raise UsageError("unlearncanvas ships nothing that could be made anew; `slugbench doctor` says what it needs.")

    @property
    def _seeds(self) -> tuple[int, ...]:
        return canvas.SEEDS[: self.seeds]

    @property
    def _checkpoints(self) -> Path:
        return Path(self.data).expanduser() / "checkpoints" / "cls_model"

    def _classifiers(self, folder: Path | None, device: str) -> canvas.Classifiers:
        return canvas.Classifiers(folder or self._checkpoints, architecture=self.architecture, device=device)

    def _check(self, request_id: str, base_seed: int) -> None:
        if request_id not in {request.id for request in self.requests()}:
            raise UsageError(
                f"unlearncanvas has no request '{request_id}'; it has the benchmark's styles and objects, such as Van_Gogh."
            )
        if base_seed not in self.base_seeds:
            raise UsageError(f"unlearncanvas has no base model of seed {base_seed}; it has 0, the released one.")


def _shown(progress: Callable[[int, int], None], before: int, n_sets: int, done: int, total: int) -> None:
    """Progress within one of several answer sets of one size."""
    progress(before * total + done, n_sets * total)


def _gates(questions: Mapping[str, np.ndarray], original: Answers) -> tuple[Gate, ...]:
    """Classifiers that do not see what the original drew cannot tell what was forgotten. Photographs do not count: samplers
    differ in the words they ask for them with."""
    counted = questions["style"] != canvas.STYLES.index(canvas.PHOTOGRAPHS)
    share = {domain: (original[domain] == questions[domain])[counted].mean() for domain in canvas.DOMAINS}
    return tuple(
        at_least(f"the {domain} classifier sees what the original was asked for", seen, LEAST_SEEN)
        for domain, seen in share.items()
    )


# ---------------------------------------------------------------- what images made elsewhere come without


class _Absent:
    """In the place of a model or of data that a folder of images comes without: whoever uses it is told so."""

    def __init__(self, what: str, **facts: Any) -> None:
        self.__dict__ |= {"_what": what, **facts}

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):  # what copying and introspection try
            raise AttributeError(name)
        self()

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        raise UsageError(f"these images were made elsewhere: there is no {self.__dict__['_what']}.")

    def __len__(self) -> NoReturn:
        self()


def _trial_elsewhere(
    target: str,
    questions: dict[str, np.ndarray],
    original: Answers,
    oracles: Sequence[Answers],
    pictures: Callable[[Answers, np.ndarray], Sequence[np.ndarray]],
) -> Trial:
    """A trial of which only the questions, the answers, the target and the kind of model are known."""
    model: Any = _Absent("model")
    data: Any = _Absent("training data")
    objective: Any = _Absent("model", kind="diffusion")
    n_classes = len(canvas.DOMAINS[canvas.domain_of((target,))])
    validation, nothing = Validation(data, data), Budget(max_steps=0, max_reads=0, max_evals=0)
    request = Request(model, (target,), data, data, validation, objective, model, nothing, goal=1 / n_classes)
    known = Trial(request, questions, model, original, tuple(oracles), model, n_classes, joint=False)
    return replace(known, classes=canvas.DOMAINS, pictures=pictures)


def _shown_at(images: canvas.AnswerSet, answers: Answers, rows: np.ndarray) -> list[np.ndarray]:
    """The images themselves; of the set that is judged, whatever the answers."""
    from PIL import Image

    return [np.asarray(Image.open(images.paths[row]).convert("RGB")) for row in rows]
