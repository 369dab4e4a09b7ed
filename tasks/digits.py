"""Class and random-sample forgetting on real images: the 1,797 handwritten-digit scans that ship inside scikit-learn.

A small convolutional classifier is trained on 400 of them. Ten requests ask it to forget a digit, ten a random tenth of
the training scans. It is the home ground of methods made for classifiers; models retrained without what is to be
forgotten, the oracles, take a second or two. The base models and three oracles a request ship with the package;
`slugbench artifacts rebuild digits` remakes them.

What can be seen of random samples. Forgetting them means to answer them as if never trained on, which is nearly what
the original does: it names all 40, the oracles name 34 to 40 of them (0.944 on average over the ten tenths, and 0.963 of
the test scans). How hard 40 scans are moves that by more (0.036 from tenth to tenth) than there is to find, so no tenth
is read against a fixed number but against oracles that lack the same 40; they differ among themselves by 0.01. Of the
six tenths tested on, original less oracles, with the standard error over the six: `acc_forget` +0.054 (0.009),
`mia_sample` +0.041 (0.007), `ks_d` +0.088 (0.019); of single tenths +0.00 to +0.13, +0.015 to +0.062, +0.02 to +0.135.
So one request resolves nothing, and six tell the original from the oracles, and what lies halfway from both just about.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple, SupportsFloat

import numpy as np

from slugbench.bench import (
    Answers,
    Batch,
    Budget,
    Gate,
    Listed,
    Model,
    Request,
    Size,
    TensorSplit,
    Trial,
    UsageError,
    Validation,
    Wanted,
    cached,
    digest,
    file_digest,
    task,
)
from slugbench.bench.types import Pool

from ._classification import CrossEntropy, accuracy, controls_caught, into_last_layer, judged, validate
from ._gates import at_least, at_most
from ._shipped import assets, load_weights, save_weights
from ._training import one_thread

if TYPE_CHECKING:
    import pandas as pd
    import torch

N_CLASSES = 10
N_ORACLES = 3
POOLS: tuple[Pool, ...] = ("test", "sealed", "tune", "test", "dev", "test", "dev", "tune", "test", "test")
"""The pool of each digit's request, dealt as dev, tune, test, sealed over numpy's default_rng(0).permutation(10)."""
SAMPLE_POOLS: tuple[Pool, ...] = ("dev", "tune", "tune", "test", "test", "test", "test", "test", "test", "sealed")
"""The pool of each tenth's request: drawn at random themselves, they need no dealing. Six of them are tested on, the
fewest over which reports draw an interval."""

MIN_SAMPLES = 6
"""Requests for random samples from which on a mean over them has to show something."""

# the recipe of base models and oracles alike; oracles see fewer images, in as many steps
STEPS, BATCH, LEARNING_RATE, WEIGHT_DECAY = 400, 64, 3e-3, 0.05
RECIPE = {"steps": STEPS, "batch": BATCH, "learning_rate": LEARNING_RATE, "weight_decay": WEIGHT_DECAY, "version": 1}


@task("digits")
@dataclass(frozen=True)
class Digits:
    """Forgetting a class, or random scans, of a small classifier of real digits; no download, oracles in seconds."""

    base_seeds: ClassVar[tuple[int, ...]] = (0, 1, 2)
    preload: ClassVar[tuple[str, ...]] = ("sklearn.datasets", "safetensors.torch")

    def requests(self) -> tuple[Listed, ...]:
        """`class-0` to `class-9`, one digit each, then `random-0` to `random-9`, a tenth of the training scans each."""
        classes = [Listed(f"class-{digit}", (str(digit),), pool) for digit, pool in enumerate(POOLS)]
        return *classes, *(Listed(f"random-{tenth}", (), pool) for tenth, pool in enumerate(SAMPLE_POOLS))

    def sizes(self, request_id: str) -> dict[str, Size]:
        """Scans and digits of each split."""
        asked = parts_of(self._listed(request_id), load_splits(), load_tenths()).asked
        return {name: Size(len(rows), len(np.unique(load_labels()[rows]))) for name, rows in asked.items()}

    def build(self, request_id: str, base_seed: int) -> Trial:
        """The trial of one request for one base model; made anew, and in a seventh of a second once the scans are read.

        Of a request for random samples the validation split's `forget` are the forgotten scans themselves: there are
        no others of their kind, and the method has them anyway. What it retains is measured on all validation scans,
        and the original's accuracy there, that on scans it never saw, is the goal.
        """
        listed, data, model = self._listed(request_id), load_data(), self._base(base_seed)
        parts, label = parts_of(listed, load_splits(), load_tenths()), data["label"].numpy()
        rows = np.concatenate(list(parts.asked.values()))
        questions = {
            "split": np.repeat(list(parts.asked), [len(asked) for asked in parts.asked.values()]),
            "unit": label[rows],
            "label": label[rows],
            "near": np.zeros(len(rows), dtype=bool),  # no digit is declared another's neighbour
            "index": rows,
        }
        answer = partial(answers, data["image"][rows], data["label"][rows])
        oracle = partial(oracle_model, listed)
        oracles = tuple(answer(oracle(s)) for s in range(N_ORACLES))
        return Trial(
            _asked_of(model, listed, parts),
            questions,
            answer,
            answer(model),
            oracles,
            oracle,
            N_CLASSES,
            joint=False,
            original_model=partial(self._base, base_seed),
            features=partial(features, data["image"][rows]),
            shadow=lambda s: _asked_of(shadow_model(s), listed, parts),
        )

    def fingerprint(self, request_id: str, base_seed: int) -> str:
        """Digest of the base model, the oracles, the splits and the scans."""
        listed, seed = self._listed(request_id), self._seed(base_seed)
        if not _scans().is_file():
            raise UsageError(f"digits reads {_scans()}, which is not there; pip install scikit-learn.")
        names = [base_name(seed), *(oracle_name(listed.id, s) for s in range(N_ORACLES)), "splits.json"]
        names += [] if listed.targets else ["tenths.json"]
        return digest({"files": [file_digest(assets("digits") / name) for name in names], "scans": file_digest(_scans())})

    def gates(self, request_ids: Sequence[str], base_seeds: Sequence[int]) -> list[Gate]:
        """Bases learned the digits; oracles never name theirs, and know the others as well as the bases do.

        Of the shipped models: bases 0.968 to 0.974 on the test scans and 0.92 to 1.00 on each digit; oracles 0.00 on
        theirs and at most 0.009 less than the bases on the others. That training and test accuracy lie apart is not
        asked for: 400 scans are learned by heart (1.00) without much harm to the rest, and no metric here needs it.

        Of random samples: bases name them all, and oracles at most 0.09 fewer of them than of the test scans, 40 scans
        having a standard error of 0.03, while losing at most 0.015 on those.
        """
        listed = [self._listed(request_id) for request_id in request_ids]
        bases = {seed: self._base(seed) for seed in base_seeds}
        asked = load_splits().test
        right = {seed: _right(model, asked) for seed, model in bases.items()}
        found = [
            at_least(f"base {seed} learned the digits: test accuracy", hits.mean(), 0.96) for seed, hits in right.items()
        ]
        for request in listed:
            oracles = [oracle_model(request, s) for s in range(N_ORACLES)]
            named = [_right(oracle, asked) for oracle in oracles]
            if request.targets:
                found += _class_gates(request, list(right.values()), named)
            else:
                found += _sample_gates(request, list(bases.values()), oracles, np.mean(list(right.values())), np.mean(named))
        return found

    def gates_after(self, frame: pd.DataFrame) -> list[Gate]:
        """The controls are caught, each by the numbers that should give it away, in every cell that has them.

        On random samples in the mean over cells, and from six requests on: on one there may be nothing to see. Of the
        six tested on and each base, AUC gaps of +0.036 to +0.049 (original) and +0.030 to +0.043 (noise).
        """
        shown = frame[(frame["metric"] == "mia_sample") & (frame["targets"] == "[]")]
        gap = shown["value"].astype(float) - shown["oracle_mean"].astype(float)
        found = controls_caught(frame, "digit")
        for control in ("original", "noise"):
            seen = shown.assign(gap=gap)[shown["method"] == control].dropna(subset="gap")
            if seen["request"].nunique() >= MIN_SAMPLES:
                name = f"control {control} is caught (it knows the samples better than oracles do): mean AUC gap"
                found.append(at_least(name, seen["gap"].mean(), 0.015))
        return found

    def wanted(self) -> list[Wanted]:
        """The scans inside scikit-learn."""
        note = "1,797 scans of handwritten digits, 57 kB, CC BY 4.0 (UCI repository); pip install scikit-learn"
        return [Wanted(_scans(), _scans().is_file(), note)]

    def rebuild(self, folder: Path, *, jobs: int = 1) -> None:
        """Draw the splits and train 3 base models and 60 oracles into `folder`: about two minutes on one core."""
        import joblib

        folder.mkdir(parents=True, exist_ok=True)
        label = load_data()["label"].numpy()
        drawn = draw_splits(label)
        splits = Splits(*(np.array(rows) for rows in drawn.values()))
        tenths = draw_tenths(splits.train, label)
        (folder / "splits.json").write_text(json.dumps(drawn) + "\n")
        (folder / "tenths.json").write_text(json.dumps(tenths) + "\n")
        models = [(folder / base_name(seed), splits.train, seed) for seed in self.base_seeds]
        for listed in self.requests():
            rows = parts_of(listed, splits, np.array(tenths)).retain
            models += [(folder / oracle_name(listed.id, s), rows, oracle_seed(s)) for s in range(N_ORACLES)]
        joblib.Parallel(n_jobs=jobs)(joblib.delayed(make)(*model) for model in models)

    def _base(self, seed: int) -> Model:
        return load_weights(network(), assets("digits") / base_name(self._seed(seed)))

    def _seed(self, seed: int) -> int:
        if seed not in self.base_seeds:
            raise UsageError(f"digits has no base model of seed {seed}; it has {', '.join(map(str, self.base_seeds))}.")
        return seed

    def _listed(self, request_id: str) -> Listed:
        known = {listed.id: listed for listed in self.requests()}
        if request_id not in known:
            raise UsageError(f"digits has no request '{request_id}'; it has {', '.join(known)}.")
        return known[request_id]


def _class_gates(request: Listed, bases: Sequence[np.ndarray], oracles: Sequence[np.ndarray]) -> list[Gate]:
    """Of a digit, given which test scans each base and each oracle names."""
    own = load_data()["label"].numpy()[load_splits().test] == int(request.targets[0])
    known, named = min(hits[own].mean() for hits in bases), max(hits[own].mean() for hits in oracles)
    kept = [np.mean([hits[~own].mean() for hits in models]) for models in (bases, oracles)]
    return [
        at_least(f"{request.id}: every base knows the digit: its test accuracy", known, 0.85),
        at_most(f"{request.id}: oracle differs: its accuracy on the digit", named, 0.02),
        at_most(f"{request.id}: oracle keeps utility: accuracy it lost on other digits", kept[0] - kept[1], 0.02),
    ]


def _sample_gates(
    request: Listed, bases: Sequence[Model], oracles: Sequence[Model], known: SupportsFloat, kept: SupportsFloat
) -> list[Gate]:
    """Of random samples; `known` and `kept` are the test accuracies of bases and of oracles."""
    rows = load_tenths()[_tenth(request)]
    learned = min(_right(base, rows).mean() for base in bases)
    named = np.mean([_right(oracle, rows) for oracle in oracles])
    return [
        at_least(f"{request.id}: every base learned the samples: its accuracy on them", learned, 0.98),
        at_most(f"{request.id}: oracle knows them as unseen ones: accuracies apart", abs(named - float(kept)), 0.1),
        at_most(f"{request.id}: oracle keeps utility: test accuracy it lost", float(known) - float(kept), 0.02),
    ]


# ---------------------------------------------------------------- data


class Splits(NamedTuple):
    """Rows of the scans for training, validation and testing; disjoint, and together all of them."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


