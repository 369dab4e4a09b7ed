"""Forgetting people: 64 fictitious identities, drawn from a seed, known to a small but real `open_clip` model.

The embedded stand-in for CelebA identities. Retraining takes half a minute, so the target of forgetting, the model
that never saw the person, is at hand for every request: three or eight of them. What ships was made by
`slugbench artifacts rebuild identities` (`_identities_recipe`); faces are drawn by `_faces`, the model is in `_clip`.

References:
    Maini et al., TOFU: A Task of Fictitious Unlearning for LLMs, 2024 (fictitious authors, retrained models).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

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
    cached,
    digest,
    file_digest,
    task,
)

from . import _clip, _people
from ._gates import at_least, at_most, within
from ._identities_recipe import (
    BASE_SEEDS,
    Chosen,
    answers_file,
    n_oracles,
    oracle_seed,
    rebuild,
    train,
    weights_file,
)
from ._shipped import assets, load_answers, load_weights, save_weights
from ._training import one_thread

if TYPE_CHECKING:
    import pandas as pd


@task("identities")
@dataclass(frozen=True)
class Identities:
    """Forgetting one or eight of 64 fictitious people that a small CLIP knows; no download, retrained oracles."""

    base_seeds: ClassVar[tuple[int, ...]] = BASE_SEEDS
    preload: ClassVar[tuple[str, ...]] = ("open_clip", "safetensors.torch")

    def requests(self) -> tuple[Listed, ...]:
        """Two joint requests of eight people, then single ones named after whom they forget."""
        return tuple(Listed(r.id, tuple(_clip.TRAINED[i] for i in r.targets), r.pool) for r in chosen())

    def sizes(self, request_id: str) -> dict[str, Size]:
        """Images and people of each split."""
        asked = questions(request_id)
        found = {str(name): asked["unit"][asked["split"] == name] for name in np.unique(asked["split"])}
        return {name: Size(len(unit), len(np.unique(unit))) for name, unit in found.items()}

    def build(self, request_id: str, base_seed: int) -> Trial:
        """The trial of a request for one base model."""
        request, rows = _request(request_id), _rows(request_id)
        joint = len(request.targets) > 1
        return Trial(
            request=_asked_of(_base(base_seed), request.targets),
            questions=questions(request_id),
            answer=partial(_people.ask, rows_Q=rows),
            original=_stored("base", base_seed, rows),
            oracles=tuple(_stored(f"{request_id}-oracle", s, rows) for s in range(n_oracles(request))),
            oracle_model=partial(oracle_model, request_id),
            n_classes=len(_clip.TRAINED),
            joint=joint,
            original_model=partial(_base, base_seed),
            features=partial(_people.features, rows_Q=rows),
            prompts=_people.Names(rows),
            shadow=lambda s: _asked_of(_shadow(s), request.targets),
            alone=(lambda j, model: _asked_of(model, request.targets[j : j + 1], request.targets[:j])) if joint else None,
        )

    def fingerprint(self, request_id: str, base_seed: int) -> str:
        """Digest of the base model, the oracles, all their answers, the choice of requests and the pictures' version."""
        request, folder = _request(request_id), assets("identities")
        files = [folder / "requests.json"]
        files += [make(folder, "base", _seed(base_seed)) for make in (weights_file, answers_file)]
        files += _oracle_files(folder, request)
        return digest({"files": [file_digest(file) for file in files], "pictures": [_people.SEED, _people.VERSION]})

    def gates(self, request_ids: Sequence[str], base_seeds: Sequence[int]) -> list[Gate]:
        """Bases know the people but not by heart, oracles do not, and who is near matters; from shipped answers."""
        found = [_same_pictures()]
        for seed in base_seeds:
            found += _base_gates(seed)
        for request_id in request_ids:
            found += _request_gates(request_id, base_seeds)
        if any(len(_request(request_id).targets) == 1 for request_id in request_ids):
            found.append(_nearness_of_singles())
        return found

    def gates_after(self, frame: pd.DataFrame) -> list[Gate]:
        """The control `mask`, whose answers alone look right, is given away by its distance from the oracles."""
        rows = frame[(frame["method"] == "mask") & (frame["metric"] == "ks_d")].dropna(
            subset=["value", "oracle_mean", "oracle_sd"]
        )
        if rows.empty:
            return []
        apart = (rows["value"].astype(float) - rows["oracle_mean"].astype(float)) / rows["oracle_sd"].astype(float)
        return [at_least("control mask is caught: its ks_d in SD over the oracles' own", float(apart.min()), 3.0)]

    def wanted(self) -> list[Wanted]:
        """What ships with the package: base models, the choice of requests, oracles' answers and some of their weights."""
        folder, note = assets("identities"), "ships with the package; `slugbench artifacts rebuild identities` makes it anew"
        files = [folder / "requests.json"]
        files += [make(folder, "base", seed) for seed in BASE_SEEDS for make in (weights_file, answers_file)]
        for request in chosen() if files[0].is_file() else ():
            files += _oracle_files(folder, request)
        return [Wanted(file, file.is_file(), note) for file in files]

    def rebuild(self, folder: Path, *, jobs: int = 1) -> None:
        """Draw, train and choose everything anew: about 45 minutes of one core."""
        rebuild(folder, jobs=jobs)


