"""How many members an attacker finds who may hardly ever be wrong: privacy is the worst case, not the average one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from slugbench.bench import Outcome, Value, metric

from .membership import members_and_others, parts, sample_attack_fails

LEAST_OTHERS = {"1": 1_000, "0.1": 10_000}
"""By false positives in percent, the non-members it takes: ten of them then lie beyond the threshold."""


@metric("tpr")
@dataclass(frozen=True)
class LowFalsePositives:
    """Share of the forgotten training images found at 1 % and 0.1 % false positives, by the model's confidence.

    An image counts as found where its score is above that of all but 1 % (0.1 %) of the non-members. Members and
    non-members are `mia_sample`'s. Closest to the retrained models' value is best; chance is the false-positive rate.
    Members of unusually low score are not found by this, though they leak too: `mia_sample` below its oracles' shows them.

    Null with fewer than 1,000 (10,000) non-members, on which such a threshold is nearly a draw, and where `mia_sample`
    fails on the original. Images are pooled over concepts, so the interval is the exact binomial one, given the threshold.

    References:
        Carlini et al., Membership Inference Attacks From First Principles, 2022.
    """

    def __call__(self, outcome: Outcome) -> list[Value]:
        """Values `tpr@1%fpr tpr@0.1%fpr`, in [0, 1]; none where the task asks nothing about the forget split itself."""
        split = outcome.trial.questions["split"]
        if not all((split == part).any() for part in parts(outcome)):
            return []
        return [_found(outcome, percent) for percent in LEAST_OTHERS]


def _found(outcome: Outcome, percent: str) -> Value:
    name, fpr = f"tpr@{percent}%fpr", float(percent) / 100
    rows, member = members_and_others(outcome)
    n_others = int((~member).sum())
    note = "" if n_others >= LEAST_OTHERS[percent] else f"{n_others:,} unseen images; {LEAST_OTHERS[percent]:,} are needed"
    if note := note or sample_attack_fails(outcome):
        return Value(name, None, "", "oracle", fpr, int(member.sum()), 1, note=note)
    score = outcome.answers["score"][rows]
    x = (score[member] > threshold(score[~member], fpr)).astype(np.float64)
    # one unit, since what is asked is how many images are exposed and not how exposed a concept is on average
    return Value(name, float(x.mean()), "", "oracle", fpr, len(x), 1, {"x": x, "unit": np.zeros(len(x), dtype=int)})


def threshold(others: np.ndarray, fpr: float) -> float:
    """The lowest of the scores above which lie at most that share of them."""
    # 1e-9, since 0.01 * 1000 must not come out as 9.99... and cost an image
    return float(np.sort(others)[::-1][int(fpr * len(others) + 1e-9)])