@cache
def load_data() -> Batch:
    """All scans: `image` (1797, 1, 8, 8) float in [0, 1], `label` (1797,) long, `index` (1797,) long."""
    import torch
    from sklearn.datasets import load_digits

    pixels, label = load_digits(return_X_y=True)
    image = torch.tensor(pixels / 16, dtype=torch.float32).view(-1, 1, 8, 8)
    return {"image": image, "label": torch.tensor(label), "index": torch.arange(len(image))}


@cache
def load_labels() -> np.ndarray:
    """(1797,) the digit on each scan, its file's last column: without torch, and without scikit-learn's second of import."""
    return np.loadtxt(_scans(), delimiter=",", usecols=-1, dtype=np.int64)


@cache
def load_splits() -> Splits:
    """The shipped splits."""
    stored = json.loads((assets("digits") / "splits.json").read_text())
    return Splits(*(np.array(stored[name]) for name in Splits._fields))


@cache
def load_tenths() -> np.ndarray:
    """(10, 40) rows of the scans: the training scans in ten parts, four scans of each digit in each."""
    return np.array(json.loads((assets("digits") / "tenths.json").read_text()))


class Parts(NamedTuple):
    """Rows of the scans that make a request and its questions."""

    forget: np.ndarray
    retain: np.ndarray
    """Training scans; oracles are trained on these alone."""
    validation: tuple[np.ndarray, np.ndarray]
    """Of what is forgotten, and of what is kept."""
    asked: dict[str, np.ndarray]
    """By the name of the split."""