# ---------------------------------------------------------------- requests


@cache
def _facts() -> dict[str, Any]:
    path = assets("identities") / "requests.json"
    if not path.is_file():
        raise UsageError(f"identities misses {path}, which ships with the package; install slugbench anew.")
    return json.loads(path.read_text())


@cache
def chosen() -> tuple[Chosen, ...]:
    """The requests as the recipe chose them."""
    return tuple(Chosen(r["id"], tuple(r["targets"]), r["pool"], r["ships"]) for r in _facts()["requests"])


def _request(request_id: str) -> Chosen:
    by_id = {request.id: request for request in chosen()}
    if request_id not in by_id:
        raise UsageError(f"identities has no request '{request_id}'; it has {', '.join(by_id)}.")
    return by_id[request_id]


def _asked_of(model: Model, targets: tuple[int, ...], gone: tuple[int, ...] = ()) -> Request:
    """The request to make a model forget people; those that are `gone` already are in none of its splits."""
    split = partial(_split, targets=targets, gone=gone)
    return Request(
        model=model,
        targets=tuple(_clip.TRAINED[i] for i in targets),
        forget=split("train", forget=True),
        retain=split("train", forget=False),
        validation=Validation(split("validation", forget=True), split("validation", forget=False)),
        objective=_clip.Contrast((*targets, *gone)),
        validate=partial(validate, targets, gone=gone),
        budget=_budget(len(targets)),
        goal=1 / len(_clip.TRAINED),
    )


def _oracle_files(folder: Path, request: Chosen) -> list[Path]:
    """What ships of a request's oracles: their answers, and of some their weights."""
    kinds = (weights_file, answers_file) if request.ships else (answers_file,)
    return [make(folder, f"{request.id}-oracle", s) for s in range(n_oracles(request)) for make in kinds]


def _seed(seed: int) -> int:
    if seed not in BASE_SEEDS:
        raise UsageError(f"identities has no base model of seed {seed}; it has {', '.join(map(str, BASE_SEEDS))}.")
    return seed


def _budget(n_targets: int) -> Budget:
    """A quarter of what retraining takes: more would not be worth the while. Papers' methods take 5 to 6 % of it."""
    recipe = _clip.Recipe()
    steps = recipe.steps // 4
    return Budget(max_steps=steps, max_reads=steps * recipe.batch, max_evals=300 + 100 * n_targets)


# ---------------------------------------------------------------- data


A_KEPT_TRAINING_PICTURE = 4
"""Every fourth is asked about: attacks learn from them what members look like, 448 of them and more."""


def _split(part: str, targets: Sequence[int], gone: Sequence[int] = (), *, forget: bool) -> TensorSplit:
    """The targets' pictures of a part, or everyone else's but of who is gone, each with one caption."""
    import torch

    pictures = _people.pictures(part)
    mine = torch.isin(pictures["label"], torch.tensor(targets if forget else (*targets, *gone))) == forget
    label = pictures["label"][mine]
    index = torch.nonzero(mine)[:, 0]
    columns = {
        "image": _clip.pixels(pictures["image"][mine]),
        "text": _clip.name_tokens()[label, index % len(_clip.NAME_TEMPLATES)],
        "label": label,
        "index": index,
    }
    members = {_clip.TRAINED[i]: torch.nonzero(label == i)[:, 0] for i in label.unique().tolist()}
    return TensorSplit(columns, members)


@cache
def _rows(request_id: str) -> np.ndarray:
    """Which of all questions a request asks: of the training pictures of those it keeps every fourth."""
    asked = _people.questions()
    targets = np.isin(asked["label"], _request(request_id).targets)
    return np.flatnonzero((asked["part"] != "train") | targets | (asked["index"] % A_KEPT_TRAINING_PICTURE == 0))


