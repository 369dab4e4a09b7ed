"""A membership attack that allows for how hard each image is, by asking the retrained models about it as well."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from slugbench.bench import Answers, Outcome, Value, metric

from .membership import UNSEEN, auc, members_and_others, parts, sample_attack_fails


@metric("rmia")
@dataclass(frozen=True)
class RelativeMembership:
    """AUC of telling the forgotten training images from unseen ones by the Robust Membership Inference Attack.

        ratio(x) = P(x | model) / P(x),   P(x) = ((1 + a) mean of P(x | oracle) + (1 - a)) / 2
        score(x) = share of the population z with ratio(x) / ratio(z) > gamma

    P(x | model) is the probability of the true label. Oracles are the references, all of them models that saw neither
    members nor non-members (the offline attack), and z are unseen images of retained concepts. Members and non-members
    are `mia_sample`'s; where samples are forgotten every second test image is z and the others are non-members.

    Closest to the retrained models' value is best; 0.5 is chance, and below it leaks as well. Null where `mia_sample` fails
    on the original.

    Attributes:
        offline_a: how P(x) of the absent half, models trained on x, is guessed from the oracles: 0 sets it to 1, 1 to
            theirs. The paper's 0.3 is of CIFAR-10; tuning it takes a pair of models that are not judged here.
        gamma: how much more likely than z an image has to have become. 1 is the paper's.

    References:
        Zarifzadeh, Liu and Shokri, Low-Cost High-Power Membership Inference Attacks, 2024.
    """

    offline_a: float = 0.3
    gamma: float = 1.0

    def __post_init__(self) -> None:
        if not (0 <= self.offline_a <= 1 and self.gamma > 0):
            raise ValueError("offline_a has to be from 0 to 1, and gamma above 0")

    def __call__(self, outcome: Outcome) -> list[Value]:
        """One value `rmia`, in [0, 1]; none where the task asks nothing about the forget split itself."""
        q, split = outcome.trial.questions, outcome.trial.questions["split"]
        if not all((split == part).any() for part in (*parts(outcome), "retain")) or UNSEEN in parts(outcome):
            return []  # in the latter case images to be retained are drawn, and no population for those that are shown
        rows, member = members_and_others(outcome)
        population = np.flatnonzero(split == "retain")
        if not outcome.trial.request.targets:  # non-members are test images of all concepts themselves: share them out
            population = population[::2]
            member, rows = member[~np.isin(rows, population)], np.setdiff1d(rows, population)
        n_images, n_units = len(rows), len(np.unique(q["unit"][rows]))
        note = "there is no oracle to refer to" if not outcome.oracles else sample_attack_fails(outcome)
        if note:
            return [Value("rmia", None, "", "oracle", 0.5, n_images, n_units, note=note)]
        ratio = likelihood_ratio(outcome.answers, outcome.oracles, self.offline_a)
        x = dominated(ratio[rows], ratio[population], self.gamma)
        arrays = {"x": x, "unit": q["unit"][rows], "member": member}
        return [Value("rmia", auc(arrays), "", "oracle", 0.5, n_images, n_units, arrays, auc)]


def likelihood_ratio(answers: Answers, references: Sequence[Answers], offline_a: float) -> np.ndarray:
    """P(x | model) / P(x) of every question (N,), P(x) from models that were not trained on it."""
    from scipy.special import expit

    out = np.mean([expit(reference["score"]) for reference in references], axis=0)
    return expit(answers["score"]) / (((1 + offline_a) * out + (1 - offline_a)) / 2)


def dominated(ratio: np.ndarray, population: np.ndarray, gamma: float) -> np.ndarray:
    """Share of the population whose ratio times gamma is below each ratio, in [0, 1]."""
    return np.searchsorted(np.sort(population * gamma), ratio, "left") / len(population)