def parts_of(listed: Listed, splits: Splits, tenths: np.ndarray) -> Parts:
    """A digit apart from the others, or a tenth of the training scans apart from all that was never trained on."""
    if not listed.targets:
        forget = tenths[_tenth(listed)]
        retain = np.setdiff1d(splits.train, forget)
        asked = {"forget": forget, "retain": splits.test, "retain_train": retain}
        return Parts(forget, retain, (forget, splits.validation), asked)
    own = load_labels() == int(listed.targets[0])
    train, validation, test = ((rows[own[rows]], rows[~own[rows]]) for rows in splits)
    asked = {"forget": test[0], "retain": test[1], "forget_train": train[0], "retain_train": train[1]}
    return Parts(*train, validation, asked)


def _asked_of(model: Model, listed: Listed, parts: Parts) -> Request:
    """The request to make a model forget."""
    kept = Validation(*(_subset(rows, listed.targets) for rows in parts.validation))
    return Request(
        model=model,
        targets=listed.targets,
        forget=_subset(parts.forget, listed.targets),
        retain=_subset(parts.retain, listed.targets),
        validation=kept,
        objective=CrossEntropy(),
        validate=partial(validate, kept),
        budget=Budget(max_steps=STEPS, max_reads=STEPS * BATCH, max_evals=400),
        goal=1 / N_CLASSES if listed.targets else accuracy(model, kept.retain),
    )


