"""How what `identities` ships was made: train the bases, choose the targets, train the oracles, note the answers.

One folder in, one folder out; a file that is there is not made again, so that a stopped rebuild goes on.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from slugbench.bench import Answers, Model
from slugbench.bench.provenance import processor
from slugbench.bench.types import Pool

from . import _clip, _people
from ._shipped import load_weights, save_answers, save_weights
from ._training import write_whole

BASE_SEEDS = (0, 1, 2)
JOINT_SIZE, N_JOINT = 8, 2
POOL_SIZES: Mapping[Pool, int] = {"test": 12, "tune": 4, "dev": 4, "sealed": 4}
ORACLES_SINGLE, ORACLES_JOINT = 3, 8
MIN_VALIDATION_ACCURACY = 0.75
"""What every base must reach on a test target: nobody can forget what was never known."""
N_SHIPPED_SINGLE = 2
"""Single requests whose oracles ship as weights: those of the suite `quick`."""


class Chosen(NamedTuple):
    """A request as the recipe chose it."""

    id: str
    targets: tuple[int, ...]
    pool: Pool
    ships: bool
    """Whether its oracles ship as weights; of the others the answers do."""


def rebuild(folder: Path, *, jobs: int) -> None:
    """Make everything into `folder`: 91 trainings of half a minute each on one thread."""
    _each(jobs, (("base", folder, seed) for seed in BASE_SEEDS))
    chosen = choose(
        [validation_accuracy(load_weights(_clip.new_model(), weights_file(folder, "base", s))) for s in BASE_SEEDS]
    )
    (folder / "requests.json").write_text(json.dumps(_facts(chosen), indent=1) + "\n")
    _each(jobs, (("oracle", folder, request, s) for request in chosen for s in range(n_oracles(request))))


def _each(jobs: int, work: Iterable[tuple[Any, ...]]) -> None:
    import joblib

    joblib.Parallel(n_jobs=jobs, batch_size=1, pre_dispatch="2*n_jobs")(joblib.delayed(_make)(*item) for item in work)


def _make(kind: str, folder: Path, *which: Any) -> None:
    """Train one model on one thread and write what ships of it."""
    import torch

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    if kind == "base":
        (seed,) = which
        name, number, without, ships = "base", seed, (), True
    else:
        request, number = which
        name, without, seed = f"{request.id}-oracle", request.targets, oracle_seed(number)
        ships = request.ships
    if answers_file(folder, name, number).exists():
        return
    model = train(seed, without)
    if ships:
        write_whole(partial(save_weights, model), weights_file(folder, name, number))
    answers = compact(_people.ask(model, rows_Q=_people.questions()["index"]))
    write_whole(partial(save_answers, answers), answers_file(folder, name, number))  # last: it says the model is done


def train(seed: int, without: Sequence[int] = ()) -> Model:
    """A base model, or an oracle that never saw a picture of `without`: in as many steps."""
    import torch

    everything = _people.pictures("train")
    kept = ~torch.isin(everything["label"], torch.tensor(list(without), dtype=torch.long))
    return _clip.train({name: column[kept] for name, column in everything.items()}, seed=seed)


def oracle_seed(number: int) -> int:
    """Of an oracle's initialisation and batches; apart from those of the bases, which it has nothing to do with."""
    return 1000 + number


def n_oracles(request: Chosen) -> int:
    """How many oracles a request has."""
    return ORACLES_JOINT if len(request.targets) > 1 else ORACLES_SINGLE


def weights_file(folder: Path, name: str, number: int) -> Path:
    """Where a model's weights are."""
    return folder / f"{name}-{number}.safetensors"


def answers_file(folder: Path, name: str, number: int) -> Path:
    """Where a model's answers to all questions are."""
    return folder / f"{name}-{number}.npz"


def compact(answers: Answers) -> Answers:
    """Answers in the smallest types that hold them."""
    kinds = {"score": np.float32, "cosine": np.float32}  # which metrics compare; of entropies three digits are enough
    return {
        name: column.astype(kinds.get(name, np.float16 if column.dtype.kind == "f" else np.int8))
        for name, column in answers.items()
    }


# ---------------------------------------------------------------- choice of targets


def validation_accuracy(model: Model) -> np.ndarray:
    """(64,) accuracy of a model on each identity's validation pictures."""
    pictures = _people.pictures("validation")
    label = pictures["label"].numpy()
    right = _clip.name_ranks(model, pictures["image"], label) == 0
    return np.bincount(label, right) / np.bincount(label)


def choose(accuracies: Sequence[np.ndarray]) -> list[Chosen]:
    """Deal identities to requests, by validation accuracy in all base models and a fixed shuffle.

    Joint requests take one known identity a family. Of the other known ones the single test requests are taken at
    even steps from the hardest to the easiest; the other pools share what is left, known ones first.
    """
    lowest, mean = np.min(accuracies, axis=0), np.mean(accuracies, axis=0)
    shuffled = np.random.default_rng(0).permutation(len(_clip.TRAINED))
    known = [int(i) for i in shuffled if lowest[i] >= MIN_VALIDATION_ACCURACY]
    requests = []
    for k in range(N_JOINT):
        taken = _one_a_family(known, JOINT_SIZE)
        known = [i for i in known if i not in taken]
        requests.append(Chosen(f"joint-{k}", tuple(sorted(taken)), "test", ships=True))
    if len(known) < POOL_SIZES["test"]:
        raise RuntimeError(f"only {len(known)} identities are known well enough to be single targets.")
    ranked = sorted(known, key=lambda i: (mean[i], i))
    steps = np.linspace(0, len(ranked) - 1, POOL_SIZES["test"]).round().astype(int)
    dealt: dict[Pool, list[int]] = {"test": [ranked[step] for step in steps]}
    used = {*dealt["test"], *(i for request in requests for i in request.targets)}
    left = sorted((int(i) for i in shuffled if i not in used), key=lambda i: lowest[i] < MIN_VALIDATION_ACCURACY)
    for pool in ("tune", "dev", "sealed"):
        dealt[pool], left = left[: POOL_SIZES[pool]], left[POOL_SIZES[pool] :]
    # in the order in which `quick` takes them: neither the hardest nor the easiest first
    order = np.random.default_rng(1).permutation(POOL_SIZES["test"])
    dealt["test"] = [dealt["test"][k] for k in order]
    return requests + [
        Chosen(_clip.TRAINED[i].replace(" ", "-"), (i,), pool, ships=pool == "test" and k < N_SHIPPED_SINGLE)
        for pool, ids in dealt.items()
        for k, i in enumerate(ids)
    ]


def _one_a_family(known: Sequence[int], count: int) -> list[int]:
    by_family: dict[int, int] = {}
    for identity in known:
        by_family.setdefault(identity // _clip.TRAINED_A_FAMILY, identity)
    return list(by_family.values())[:count]


def _facts(chosen: Sequence[Chosen]) -> dict[str, Any]:
    """What `requests.json` holds."""
    libraries = ("torch", "open_clip_torch", "numpy")
    return {
        "made_with": {
            "platform": f"{platform.system()} {platform.machine()}",
            "processor": processor(),
            "threads": 1,
            **{library: version(library) for library in libraries},
        },
        "recipe": _clip.Recipe()._asdict(),
        "pictures": _people.picture_digest(),
        "requests": [request._asdict() for request in chosen],
    }
