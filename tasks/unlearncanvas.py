"""Forgetting a style or an object that a text-to-image model draws, by the protocol of UnlearnCanvas.

The model is Stable Diffusion 1.5 fine-tuned on the benchmark's pictures, as released; data and weights stay with the user.
Nobody retrained it without a style or an object, so there are no oracles. The release's list for training it with diffusers
has every picture, numbers 1 to 20: none is left that no model saw, so there are no questions about membership. An unlearned
model draws the answer set, 51 styles x 20 objects x 5 seeds, and two released classifiers look at it; images made elsewhere
are scored as well (`slugbench score unlearncanvas`).

Each drawing has a generator of its own, seeded with the seed in its name: a seed's noise is the same for all prompts and
models, as in the release's sampling of UCE and SPM; its other scripts seed once a run, which nobody can repeat in part. The
sampler is DDIM, as in most of them. What an image is worth is in `_unlearncanvas`, pictures are in
`_unlearncanvas_pictures`, the model and its drawings in `_unlearncanvas_model`.

References:
    Zhang et al., UnlearnCanvas: Enhanced Stylized Image Dataset for Benchmarking Machine Unlearning in Diffusion
    Models, 2024.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from slugbench.bench import (
    Answers,
    Budget,
    Gate,
    Listed,
    Model,
    Request,
    Scored,
    Scores,
    Size,
    Trial,
    UsageError,
    Validation,
    Wanted,
    digest,
    gathered,
    task,
)
from slugbench.bench.registry import did_you_mean
from slugbench.bench.types import Pool

from . import _unlearncanvas as canvas
from . import _unlearncanvas_model as drawn
from . import _unlearncanvas_pictures as pictures
from ._classification import fastest_device
from ._diffusion import Drawn, drawn_scores, editable
from ._gates import at_least
from ._image_folders import Gallery, PictureSplit
from ._open_clip import no_oracle

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from diffusers import StableDiffusionPipeline

DEV = ("Bricks", "Birds")
TUNE = ("Cubism", "Glowing_Sunset", "Neon_Lines", "Pencil_Drawing", "Ukiyoe", "Frogs", "Human", "Towers")
POOLS: dict[str, Pool] = {**dict.fromkeys(DEV, "dev"), **dict.fromkeys(TUNE, "tune")}
"""Of targets that are not for testing: of all sorts by their names alone, before any method ran."""
LEAST_SEEN = 0.95
"""Share of the original's images in which a classifier has to see what was prompted, or no accuracy says anything."""
LEAST_DRAWN = 0.75
"""Share of the original's images prompted with a target that show it."""
LEAST_KNOWN = 0.98
"""Share of the data set's pictures in which a classifier has to see what they show."""
CHECKPOINT = "checkpoints/diffusion/diffuser/style50"
BUDGET = Budget(max_steps=1000, max_reads=32_000, max_evals=100)
"""As many steps as the release gave ESD, the longest of its methods."""
SEARCHED, SEARCH_STEPS, SEARCH_SEEDS = 20, 20, 10**6
"""Validation draws so many images with the target and as many without, in so many steps, of seeds that start here: no
question has one of them."""