def _tenth(listed: Listed) -> int:
    return int(listed.id.removeprefix("random-"))


def draw_splits(label: np.ndarray) -> dict[str, list[int]]:
    """Of each digit 40 scans to train on and 30 for validation; the rest, 104 to 113, for testing."""
    rng = np.random.default_rng(0)
    drawn: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for digit in range(N_CLASSES):
        rows = rng.permutation(np.flatnonzero(label == digit)).tolist()
        for part, taken in (("train", rows[:40]), ("validation", rows[40:70]), ("test", rows[70:])):
            drawn[part] += taken
    return {part: sorted(rows) for part, rows in drawn.items()}


def draw_tenths(train: np.ndarray, label: np.ndarray) -> list[list[int]]:
    """Ten random samples that share no scan, so that those tuned on and those tested on do not either.

    Four scans of each digit: a draw in which one digit is frequent would be told from the test scans by that alone.
    """
    rng = np.random.default_rng(1)
    of_digit = [rng.permutation(train[label[train] == digit]).reshape(10, -1) for digit in range(N_CLASSES)]
    return np.sort(np.concatenate(of_digit, axis=1)).tolist()


def _subset(rows: np.ndarray, targets: Sequence[str]) -> TensorSplit:
    import torch

    columns = {name: column[torch.from_numpy(rows)] for name, column in load_data().items()}
    return TensorSplit(columns, {target: torch.nonzero(columns["label"] == int(target))[:, 0] for target in targets})


