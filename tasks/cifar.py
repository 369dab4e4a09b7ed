"""Class and random-sample forgetting on CIFAR-10 and CIFAR-100, the home ground of SalUn and of Deep Unlearning by SVD.

The original is a ResNet-18 or a VGG-16-BN in its CIFAR form. Nothing ships: base models and oracles are trained by
`slugbench artifacts rebuild cifar10:data=DIR`, which takes hours, goes on where it was stopped, and never starts by
itself; until then a run refuses. A file of weights can stand in for the base model.

Two protocols:

    clean      (default) 10 % of each class are set aside from training: the original never saw them, and methods choose on
               them. They are the 5,000 that SalUn's code sets aside for its own base model, so one trained by that code
               can be given. What is forgotten was trained on, and test images serve for nothing but the result.
    published  as the tables of the two papers came about: methods choose on the test images they are reported on. With
               SalUn's recipe what is forgotten comes from a second draw of the training images, so that a tenth of it was
               never trained on; Deep Unlearning's (`recipe=svd`) sets no image aside.

References:
    Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009 (the data).
    Fan et al., SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency, 2024.
    Kodge et al., Deep Unlearning: Fast and Efficient Gradient-free Class Forgetting, 2024.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import NonNegativeInt

from slugbench.bench import (
    Answers,
    Budget,
    Gate,
    Listed,
    Model,
    Request,
    Size,
    Trial,
    UsageError,
    Validation,
    Wanted,
    cached,
    digest,
    task,
)
from slugbench.bench.artifacts import artifact_path

from ._cifar import ASKED_TO_LEARN_FROM as ASKED
from ._cifar import (
    BASE_SPLIT,
    CIFAR10,
    CIFAR100,
    DRAWS,
    Facts,
    Parts,
    download,
    draw_disjoint,
    draw_published,
    drawn_of,
    load_pictures,
    new_model,
    parts_of,
    published_seed,
    split_of,
)
from ._classification import (
    CrossEntropy,
    Pictures,
    PictureSplit,
    Recipe,
    ask,
    controls_caught,
    digest_of,
    existing,
    features,
    fill,
    fit,
    kept_answers,
    load_checkpoint,
    validate,
)
from ._gates import at_least, at_most

if TYPE_CHECKING:
    import pandas as pd

RECIPES = {
    "salun": Recipe(epochs=182, batch=256, learning_rate=0.1, milestones=(91, 136)),
    "svd": Recipe(epochs=350, batch=64, learning_rate=0.1, nesterov=True),
}
"""Those of the two papers' codes."""
VERSION = 1
"""To be raised with whatever changes what a recipe comes to."""