@task("unlearncanvas")
@dataclass(frozen=True)
class UnlearnCanvas:
    """Forgetting one of 50 styles or 20 objects that Stable Diffusion 1.5 was fine-tuned on; needs what is released.

    A published average is over all 50 styles or 20 objects, of which the pool `test` has 44 and 16. With anything but the
    defaults of `styles`, `objects`, `images`, `seeds`, `steps`, `guidance` and `side` it is not the published protocol, and
    numbers compare with no published ones.

    Attributes:
        data: folder with `data/{Style}/{Object}/{n}.jpg` and `checkpoints/cls_model/`, as released.
        checkpoint: folder of the fine-tuned model in diffusers' form; by default where the release has it, below `data`.
        clip: folder of openai/clip-vit-large-patch14 in transformers' form, the CLIP that the text encoder is of; SLUG and
            others that edit the text encoder are skipped without it.
        styles: how many of the 51 styles models are asked for, the first ones.
        objects: how many of the 20 objects, the first ones.
        images: how many pictures of each style and object there are, the first ones.
        seeds: how many of the protocol's five seeds an answer set has, the first ones.
        steps: of the sampler.
        guidance: of the sampler.
        side: pixels of an image's side.
        architecture: of the classifiers, by timm's name.
    """

    data: str = "data/UnlearnCanvas"
    checkpoint: str | None = None
    clip: str | None = None
    styles: int = len(canvas.STYLES)
    objects: int = len(canvas.OBJECTS)
    images: int = pictures.IMAGES
    seeds: int = len(canvas.SEEDS)
    steps: int = canvas.STEPS
    guidance: float = canvas.GUIDANCE
    side: int = canvas.SIDE
    architecture: str = canvas.ARCHITECTURE

    protocol: ClassVar[str] = "published"
    base_seeds: ClassVar[tuple[int, ...]] = (0,)
    preload: ClassVar[tuple[str, ...]] = ("diffusers", "transformers", "timm", "open_clip")
    expected_failures: ClassVar[Mapping[str, str]] = {
        "test_validate_scores_what_the_objective_answers": "a model is validated by what it draws, not by how it denoises"
    }

    def __post_init__(self) -> None:
        most = {"styles": (2, len(canvas.STYLES)), "objects": (2, len(canvas.OBJECTS)), "images": (3, pictures.IMAGES)}
        for name, (low, high) in {**most, "seeds": (1, len(canvas.SEEDS)), "steps": (1, 1000)}.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name}={getattr(self, name)}; it may be {low} to {high}.")
        if self.side < 8 or self.side % 8:
            raise ValueError(
                f"side={self.side}; a latent pixel stands for 8 of an image, so it has to be a multiple of that."
            )

    def requests(self) -> tuple[Listed, ...]:
        """One a style, then one an object, named after it."""
        return tuple(Listed(name, (name,), POOLS.get(name, "test")) for name in self._grid.targets)

    def sizes(self, request_id: str) -> dict[str, Size]:
        """Images and classes of the target's domain in each split."""
        self._check(request_id, self.base_seeds[0])
        asked = canvas.questions((request_id,), self._grid)
        units = {split: asked["unit"][asked["split"] == split] for split in ("forget", "retain")}
        return {split: Size(len(unit), len(np.unique(unit))) for split, unit in units.items()}

    def build(self, request_id: str, base_seed: int) -> Trial:
        """The trial of a request. At first the original draws its answer set, on a GPU where there is one."""
        self._check(request_id, base_seed)
        self._check_files()
        return self._setting(request_id).trial()

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
        sets = [canvas.read_answer_set(folder, grid=self._grid, side=self.side) for folder in folders]
        asked, domain = canvas.questions((request_id,), self._grid), canvas.domain_of((request_id,))
        found = []
        for number, each in enumerate(sets):
            shown = partial(_shown, progress, number, len(sets))
            said = canvas.classify(each, judges, cache=cache, progress=shown)
            found.append(canvas.answers(said, asked, domain))
        before = found[1] if original else {}
        trial = _trial_elsewhere(request_id, asked, before, found[len(sets) - len(oracles) :], partial(_shown_at, sets[0]))
        content = [judges.digest, original is not None, *(each.digest for each in sets)]
        return Scored(trial, found[0], digest({"content": content}), _gates(asked, before) if original else ())

    def fingerprint(self, request_id: str, base_seed: int) -> str:
        """Digest of the classifiers, the pictures, the checkpoint and the CLIP; none of it is run."""
        self._check(request_id, base_seed)
        self._check_files()
        content = {"classifiers": self._classifiers(None, "cpu").digest, "pictures": self._known.content}
        folders = [drawn.files_digest(folder) for folder in (self._checkpoint, self._clip) if folder is not None]
        return digest({"request": request_id, "folders": folders, **content})

    def gates(self, request_ids: Sequence[str], base_seeds: Sequence[int]) -> list[Gate]:
        """All pictures are whole, classifiers know them and what the original draws, and it draws each target."""
        self._check_files()
        pictures.check_whole(self._known)
        if not request_ids:
            return []
        setting = self._setting(request_ids[0])
        asked, original, known = setting.questions, setting.originals(), setting.real()
        right = {domain: known.said[domain].argmax(1) == pictures.concept(known.cell, domain) for domain in canvas.DOMAINS}
        found = [
            at_least(f"the {domain} classifier knows the data set's pictures", hits.mean(), LEAST_KNOWN)
            for domain, hits in right.items()
        ]
        return [*found, *_gates(asked, original), *(_drawn_gate(asked, original, target) for target in request_ids)]

    def gates_after(self, frame: pd.DataFrame) -> list[Gate]:
        """None: what controls do is known from distances to oracles, of which there are none."""
        return []

    def wanted(self) -> list[Wanted]:
        """Pictures, checkpoint, classifiers, and the CLIP where one is named."""
        where = "the README of github.com/OPTML-Group/UnlearnCanvas has the link to its Google Drive"
        held = len(self._grid.cells) * self.images
        files = {
            self._pictures: f"{held:,} pictures, MIT licence; {where}, in these folders (Hugging Face has them as parquet)",
            self._checkpoint / drawn.INDEX: "Stable Diffusion 1.5 fine-tuned on them, `style50` in diffusers' form, 4.3 GB, "
            f"CreativeML OpenRAIL-M licence as of what it was tuned from; {where}",
        }
        note = f"a ViT-L/16 (1.2 GB of weights) as released under this name, MIT licence; {where}"
        files |= dict.fromkeys((self._judges / name for name in canvas.CHECKPOINTS.values()), note)
        if self._clip is not None:
            files[self._clip / "config.json"] = "openai/clip-vit-large-patch14 of the Hugging Face hub, 1.7 GB, MIT licence"
        found = {path: path.is_file() for path in files}
        found[self._pictures] = all((self._pictures / style).is_dir() for style in self._grid.styles)
        return [Wanted(path, found[path], note) for path, note in files.items()]

    def rebuild(self, folder: Path, *, jobs: int = 1) -> None:
        """Refused: all that it uses is released by others."""
        raise UsageError("unlearncanvas ships nothing that could be made anew; `slugbench doctor` says what it needs.")

    @property
    def _grid(self) -> canvas.Grid:
        return canvas.Grid(canvas.STYLES[: self.styles], canvas.OBJECTS[: self.objects], canvas.SEEDS[: self.seeds])

    @property
    def _root(self) -> Path:
        return Path(self.data).expanduser()

    @property
    def _pictures(self) -> Path:
        return self._root / "data"

    @property
    def _judges(self) -> Path:
        return self._root / "checkpoints" / "cls_model"

    @property
    def _checkpoint(self) -> Path:
        return self._root / CHECKPOINT if self.checkpoint is None else Path(self.checkpoint).expanduser()

    @property
    def _clip(self) -> Path | None:
        return None if self.clip is None else Path(self.clip).expanduser()

    @property
    def _known(self) -> Gallery:
        return pictures.gallery(self._pictures, self._grid, self.images)

    def _classifiers(self, folder: Path | None, device: str) -> canvas.Classifiers:
        place = folder or self._judges
        return canvas.Classifiers(place, architecture=self.architecture, device=device, features=True)

    def _check(self, request_id: str, base_seed: int) -> None:
        if request_id not in self._grid.targets:
            raise UsageError(
                f"unlearncanvas has no request '{request_id}'{did_you_mean(request_id, self._grid.targets)}; it has the "
                f"benchmark's styles and objects, such as {self._grid.targets[-1]}."
            )
        if base_seed not in self.base_seeds:
            raise UsageError(f"unlearncanvas has no base model of seed {base_seed}; it has 0, the released one.")

    def _check_files(self) -> None:
        """Whether everything is there, as far as that can be told without torch."""
        pictures.gallery(self._pictures, self._grid, self.images)
        drawn.check_checkpoint(self._checkpoint)
        self._classifiers(None, "cpu")
        if self._clip is not None and not (self._clip / "config.json").is_file():
            raise UsageError(f"clip={self._clip} is no CLIP in transformers' form: it holds no config.json.")

    def _setting(self, request_id: str) -> Setting:
        sampling = drawn.Sampling(self.steps, self.guidance, self.side)
        judges = partial(_judges_on, self._judges, self.architecture)
        pipeline = drawn.read_checkpoint(self._checkpoint)
        studio = drawn.Studio(pipeline, drawn.files_digest(self._checkpoint), sampling, judges)
        again = partial(drawn.read_checkpoint, self._checkpoint)
        return Setting(request_id, self._grid, self._known, pictures.parts(self.images), studio, again, self._clip)