def _scans() -> Path:
    """The file inside scikit-learn, found without importing it."""
    spec = find_spec("sklearn")
    home = Path(spec.origin).parent if spec and spec.origin else Path("sklearn")
    return home / "datasets" / "data" / "digits.csv.gz"


# ---------------------------------------------------------------- models


def network(seed: int = 0) -> Model:
    """An untrained classifier, (B, 1, 8, 8) -> (B, 10) logits; 38,282 parameters, no state besides them."""
    import torch
    from torch import nn

    with torch.random.fork_rng(devices=[]):  # the caller's random numbers go on as if nothing had been drawn
        torch.default_generator.manual_seed(seed)
        layers = {
            "conv1": nn.Conv2d(1, 16, 3, padding=1),
            "relu1": nn.ReLU(),
            "conv2": nn.Conv2d(16, 32, 3, padding=1),
            "relu2": nn.ReLU(),
            "pool": nn.MaxPool2d(2),
            "flatten": nn.Flatten(),  # 32 channels of 4 x 4
            "hidden": nn.Linear(512, 64),
            "relu3": nn.ReLU(),
            "output": nn.Linear(64, N_CLASSES),
        }
        return nn.Sequential(OrderedDict(layers))


def train(image: torch.Tensor, label: torch.Tensor, seed: int, *, steps: int = STEPS) -> Model:
    """A classifier of those images: (N, 1, 8, 8) and (N,); the same bits for the same seed on the same platform."""
    import torch
    from torch.nn.functional import cross_entropy

    model, generator = network(seed), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    with one_thread():
        for _ in range(steps):
            rows = torch.randint(len(image), (BATCH,), generator=generator)
            optimizer.zero_grad()
            cross_entropy(model(image[rows]), label[rows]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def make(path: Path, rows: np.ndarray, seed: int) -> None:
    """Train a model on those scans and write its weights."""
    data = load_data()
    save_weights(train(data["image"][rows], data["label"][rows], seed), path)


def oracle_model(listed: Listed, s: int) -> Model:
    """Oracle number s of a request: shipped, or from number 3 on trained once and kept in the cache."""
    path = assets("digits") / oracle_name(listed.id, s)
    if not path.is_file():
        return _trained("digits-oracle", parts_of(listed, load_splits(), load_tenths()).retain, oracle_seed(s))
    return load_weights(network(), path)


def shadow_model(s: int) -> Model:
    """An original that ships with nothing: trained like the bases from a seed of its own, and kept in the cache."""
    return _trained("digits-shadow", load_splits().train, 2000 + s)


def _trained(kind: str, rows: np.ndarray, seed: int) -> Model:
    """A model of those scans, from the cache or trained now."""
    key = {"rows": rows.tolist(), "seed": seed, "recipe": RECIPE}
    path = cached(kind, key, lambda to: make(to, rows, seed), suffix=".safetensors")
    return load_weights(network(), path)


def base_name(seed: int) -> str:
    """The file of a base model."""
    return f"base-{seed}.safetensors"


def oracle_name(request_id: str, s: int) -> str:
    """The file of a request's oracle number s."""
    return f"{request_id}-oracle-{s}.safetensors"


def oracle_seed(s: int) -> int:
    """Of initialisation and batches; apart from those of the bases, which an oracle has nothing to do with."""
    return 1000 + s


# ---------------------------------------------------------------- what methods and metrics are given


def answers(image: torch.Tensor, label: torch.Tensor, model: Model, rows: np.ndarray | None = None) -> Answers:
    """What a model says to N images, or to those at `rows`, (N,) each: see `_classification.judged`."""
    import torch

    image, label = (image, label) if rows is None else (image[rows], label[rows])
    with torch.no_grad():
        return judged(model(image.to(next(model.parameters()).device)), label)


def features(image: torch.Tensor, model: Model, rows: np.ndarray) -> np.ndarray:
    """(n, 64) what the output layer is given of those of the images."""
    return into_last_layer(model, image[rows].to(next(model.parameters()).device))


def _right(model: Model, rows: np.ndarray) -> np.ndarray:
    """Which of those scans a model names."""
    data = load_data()
    return answers(data["image"][rows], data["label"][rows], model)["rank"] == 0