@dataclass(frozen=True)
class _Cifar:
    """Forgetting a class, or random training images, of a classifier of one of the two data sets."""

    data: str = "data"
    """The folder that holds `cifar-10-batches-py` or `cifar-100-python`."""
    model: Literal["resnet18", "vgg16_bn"] = "resnet18"
    checkpoint: str | None = None
    """A file of weights to take for the base model; `{seed}` in its name stands for the base seed."""
    recipe: Literal["salun", "svd"] = "salun"
    protocol: Literal["default", "published"] = "default"
    oracles: NonNegativeInt = 3
    """Retrained models a request, each as long in training as the base model; 0 where that is too long."""
    augment: bool = True
    """Whether training images are augmented as in the recipe where a method reads them in an order drawn at random."""
    download: bool = False
    """Have `artifacts rebuild` fetch the data, through torchvision, and train nothing."""

    base_seeds: ClassVar[tuple[int, ...]] = (0, 1, 2)
    preload: ClassVar[tuple[str, ...]] = ("torchvision", "safetensors.torch")
    facts: ClassVar[Facts]

    def requests(self) -> tuple[Listed, ...]:
        """`class-K`; then `random-10-S` and `random-50-S`, draw S of a tenth and of half of the training images."""
        classes = [Listed(f"class-{k}", (str(k),), pool) for k, pool in sorted(self.facts.pools.items())]
        draws = [(percent, pools) for percent, pools in DRAWS.items()]
        return *classes, *(Listed(f"random-{p}-{s}", (), pool) for p, pools in draws for s, pool in enumerate(pools))

    def sizes(self, request_id: str) -> dict[str, Size]:
        """Images and classes of each split; classes are all of one size."""
        facts, listed = self.facts, self._listed(request_id)
        n, n_train = facts.n_classes, facts.n_train * 9 // 10
        if not listed.targets:
            forgotten = n_train * drawn_of(listed).percent // 100
            kept = min(ASKED, n_train - forgotten)
            return {"forget": Size(forgotten, n), "retain": Size(facts.n_test, n), "retain_train": Size(kept, n)}
        kept = min(ASKED, n_train - n_train // n)
        return {
            "forget": Size(facts.n_test // n, 1),
            "retain": Size(facts.n_test - facts.n_test // n, n - 1),
            "forget_train": Size(n_train // n, 1),
            "retain_train": Size(kept, n - 1),
        }

    def build(self, request_id: str, base_seed: int) -> Trial:
        """The trial of one request for one base model; the answers of originals and oracles are kept in the cache.

        Raises:
            UsageError: the base model or an oracle has not been trained yet, or data are missing or damaged.
        """
        listed = self._listed(request_id)
        base, oracles = self._base_file(base_seed), self._oracle_files(listed)
        pictures, parts = self._pictures(), self._parts(listed)
        rows = np.concatenate(list(parts.asked.values()))
        model = self._load(base)
        # of samples: the original's accuracy on what it never saw
        goal = 1 / self.facts.n_classes if listed.targets else self._accuracy(base, parts.validation[1])
        return Trial(
            request=self._asked_of(model, listed, parts, goal),
            questions={
                "split": np.repeat(list(parts.asked), [len(asked) for asked in parts.asked.values()]),
                "unit": pictures.label[rows],
                "label": pictures.label[rows],
                "near": np.zeros(len(rows), dtype=bool),  # no class is declared another's neighbour
                "index": rows,
            },
            answer=partial(ask, pictures, rows),
            original=self._answers(base, rows),
            oracles=tuple(self._answers(oracle, rows) for oracle in oracles),
            oracle_model=lambda s: self._load(self._trained_file(oracle_seed(s), listed)),
            n_classes=self.facts.n_classes,
            joint=False,
            original_model=partial(self._load, base),
            features=partial(features, pictures, rows),
        )

    def fingerprint(self, request_id: str, base_seed: int) -> str:
        """Digest of the base model, the oracles and the data's files; which images are drawn follows from those."""
        listed = self._listed(request_id)
        models = [self._base_file(base_seed), *self._oracle_files(listed)]
        return digest({"request": listed.id, "models": [digest_of(path) for path in models], "data": self._data_digests()})

    def gates(self, request_ids: Sequence[str], base_seeds: Sequence[int]) -> list[Gate]:
        """Bases learned the classes and did not see the validation images; oracles do without what they never saw.

        Limits from what papers print of these models (ResNet-18 on CIFAR-10: 100 % of the training images, 94 to 95 % of
        the others), not from runs of ours.
        """
        found = [gate for seed in base_seeds for gate in self._base_gates(seed)]
        for listed in map(self._listed, request_ids):
            trials = [self.build(listed.id, seed) for seed in base_seeds]
            found += _class_gates(listed, trials) if listed.targets else _sample_gates(listed, trials)
            if self.protocol == "published":
                found.append(self._unseen_gate(listed))
        return found

    def gates_after(self, frame: pd.DataFrame) -> list[Gate]:
        """The controls are caught on classes, by what oracles do. What gives them away on samples is not measured yet."""
        return controls_caught(frame, "class") if self.oracles else []

    def wanted(self) -> list[Wanted]:
        """The data's files; then base models and oracles, whose place in the cache depends on the data."""
        facts, folder = self.facts, self._root() / self.facts.folder
        how = f"from {facts.page}, or by `{self._command(download='true')}`"
        found = [
            Wanted(
                folder / name, (folder / name).is_file(), f"{size or 'under 1'} MB, no licence but a wish to be cited; {how}"
            )
            for name, size in facts.files.items()
        ]
        if not all(wanted.found for wanted in found):
            return found
        for seed in self.base_seeds[:1] if self.checkpoint and "{seed}" not in self.checkpoint else self.base_seeds:
            path = self._given(seed) if self.checkpoint else self._place(seed)
            whence = "given as checkpoint" if self.checkpoint else f"45 to 60 MB; train it: `{self._command_for(None)}`"
            found.append(Wanted(path, path.is_file(), f"{self.model} of base seed {seed}, {whence}"))
        for listed in self.requests() if self.oracles else ():
            places = [self._place(oracle_seed(s), listed) for s in range(self.oracles)]
            first = next((path for path in places if not path.is_file()), places[0])
            note = f"an oracle of {listed.id}; train its {self.oracles}: `{self._command_for(listed)}`"
            found.append(Wanted(first, first.is_file(), note))
        return found

    def rebuild(self, folder: Path, *, jobs: int = 1, requests: Sequence[str] | None = None) -> None:
        """Train what the cache lacks of base models and oracles, and copy all of them into `folder`; with `download`,
        fetch the data instead.

        An epoch is 45,000 images forwards and backwards; what was interrupted goes on after its last whole epoch. With
        `oracles=0` base models alone are trained.

        Args:
            folder: gets the weights under readable names, as files to give as `checkpoint`.
            jobs: how many models are trained side by side.
            requests: those whose oracles are wanted; all of them by default.
        """
        import joblib

        if self.download:
            return download(self.facts, self._root())
        listed = self.requests() if requests is None else [self._listed(request) for request in requests]
        self._folder()
        work: list[tuple[int, Listed | None]] = [] if self.checkpoint else [(seed, None) for seed in self.base_seeds]
        work += [(oracle_seed(s), request) for request in listed for s in range(self.oracles)]
        folder.mkdir(parents=True, exist_ok=True)
        joblib.Parallel(n_jobs=jobs)(joblib.delayed(self._train_into)(folder, *model) for model in work)

    # ---------------------------------------------------------------- requests

    def _listed(self, request_id: str) -> Listed:
        known = {listed.id: listed for listed in self.requests()}
        if request_id not in known:
            raise UsageError(f"{self.facts.name} has no request '{request_id}'; it has {', '.join(known)}.")
        return known[request_id]

    def _parts(self, listed: Listed) -> Parts:
        label, n_train = self._pictures().label, self.facts.n_train
        test = np.arange(n_train, len(label))
        if self.protocol == "published":
            pool = np.arange(n_train) if self._all_train() else split_of(label[:n_train], published_seed(listed)).train
            return parts_of(listed, label, pool, validation=test, test=test, draw=draw_published)
        pool, held = split_of(label[:n_train], BASE_SPLIT)
        return parts_of(listed, label, pool, validation=held, test=test, draw=draw_disjoint)

    def _all_train(self) -> bool:
        """Whether base models see every training image: Deep Unlearning's code sorts them by class alone."""
        return self.protocol == "published" and self.recipe == "svd"

    def _trained_on(self) -> np.ndarray:
        """Rows that base models see."""
        n_train = self.facts.n_train
        return np.arange(n_train) if self._all_train() else split_of(self._pictures().label[:n_train], BASE_SPLIT).train

    def _asked_of(self, model: Model, listed: Listed, parts: Parts, goal: float) -> Request:
        """The request to make a model forget."""
        split = partial(PictureSplit, self._pictures(), targets=listed.targets)
        kept = Validation(*(split(rows) for rows in parts.validation))
        recipe, n_retain = RECIPES[self.recipe], len(parts.retain)
        reads = recipe.epochs * n_retain // 4
        return Request(
            model=model,
            targets=listed.targets,
            forget=split(parts.forget, augment=self.augment),
            retain=split(parts.retain, augment=self.augment),
            validation=kept,
            objective=CrossEntropy(self.facts.n_classes),
            validate=partial(validate, kept),
            # a quarter of what retraining reads, in batches down to 64: papers' methods read 5 to 6 %
            budget=Budget(max_steps=-(-reads // 64), max_reads=reads, max_evals=400),
            goal=goal,
        )

    # ---------------------------------------------------------------- data

    def _root(self) -> Path:
        return Path(self.data).expanduser()

    def _folder(self) -> Path:
        """The folder of the data's files, all of which are there."""
        root, facts = self._root(), self.facts
        folder = root / facts.folder
        if missing := [name for name in facts.files if not (folder / name).is_file()]:
            if all((root / name).is_file() for name in facts.files):
                raise UsageError(f"data={root} is {facts.folder} itself; give the folder that it lies in.")
            raise UsageError(
                f"{facts.name} misses {', '.join(missing)} in {folder}; unpack there what {facts.page} gives, "
                f"or fetch it by `{self._command(download='true')}`."
            )
        return folder

    def _data_digests(self) -> dict[str, str]:
        folder = self._folder()
        return {name: digest_of(folder / name) for name in self.facts.files}

    def _pictures(self) -> Pictures:
        return load_pictures(self.facts.dataset, self._folder().parent)

    # ---------------------------------------------------------------- models

    def _base_file(self, seed: int) -> Path:
        if seed not in self.base_seeds:
            allowed = ", ".join(map(str, self.base_seeds))
            raise UsageError(f"{self.facts.name} has no base model of seed {seed}; it has {allowed}.")
        return existing(self._given(seed)) if self.checkpoint else self._trained_file(seed)

    def _given(self, seed: int) -> Path:
        """The checkpoint of a base seed."""
        given = str(self.checkpoint)
        if "{seed}" not in given and seed != self.base_seeds[0]:
            raise UsageError(
                f"checkpoint={given} is one base model, that of seed {self.base_seeds[0]}; for seed {seed} give files "
                "named after their seeds, such as resnet18-{seed}.pt."
            )
        return Path(given.replace("{seed}", str(seed))).expanduser()

    def _oracle_files(self, listed: Listed) -> list[Path]:
        return [self._trained_file(oracle_seed(s), listed) for s in range(self.oracles)]

    def _trained_file(self, seed: int, without: Listed | None = None) -> Path:
        """The weights trained from a seed, on all there is or without what a request forgets."""
        path = self._place(seed, without)
        if not path.is_file():
            what = f"base model of seed {seed}" if without is None else f"oracle {seed - oracle_seed(0)} of {without.id}"
            raise UsageError(
                f"{self.facts.name} has no {what} yet, and {RECIPES[self.recipe].epochs} epochs do not start by themselves; "
                f"train it by `{self._command_for(without)}`."
            )
        return path

    def _place(self, seed: int, without: Listed | None = None) -> Path:
        return artifact_path(self._kind(without), self._key(seed, without), suffix=".safetensors")

    def _kind(self, without: Listed | None) -> str:
        return f"{self.facts.name}-{self.model}-{'base' if without is None else f'{without.id}-oracle'}"

    def _key(self, seed: int, without: Listed | None) -> dict[str, object]:
        # base models are the same in both protocols, where some images are set aside in both
        published = self.protocol == "published" and (without is not None or self._all_train())
        return {
            **{"data": self._data_digests(), "model": self.model, "recipe": asdict(RECIPES[self.recipe])},
            **{"without": without.id if without else None, "published": published, "seed": seed, "version": VERSION},
        }

    def _train_into(self, folder: Path, seed: int, without: Listed | None) -> None:
        """Make sure a model is in the cache, training it if need be, and copy it to a folder."""
        kind, key = self._kind(without), self._key(seed, without)
        resume = artifact_path(f"{kind}-training", key, suffix=".pt")
        path = cached(kind, key, partial(self._train, seed, without, resume), suffix=".safetensors")
        resume.unlink(missing_ok=True)
        number = seed if without is None else seed - oracle_seed(0)
        shutil.copyfile(path, folder / f"{kind}-{number}.safetensors")

    def _train(self, seed: int, without: Listed | None, resume: Path, path: Path) -> None:
        import safetensors.torch

        pictures = self._pictures()
        rows = self._trained_on() if without is None else self._parts(without).retain
        split = PictureSplit(pictures, rows, augment=True)
        recipe, name = RECIPES[self.recipe], f"{self._kind(without)}, seed {seed}"

        def told(epoch: int, loss: float) -> None:
            print(f"{name}: epoch {epoch} of {recipe.epochs}, loss {loss:.3f}", flush=True)  # hours would pass in silence

        model = fit(new_model(self.facts, self.model, seed), split, recipe, seed=seed, resume=resume, told=told)
        safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)

    def _load(self, path: Path) -> Model:
        """A model of those weights: ours, or those of the papers' codes, whose names lack what we wrap around."""
        state = load_checkpoint(path)
        if not any(name.startswith("network.") for name in state):
            state = {f"network.{name}": t for name, t in state.items() if not name.startswith("normalize.")}
        what = f"a {self.model} for {self.facts.n_classes} classes in its CIFAR form"
        return fill(new_model(self.facts, self.model), state, path, what)

    def _answers(self, weights: Path, rows: np.ndarray) -> Answers:
        model = {"weights": digest_of(weights), "model": self.model, "data": self._data_digests(), "version": VERSION}
        return kept_answers(f"{self.facts.name}-answers", model, partial(self._load, weights), self._pictures(), rows)

    def _accuracy(self, weights: Path, rows: np.ndarray) -> float:
        return float(np.mean(self._answers(weights, rows)["rank"] == 0))

    def _command(self, **changed: object) -> str:
        """The command that gets what is missing, for this task with some parameters changed."""
        params = {f.name: getattr(self, f.name) for f in fields(self)} | {"download": False} | changed
        spec = ",".join(f"{f.name}={params[f.name]}" for f in fields(self) if params[f.name] != f.default)
        return f"slugbench artifacts rebuild {self.facts.name}{':' if spec else ''}{spec}"

    def _command_for(self, without: Listed | None) -> str:
        """The one that trains the base models, or the oracles of a request."""
        return self._command(oracles=0) if without is None else f"{self._command()} --requests {without.id}"

    # ---------------------------------------------------------------- gates

    def _base_gates(self, seed: int) -> list[Gate]:
        label, n_train = self._pictures().label, self.facts.n_train
        learned = self._accuracy(self._base_file(seed), np.arange(n_train, len(label)))
        found = [at_least(f"base {seed} learned the classes: test accuracy", learned, self.facts.least_known)]
        if not self._all_train():
            train, held = split_of(label[:n_train], BASE_SPLIT)
            asked = train[:: max(1, len(train) // len(held))], held
            seen, not_seen = (self._accuracy(self._base_file(seed), rows) for rows in asked)
            unseen = f"base {seed} was not trained on the validation images: accuracy it has less there than on trained ones"
            found.append(at_least(unseen, seen - not_seen, 0.02))
        return found

    def _unseen_gate(self, listed: Listed) -> Gate:
        share = 1 - float(np.isin(self._parts(listed).forget, self._trained_on()).mean())
        name = f"{listed.id}: published protocol: share of what is forgotten that no base was trained on"
        return Gate(name, share, "told, not asked", True, "choices are made on test images, too; compare with tables alone")


@task("cifar10")
@dataclass(frozen=True)
class Cifar10(_Cifar):
    """Forgetting a class, or random training images, of a classifier of CIFAR-10."""

    facts: ClassVar[Facts] = CIFAR10


@task("cifar100")
@dataclass(frozen=True)
class Cifar100(_Cifar):
    """Forgetting a class, or random training images, of a classifier of CIFAR-100."""

    facts: ClassVar[Facts] = CIFAR100


def _class_gates(listed: Listed, trials: Sequence[Trial]) -> list[Gate]:
    known = min(_right(trial, trial.original, "forget") for trial in trials)
    found = [at_least(f"{listed.id}: every base knows the class: its test accuracy", known, 0.3)]
    if oracles := trials[0].oracles:
        named = max(_right(trials[0], oracle, "forget") for oracle in oracles)
        found += [at_most(f"{listed.id}: oracle differs: its accuracy on the class", named, 0.02), _kept(listed, trials)]
    return found


def _sample_gates(listed: Listed, trials: Sequence[Trial]) -> list[Gate]:
    learned = min(_right(trial, trial.original, "forget") for trial in trials)
    found = [at_least(f"{listed.id}: every base learned the samples: its accuracy on them", learned, 0.85)]
    if oracles := trials[0].oracles:
        apart = np.mean([_right(trials[0], o, "forget") - _right(trials[0], o, "retain") for o in oracles])
        name = f"{listed.id}: oracle knows them as unseen ones: accuracies apart"
        found += [at_most(name, abs(apart), 0.03), _kept(listed, trials)]
    return found


def _kept(listed: Listed, trials: Sequence[Trial]) -> Gate:
    before = np.mean([_right(trial, trial.original, "retain") for trial in trials])
    after = np.mean([_right(trials[0], oracle, "retain") for oracle in trials[0].oracles])
    # half of the images cost a ResNet-18 two to three points, a class or a tenth none
    limit = 0.05 if listed.id.startswith("random-50") else 0.02
    return at_most(f"{listed.id}: oracle keeps utility: accuracy it lost on what is kept", before - after, limit)


def _right(trial: Trial, answers: Answers, split: str) -> float:
    return float(np.mean(answers["rank"][trial.questions["split"] == split] == 0))


def oracle_seed(s: int) -> int:
    """Of initialisation, order and augmentation; apart from those of the bases."""
    return 1000 + s
