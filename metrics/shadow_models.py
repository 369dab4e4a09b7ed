"""Whether an example's own distribution of scores gives away that it was unlearned rather than never seen.

Attacks on single models compare examples with each other, so what is easily told of a few hides in the mean. Here the
method runs on many originals, and each example is asked of its own models: unlearned ones and retrained ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from slugbench.bench import Answers, Outcome, Value, metric

from .accuracy import average
from .membership import parts
from .representation import on_device_of

DELTA = 1e-5
POOLED_BELOW = 64
"""Models a side; with fewer the spread of scores is taken to be that of all examples."""


@metric("shadow_models")
@dataclass(frozen=True)
class ShadowModels:
    """U-LiRA, the likelihood-ratio attack on unlearning, and the privacy loss epsilon of each example.

    Each forgotten training image has a score under N unlearned models, the judged one and those the method makes of
    shadow originals, and under N retrained ones. U-LiRA fits a Gaussian to either side and ranks models that are not in the
    fit by the ratio of the likelihoods. Epsilon is the most that any threshold on the score tells (delta 1e-5):

        eps(x) = max over thresholds of ln((1 - delta - FPR) / FNR) and ln((1 - delta - FNR) / FPR),

    at most ln(N - 1), where the sides do not overlap. An oracle is judged as if retraining were the method, N further
    retrained models on its side: what a perfect method reads here. It costs N runs of the method a cell, and the training
    of N originals and 2 N oracles, which are kept in the cache.

    Attributes:
        models: N, shadow originals and retrained models; 16 is the least to say anything, 64 what claims should rest on.

    References:
        Hayes et al., Inexact Unlearning Needs More Careful Evaluations to Avoid a False Sense of Privacy, 2025 (U-LiRA).
        Carlini et al., Membership Inference Attacks From First Principles, 2022 (one variance for few models).
        Triantafillou et al., Are we making progress in unlearning? Findings from the first NeurIPS unlearning competition,
        2024 (epsilon, score).
    """

    models: Annotated[int, Field(ge=4)] = 16

    needs_model: ClassVar[bool] = True

    def __call__(self, outcome: Outcome) -> list[Value]:
        """Values `u_lira u_lira_p95` (AUC an example, mean and 95th percentile, in [0, 1]), `eps_i eps_i_p95` (nats, median
        and 95th percentile) and `eps_score` in (0, 1], the mean of 2^-floor(2 eps): nearest to the retrained models' is
        best. None where the task has no shadow originals."""
        trial = outcome.trial
        split, members = trial.questions["split"], parts(outcome)[0]
        if trial.shadow is None or outcome.model is None or not (split == members).any():
            return []
        rows = np.flatnonzero(split == members)
        out_NX = self._retrained(outcome, rows, range(self.models))
        in_NX = np.vstack([outcome.answers["score"][rows], self._unlearned(outcome, rows)])
        unit, n = trial.questions["unit"][rows], len(rows)
        auc, eps = per_example_auc(in_NX, out_NX), epsilons(in_NX, out_NX)
        n_units = len(np.unique(unit))

        def percentile(name: str, x: np.ndarray, q: int) -> Value:
            arrays = {"x": x, "unit": unit}
            return Value(name, float(np.percentile(x, q)), "", "oracle", None, n, n_units, arrays, _PERCENTILES[q])

        return [
            average("u_lira", auc, unit, "oracle"),
            percentile("u_lira_p95", auc, 95),
            percentile("eps_i", eps, 50),
            percentile("eps_i_p95", eps, 95),
            average("eps_score", 2.0 ** -np.floor(2 * eps), unit, "oracle"),
        ]

    def _unlearned(self, outcome: Outcome, rows: np.ndarray) -> np.ndarray:
        """(N, X) scores under the models that the method makes of shadow originals, or that retraining does."""
        trial = outcome.trial
        if outcome.unlearn is None:
            return self._retrained(outcome, rows, range(self.models, 2 * self.models))
        assert trial.shadow is not None
        models = (outcome.unlearn(trial.shadow(s)) for s in range(self.models))
        return np.stack([trial.answer(model, rows)["score"] for model in models])

    def _retrained(self, outcome: Outcome, rows: np.ndarray, numbers: Sequence[int]) -> np.ndarray:
        """(N, X) scores under retrained models of those numbers, without one that is judged itself."""
        trial = outcome.trial
        assert outcome.model is not None
        stored: dict[int, Answers] = dict(zip(outcome.others, outcome.oracles, strict=True))
        found = []
        for number in numbers:
            if number in stored:
                found.append(stored[number]["score"][rows])
            elif number >= len(trial.oracles):
                model = on_device_of(outcome.model, trial.oracle_model(number))
                found.append(trial.answer(model, rows)["score"])
        return np.stack(found)


# ---------------------------------------------------------------- per example


def per_example_auc(in_NX: np.ndarray, out_MX: np.ndarray) -> np.ndarray:
    """(X,) how well a likelihood ratio tells the N models of one side from the M of the other, an example at a time.

        AUC = P(ratio of an `in` model > ratio of an `out` model) + P(equal) / 2

    The ratio's Gaussians are fitted to every second model of a side and tried on the others, then the other way round:
    where the sides are alike 0.5 is what comes out on average, which leaving out one model at a time would not give.
    """
    found = []
    for first in (0, 1):
        ratios = [
            _log_ratio(tried, in_NX[first::2], out_MX[first::2]) for tried in (in_NX[1 - first :: 2], out_MX[1 - first :: 2])
        ]
        more = ratios[0][:, None] - ratios[1][None]
        found.append(((more > 0) + (more == 0) / 2).mean((0, 1)))
    return np.mean(found, axis=0)


def _log_ratio(score_KX: np.ndarray, in_NX: np.ndarray, out_MX: np.ndarray) -> np.ndarray:
    """(K, X) ln of the density of a score among the models of one side over that among those of the other."""
    parts = []
    for side in (in_NX.astype(np.float64), out_MX.astype(np.float64)):
        variance_X = side.var(0, ddof=1)
        if len(side) < POOLED_BELOW:
            variance_X = np.full_like(variance_X, variance_X.mean())
        variance_X = np.maximum(variance_X, 1e-12)
        parts.append(-((score_KX - side.mean(0)) ** 2) / variance_X / 2 - np.log(variance_X) / 2)
    return parts[0] - parts[1]


def epsilons(in_NX: np.ndarray, out_MX: np.ndarray) -> np.ndarray:
    """(X,) privacy loss of each example in nats, from 0 to ln(min(N, M) - 1).

    Thresholds on the score, either way, and on its distance from the median of all models, either way. A threshold that
    errs on one side alone is not used: no finite number of models bounds its epsilon.
    """
    cap = math.log(min(len(in_NX), len(out_MX)) - 1)
    both = np.vstack([in_NX, out_MX])
    far_in, far_out = (np.abs(side - np.median(both, axis=0)) for side in (in_NX, out_MX))
    found = np.zeros(in_NX.shape[1])
    for positive_NX, negative_MX in ((in_NX, out_MX), (far_in, far_out)):
        for threshold in np.vstack([positive_NX, negative_MX]):
            above_in, above_out = (positive_NX > threshold).mean(0), (negative_MX > threshold).mean(0)
            for fpr, fnr in ((above_out, 1 - above_in), (1 - above_out, above_in)):
                found = np.maximum(found, _epsilon(fpr, fnr, cap))
    return np.minimum(found, cap)


def _epsilon(fpr: np.ndarray, fnr: np.ndarray, cap: float) -> np.ndarray:
    fpr, fnr = np.round(fpr, 12), np.round(fnr, 12)  # 1 - share is not exactly 0 where the share is 1
    both, neither = (fpr > 0) & (fnr > 0), (fpr == 0) & (fnr == 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        bound = np.fmax(np.log((1 - DELTA - fpr) / fnr), np.log((1 - DELTA - fnr) / fpr))
    return np.where(neither, cap, np.where(both, np.nan_to_num(bound, nan=0.0), 0.0))


def _median(arrays: Mapping[str, np.ndarray]) -> float:
    return float(np.percentile(arrays["x"], 50))


def _p95(arrays: Mapping[str, np.ndarray]) -> float:
    return float(np.percentile(arrays["x"], 95))


_PERCENTILES = {50: _median, 95: _p95}