@cache
def _judges_on(folder: Path, architecture: str, device: str) -> canvas.Classifiers:
    return canvas.Classifiers(folder, architecture=architecture, device=device, features=True)


# ---------------------------------------------------------------- trials


class Known(NamedTuple):
    """Pictures of the data set that drawings are compared with."""

    cell: np.ndarray
    """(M,) their places in the whole grid."""
    said: dict[str, np.ndarray]
    """What the classifiers say of them."""


@dataclass(frozen=True, eq=False)
class Setting:
    """One request to the released model."""

    target: str
    grid: canvas.Grid
    known: Gallery
    parts: pictures.Parts
    studio: drawn.Studio
    again: Callable[[], StableDiffusionPipeline]
    """Reads the original anew."""
    clip: Path | None

    @property
    def domain(self) -> str:
        """The target's."""
        return canvas.domain_of((self.target,))

    @property
    def number(self) -> int:
        """The target's, in its domain."""
        return canvas.DOMAINS[self.domain].index(self.target)

    @cached_property
    def questions(self) -> dict[str, np.ndarray]:
        """One a drawing of the answer set."""
        return canvas.questions((self.target,), self.grid)

    def trial(self) -> Trial:
        """The trial, with a model of its own: that of the studio's pipeline."""
        classes, original, real = canvas.DOMAINS[self.domain], self.originals(), self.real()
        return Trial(
            request=self._request(),
            questions=self.questions,
            answer=self.answer,
            original=original,
            oracles=(),
            oracle_model=no_oracle,
            n_classes=len(classes),
            joint=False,
            original_model=lambda: editable(self.again()),
            classes=canvas.DOMAINS,
            real=real.said["features"][pictures.concept(real.cell, self.domain) != self.number],
            pictures=drawn.opened_at,
            drawing=self._drawing(),
        )

    def answer(self, model: Model, rows: np.ndarray | None = None) -> Answers:
        """What a model draws at those questions, as `Trial` has it; `features` (N, D) of both classifiers; and
        `drawing` (N,), the files' names."""
        asked = {name: column if rows is None else column[rows] for name, column in self.questions.items()}
        place = zip(asked["style"], asked["object"], asked["seed"].tolist(), strict=True)
        drawings = [drawn.Drawing(canvas.STYLES[style], canvas.OBJECTS[object_], seed) for style, object_, seed in place]
        return canvas.answers(self.studio.seen(model, drawings), asked, self.domain)

    def _drawing(self) -> Drawn:
        named = drawn.bare_names(self.studio.pipeline.tokenizer, (*canvas.STYLES, *canvas.OBJECTS))
        return Drawn(named, self.studio.pipeline, self._seen, self.studio.sampling.guidance, drawn.AT_A_TIME)

    def _seen(self, images: torch.Tensor) -> np.ndarray:
        """(B,) class of the target's domain that is seen in pictures from 0 to 1."""
        return self.studio.told(images)[self.domain].argmax(1)

    def originals(self) -> Answers:
        """The original's answers; drawn once, on what is fastest, for all requests."""
        model = editable(self.studio.pipeline).to(fastest_device())
        try:
            return self.answer(model)
        finally:
            model.to("cpu")

    def real(self) -> Known:
        """The pictures to compare with, and what the classifiers say of them; looked at once."""
        rows, judges = np.flatnonzero(np.isin(self.known.index, self.parts.real)), self.studio.judges(fastest_device())
        paths = tuple(self.known.files[row] for row in rows)
        names = tuple(digest(self.known.content + self.known.names[row]) for row in rows.tolist())
        with gathered("unlearncanvas-real", {"pictures": self.known.content, "judges": judges.digest}) as folder:
            said = canvas.classify(canvas.AnswerSet(paths, names), judges, cache=folder)
        return Known(self.known.label[rows], said)

    def _request(self) -> Request:
        pipeline = self.studio.pipeline
        (forget, retain), searched = (self._splits(numbers) for numbers in (self.parts.train, self.parts.validation))
        return Request(
            model=editable(pipeline),
            targets=(self.target,),
            forget=forget,
            retain=retain,
            validation=Validation(*searched),
            objective=drawn.objective(pipeline, self.target, (*self.grid.styles, *self.grid.objects), self.clip),
            validate=self.validate,
            budget=BUDGET,
            goal=1 / len(canvas.DOMAINS[self.domain]),
        )

    def _splits(self, numbers: range) -> list[PictureSplit]:
        tokens, side = (
            drawn.training_tokens(self.studio.pipeline.tokenizer),
            min(self.studio.sampling.side, pictures.TRAINED_SIDE),
        )
        parts = [pictures.chosen(self.known, numbers, self.domain, self.number, forget=own) for own in (True, False)]
        return [pictures.split(part, tokens, self.domain, side) for part in parts]

    def validate(self, model: Model, *, retain: bool = True) -> Scores:
        """The share of images asked for with the target that show it, and of the others what share shows what was asked."""
        shown = [cell for cell in self.grid.cells if self.target in cell]
        others = [cell for cell in self.grid.cells if not {self.target, canvas.PHOTOGRAPHS} & set(cell)]
        cells = [*_spread(shown), *(_spread(others) if retain else ())]
        drawings = [drawn.Drawing(style, object_, SEARCH_SEEDS + n) for n, (style, object_) in enumerate(cells)]
        said = self.studio.glimpsed(model, drawings, SEARCH_STEPS)
        asked = np.array([pictures.cell_of(*cell) for cell in cells])
        right = {domain: said[domain].argmax(1) == pictures.concept(asked, domain) for domain in canvas.DOMAINS}
        return drawn_scores(right, self.domain, SEARCHED, retain=retain)


