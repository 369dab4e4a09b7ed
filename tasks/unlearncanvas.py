"""Forgetting a style or an object that a text-to-image model draws, by the protocol of UnlearnCanvas.

Scores folders of images made elsewhere (`slugbench score unlearncanvas`). What an image is worth is in `_unlearncanvas`;
models are not run here yet, so that there is no trial to build.

References:
    Zhang et al., UnlearnCanvas: Enhanced Stylized Image Dataset for Benchmarking Machine Unlearning in Diffusion
    Models, 2024.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from slugbench.bench import Gate, Listed, Request, Scored, Trial, UsageError, Validation, Wanted, digest, task
from slugbench.bench.types import Budget, Pool

from . import _unlearncanvas as canvas

if TYPE_CHECKING:
    import pandas as pd

DEV = ("Bricks", "Birds")
TUNE = ("Cubism", "Glowing_Sunset", "Neon_Lines", "Pencil_Drawing", "Ukiyoe", "Frogs", "Human", "Towers")
POOLS: dict[str, Pool] = {**dict.fromkeys(DEV, "dev"), **dict.fromkeys(TUNE, "tune")}
"""Of targets that are not for testing: of all sorts by their names alone, before any method ran."""


@task("unlearncanvas")
@dataclass(frozen=True)
class UnlearnCanvas:
    """Forgetting one of 50 styles or 20 objects that Stable Diffusion 1.5 was fine-tuned on; images made elsewhere.

    A published average is over all 50 styles or 20 objects, of which the pool `test` has 44 and 16.

    Attributes:
        root: folder with `checkpoints/cls_model/`, as released.
        seeds: how many of the protocol's five seeds an answer set has, the first ones.
        side: pixels of an image's side.
        architecture: of the classifiers, by timm's name.
    """

    root: str = "UnlearnCanvas"
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
        raise UsageError(
            "unlearncanvas makes no images of its own yet; make an answer set elsewhere and give it to "
            "`slugbench score unlearncanvas`."
        )

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
        first_oracle = len(sets) - len(oracles)
        trial = Trial(
            request=_asked_elsewhere(request_id, len(canvas.DOMAINS[domain])),
            questions=asked,
            answer=_Absent("model"),
            original=found[1] if original else {},
            oracles=tuple(found[first_oracle:]),
            oracle_model=_Absent("model"),
            n_classes=len(canvas.DOMAINS[domain]),
            joint=False,
            classes=canvas.DOMAINS,
        )
        content = [judges.digest, original is not None, *(each.digest for each in sets)]
        return Scored(trial, found[0], digest({"content": content}))

    def fingerprint(self, request_id: str, base_seed: int) -> str:
        """Digest of the classifiers and of the questions."""
        self._check(request_id, base_seed)
        return digest({"request": request_id, "classifiers": self._classifiers(None, "cpu").digest, "seeds": self._seeds})

    def gates(self, request_ids: Sequence[str], base_seeds: Sequence[int]) -> list[Gate]:
        """None: all of them ask what the base model draws."""
        return []

    def gates_after(self, frame: pd.DataFrame) -> list[Gate]:
        """None: controls are models."""
        return []

    def wanted(self) -> list[Wanted]:
        """The two classifiers."""
        note = "a classifier of 1.2 GB, as released under this name; the README of OPTML-Group/UnlearnCanvas says where"
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
        return Path(self.root) / "checkpoints" / "cls_model"

    def _classifiers(self, folder: Path | None, device: str) -> canvas.Classifiers:
        return canvas.Classifiers(folder or self._checkpoints, architecture=self.architecture, device=device)

    def _check(self, request_id: str, base_seed: int) -> None:
        if request_id not in {request.id for request in self.requests()}:
            raise UsageError(f"unlearncanvas has no request '{request_id}'; `slugbench list` shows styles and objects.")
        if base_seed not in self.base_seeds:
            raise UsageError(f"unlearncanvas has no base model of seed {base_seed}; it has 0, the released one.")


def _shown(progress: Callable[[int, int], None], before: int, n_sets: int, done: int, total: int) -> None:
    """Progress within one of several answer sets of one size."""
    progress(before * total + done, n_sets * total)


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


def _asked_elsewhere(target: str, n_classes: int) -> Request:
    """A request of which only the target and the kind of model are known."""
    data: Any = _Absent("training data")
    model: Any = _Absent("model")
    objective: Any = _Absent("model", kind="diffusion")
    return Request(model, (target,), data, data, Validation(data, data), objective, model, Budget(0, 0, 0), 1 / n_classes)