def questions(request_id: str) -> dict[str, np.ndarray]:
    """A request's questions, as `Trial.questions`; `near` are the others of a target's family."""
    asked = {name: column[_rows(request_id)] for name, column in _people.questions().items()}
    targets = np.array(_request(request_id).targets)
    target = np.isin(asked["label"], targets) & (asked["part"] != "utility")
    seen = asked["part"] == "train"
    split = np.select(
        [seen & target, seen, asked["part"] == "outsider", asked["part"] == "utility", target],
        ["forget_train", "retain_train", "outsider", "utility", "forget"],
        "retain",
    )
    near = (split == "retain") & np.isin(asked["family"], targets // _clip.TRAINED_A_FAMILY)
    return {"split": split, "near": near, **{name: asked[name] for name in ("unit", "label", "index")}}


def validate(targets: Sequence[int], model: Model, *, retain: bool = True, gone: Sequence[int] = ()) -> Scores:
    """Accuracies on the validation pictures of the targets and, unless `retain` is off, of everyone else but who is gone."""
    pictures = _people.pictures("validation")
    label = pictures["label"].numpy()
    asked = np.flatnonzero(~np.isin(label, gone) if retain else np.isin(label, targets))
    right = _clip.name_ranks(model, pictures["image"][asked], label[asked]) == 0
    forgotten = np.isin(label[asked], targets)
    p = float(right[forgotten].mean())
    se = math.sqrt(p * (1 - p) / forgotten.sum())
    return Scores(p, float(right[~forgotten].mean()) if retain else math.nan, se)


# ---------------------------------------------------------------- models


def _base(seed: int) -> Model:
    return load_weights(_clip.new_model(), weights_file(assets("identities"), "base", _seed(seed)))


def _shadow(number: int) -> Model:
    """An original that ships with nothing: trained like the bases from a seed of its own, and kept in the cache."""
    return _trained("identities-shadow", (), 2000 + number)


def _stored(name: str, number: int, rows: np.ndarray | None = None) -> Answers:
    stored = load_answers(answers_file(assets("identities"), name, number))
    return stored if rows is None else {column: values[rows] for column, values in stored.items()}


def oracle_model(request_id: str, number: int) -> Model:
    """A request's oracle: shipped, or trained once and kept in the cache."""
    path = weights_file(assets("identities"), f"{request_id}-oracle", number)
    if not path.is_file():
        return _trained("identities-oracle", _request(request_id).targets, oracle_seed(number))
    return load_weights(_clip.new_model(), path)


def _trained(kind: str, without: Sequence[int], seed: int) -> Model:
    """A model that never saw some people, from the cache or trained now."""
    key = {"targets": without, "seed": seed, "recipe": _clip.Recipe(), "pictures": _people.VERSION}
    path = cached(kind, key, partial(_train, without, seed), suffix=".safetensors")
    return load_weights(_clip.new_model(), path)


def _train(without: Sequence[int], seed: int, path: Path) -> None:
    with one_thread():  # what the shipped ones were trained with
        save_weights(train(seed, without), path)


# ---------------------------------------------------------------- gates


LEAST_KNOWN = 0.60
"""Of any target in any base model. Chosen at 0.75 or more on 16 validation pictures, the least on 48 test pictures is
0.65 on the shipped models: the choice must not look at test pictures to do better."""
MOST_MET_JOINT, MOST_MET_SINGLE = 0.05, 0.10
"""How often oracles may name whom they never met. Words of a name are known to them and lead to a kind of face, so one
oracle in a few gets a person right here and there: joint requests 0.02 to 0.03 over eight oracles, single ones 0.00 to
0.08 over three."""

LEAST_NEAR, LEAST_NEAR_SINGLES = 2.0, 0.75
"""Siblings among the oracles' answers over chance, and the share of single requests that must reach it. Of one person
it cannot be asked: siblings are the three nearest latents of each of the 24, yet three of them (gwen birch 1.6, jon
maple 1.6, hugo birch 0.3; the others 3.4 to 21.0) are to these oracles most like someone of another family."""


def _same_pictures() -> Gate:
    same = _people.picture_digest() == _facts()["pictures"]
    note = (
        "" if same else "this platform draws other bytes than the one the models were trained on; values still compare here"
    )
    return Gate("pictures are those the models were trained on", float(same), "1", ok=same, note=note)


def _base_gates(seed: int) -> list[Gate]:
    asked, stored = _people.questions(), _stored("base", seed)
    right = {k: stored["rank"] < k for k in (1, 5)}
    on = {part: asked["part"] == part for part in ("train", "test")}
    top1, top5 = (right[k][on["test"]].mean() for k in (1, 5))
    attack = _auc(stored["score"][on["train"]], stored["score"][on["test"]])
    return [
        within(f"base {seed} learned the people: test top-1", top1, 0.80, 0.95),
        at_least(f"base {seed} learned the people: test top-5", top5, 0.95),
        at_least(f"base {seed} is not saturated: train less test top-1", right[1][on["train"]].mean() - top1, 0.05),
        within(f"base {seed} can be attacked, but not trivially: AUC of train against test", attack, 0.60, 0.90),
    ]


def _request_gates(request_id: str, base_seeds: Sequence[int]) -> list[Gate]:
    asked, request, rows = questions(request_id), _request(request_id), _rows(request_id)
    all_bases = {seed: _stored("base", seed, rows) for seed in BASE_SEEDS}
    bases = [all_bases[_seed(seed)] for seed in base_seeds]
    oracles = [_stored(f"{request_id}-oracle", s, rows) for s in range(n_oracles(request))]
    on = {split: asked["split"] == split for split in ("forget", "retain")}

    def accuracy(answers: Answers, split: str) -> float:
        return float((answers["rank"][on[split]] == 0).mean())

    known = min(
        float((base["rank"][on["forget"]] == 0)[asked["label"][on["forget"]] == target].mean())
        for base in bases
        for target in request.targets
    )
    joint = len(request.targets) > 1
    met = np.mean([accuracy(oracle, "forget") for oracle in oracles])
    # of all bases, whichever run: oracles do not depend on the base seed, while bases alone are 0.86 to 0.90 by chance
    lost = np.mean([accuracy(base, "retain") for base in all_bases.values()]) - np.mean(
        [accuracy(oracle, "retain") for oracle in oracles]
    )
    found = [
        at_least(f"{request_id}: every base knows every target: least test top-1", known, LEAST_KNOWN),
        at_most(f"{request_id}: oracles differ: mean FA@1", met, MOST_MET_JOINT if joint else MOST_MET_SINGLE),
        at_most(f"{request_id}: oracles keep utility: retained top-1 they lost", lost, 0.05),
    ]
    if joint:
        near = _nearness(request_id)
        found.append(
            at_least(f"{request_id}: nearness matters: siblings among oracles' answers, over chance", near, LEAST_NEAR)
        )
        scores = [oracle["score"][on["forget"]] for oracle in oracles]
        null = np.median([_distance(x, scores[:s] + scores[s + 1 :]) for s, x in enumerate(scores)])
        apart = min(_distance(base["score"][on["forget"]], scores) for base in bases)
        found.append(
            at_least(f"{request_id}: original differs: its KS distance over the oracles' median", apart / null, 3.0)
        )
    return found


def _nearness_of_singles() -> Gate:
    """Of all single requests, so that the verdict does not hang on which of them run."""
    near = {request.id: _nearness(request.id) for request in chosen() if len(request.targets) == 1}
    below = ", ".join(f"{name} {value:.1f}" for name, value in near.items() if value < LEAST_NEAR)
    share = np.mean([value >= LEAST_NEAR for value in near.values()])
    name = f"nearness matters: share of single requests with siblings {LEAST_NEAR} times chance among oracles' answers"
    return at_least(name, share, LEAST_NEAR_SINGLES)._replace(note=below and f"below: {below}")


@cache
def _nearness(request_id: str) -> float:
    """How much oftener than at random an oracle takes a forgotten person for one of its family."""
    asked, request, rows = questions(request_id), _request(request_id), _rows(request_id)
    on = asked["split"] == "forget"
    oracles = [_stored(f"{request_id}-oracle", s, rows) for s in range(n_oracles(request))]
    predicted = np.stack([oracle["predicted"][on] for oracle in oracles])
    wrong = ~np.isin(predicted, request.targets)
    siblings = predicted // _clip.TRAINED_A_FAMILY == asked["label"][on] // _clip.TRAINED_A_FAMILY
    chance = (_clip.TRAINED_A_FAMILY - 1) / (len(_clip.TRAINED) - len(request.targets))
    return float(siblings[wrong].mean() / chance)


def _distance(x: np.ndarray, others: Sequence[np.ndarray]) -> float:
    """Kolmogorov-Smirnov distance of a sample from others pooled."""
    from scipy.stats import ks_2samp

    return float(ks_2samp(x, np.concatenate(others)).statistic)


def _auc(members: np.ndarray, others: np.ndarray) -> float:
    from scipy.stats import mannwhitneyu

    return float(mannwhitneyu(members, others).statistic / (len(members) * len(others)))