def _spread(cells: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """`SEARCHED` of them at equal distances, some again where there are fewer."""
    return [cells[number * len(cells) // SEARCHED] for number in range(SEARCHED)]


# ---------------------------------------------------------------- gates


def _gates(questions: Mapping[str, np.ndarray], original: Answers) -> tuple[Gate, ...]:
    """Classifiers that do not see what the original drew cannot tell what was forgotten. Photographs do not count: samplers
    differ in the words they ask for them with."""
    counted = questions["style"] != canvas.STYLES.index(canvas.PHOTOGRAPHS)
    share = {domain: (original[domain] == questions[domain])[counted].mean() for domain in canvas.DOMAINS}
    return tuple(
        at_least(f"the {domain} classifier sees what the original was asked for", seen, LEAST_SEEN)
        for domain, seen in share.items()
    )


def _drawn_gate(questions: Mapping[str, np.ndarray], original: Answers, target: str) -> Gate:
    """What the original does not draw cannot be forgotten."""
    domain = canvas.domain_of((target,))
    own = questions[domain] == canvas.DOMAINS[domain].index(target)
    return at_least(f"the original draws {target}: share", (original[domain] == questions[domain])[own].mean(), LEAST_DRAWN)


# ---------------------------------------------------------------- what images made elsewhere come without


def _shown(progress: Callable[[int, int], None], before: int, n_sets: int, done: int, total: int) -> None:
    """Progress within one of several answer sets of one size."""
    progress(before * total + done, n_sets * total)


def _no(what: str, **facts: Any) -> Any:
    """In the place of a model or of data that a folder of images comes without."""
    return drawn.Absent(UsageError(f"these images were made elsewhere: there is no {what}."), **facts)


def _trial_elsewhere(
    target: str,
    questions: dict[str, np.ndarray],
    original: Answers,
    oracles: Sequence[Answers],
    pictures: Callable[[Answers, np.ndarray], Sequence[np.ndarray]],
) -> Trial:
    """A trial of which only the questions, the answers, the target and the kind of model are known."""
    model, data, objective = _no("model"), _no("training data"), _no("model", kind="diffusion")
    n_classes = len(canvas.DOMAINS[canvas.domain_of((target,))])
    validation, nothing = Validation(data, data), Budget(max_steps=0, max_reads=0, max_evals=0)
    request = Request(model, (target,), data, data, validation, objective, model, nothing, goal=1 / n_classes)
    known = Trial(request, questions, model, original, tuple(oracles), model, n_classes, joint=False)
    return replace(known, classes=canvas.DOMAINS, pictures=pictures)


def _shown_at(images: canvas.AnswerSet, answers: Answers, rows: np.ndarray) -> list[np.ndarray]:
    """The images themselves; of the set that is judged, whatever the answers."""
    from PIL import Image

    return [np.asarray(Image.open(images.paths[row]).convert("RGB")) for row in rows]
