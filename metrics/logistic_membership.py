"""The membership column of SLUG, and of the 2023 unlearning challenge's starting kit before it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from slugbench.bench import Outcome, Value, metric

from .membership import members_and_others, parts, sample_attack_fails

SEEDS, SPLITS, HELD_OUT = 10, 10, 0.1


@metric("mia_lr_acc")
@dataclass(frozen=True)
class LogisticAccuracy:
    """Accuracy of a logistic regression on one image's loss in telling forgotten training images from unseen ones.

    The loss is 1 - cosine of image and true text where a CLIP's answers have it, else the cross-entropy of the true label.
    Of each of 10 seeds as many members as non-members are drawn, and of each of 10 splits a tenth is held out and judged.

    Closest to the retrained models' value is best. 0.5 is chance, though with a few hundred images that are alike on both
    sides it comes out below (0.47 of the fictitious people's oracles): what leans one way in the nine tenths leans the
    other in the one. Members and non-members are `mia_sample`'s. SLUG's code compares with images from another collection,
    which shows where an image is from: the untouched model has 0.73 there. So put it beside published columns only, and
    say so.

    The spread over the 100 resplits, which papers print after a +-, is no interval: it is of one and the same data and goes
    down with more splits, not with more images. The interval here draws images and concepts, given the fitted classifiers.
    Null where `mia_sample` fails on the original.

    References:
        Cai, Tan and Asif, Targeted Unlearning with Single Layer Unlearning Gradient, 2025. Triantafillou et al., Are We
        Making Progress in Unlearning? Findings from the First NeurIPS Unlearning Competition, 2024.
    """

    preload: ClassVar[tuple[str, ...]] = ("sklearn.linear_model", "sklearn.model_selection")

    def __call__(self, outcome: Outcome) -> list[Value]:
        """One value `mia_lr_acc`, in [0, 1]; none where the task asks nothing about the forget split itself."""
        split = outcome.trial.questions["split"]
        if not all((split == part).any() for part in parts(outcome)):
            return []
        rows, member = members_and_others(outcome)
        unit = outcome.trial.questions["unit"][rows]
        n_units = len(np.unique(unit))
        if note := _too_few(member) or sample_attack_fails(outcome):
            return [Value("mia_lr_acc", None, "", "oracle", 0.5, len(rows), n_units, note=note)]
        right, judged, spread = resplits(_loss(outcome)[rows], member)
        arrays = {"x": right, "judged": judged, "unit": unit}
        note = f"SD over the {SEEDS * SPLITS} resplits {spread:.3f}, which is no interval"
        return [Value("mia_lr_acc", accuracy(arrays), "", "oracle", 0.5, len(rows), n_units, arrays, accuracy, note)]


def resplits(loss: np.ndarray, member: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """How often each image was told right and how often it was judged at all (n,), and the SD of the splits' accuracies."""
    import sklearn
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedShuffleSplit

    right, judged, accuracies = np.zeros(len(loss)), np.zeros(len(loss)), []
    n = min(member.sum(), (~member).sum())
    # a hundred tiny fits: checks and the default solver would take ten times as long for the same optimum
    regression = LogisticRegression(solver="newton-cholesky")
    with sklearn.config_context(assume_finite=True, skip_parameter_validation=True):
        for seed in range(SEEDS):
            rng = np.random.default_rng(seed)
            drawn = np.concatenate([rng.permutation(np.flatnonzero(side))[:n] for side in (member, ~member)])
            x, y = loss[drawn, None], member[drawn]
            for learned, held_out in StratifiedShuffleSplit(SPLITS, test_size=HELD_OUT, random_state=seed).split(x, y):
                regression.fit(x[learned], y[learned])
                called = x[held_out, 0] * regression.coef_[0, 0] + regression.intercept_[0] > 0
                hit = called == y[held_out]
                right[drawn[held_out]] += hit
                judged[drawn[held_out]] += 1
                accuracies.append(hit.mean())
    return right, judged, float(np.std(accuracies, ddof=1))


def accuracy(arrays: Mapping[str, np.ndarray]) -> float:
    """Share of all judgements that were right: the mean of the splits' accuracies, which are of equally many images."""
    judged = arrays["judged"].sum()
    return float(arrays["x"].sum() / judged) if judged else float("nan")


def _too_few(member: np.ndarray) -> str:
    n = int(min(member.sum(), (~member).sum()))
    # a tenth of both sides together has to hold one of each
    return "" if 2 * n * HELD_OUT >= 2 else f"{n} images a side; 10 are needed to hold out a tenth"


def _loss(outcome: Outcome) -> np.ndarray:
    """1 - cosine, or -log p = log(1 + e^-score)."""
    # of a model that makes images the cosine is a frozen CLIP's, and of a picture to be denoised the same for every model
    if "cosine" in outcome.answers and outcome.trial.request.objective.kind == "clip":
        return 1 - outcome.answers["cosine"].astype(np.float64)
    return np.logaddexp(0, -outcome.answers["score"].astype(np.float64))
