"""Whether it still shows which of the forgotten images were trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from slugbench.bench import Answers, Outcome, Value, metric
from slugbench.bench.intervals import interval

ATTACKABLE = 0.6
"""The AUC from which on the original model counts as attackable, if its interval lies above 0.5 as well."""


@metric("mia_sample")
@dataclass(frozen=True)
class SampleMembership:
    """AUC of telling the forgotten training images from unseen ones by the model's confidence.

        AUC = P(score of a member > score of a non-member) + P(equal) / 2,   score = log p(y) / (1 - p(y))

    0.5 is chance, and values below it leak as well (over-forgotten members stand out), so closest to the retrained
    model is best.

    Where concepts are forgotten, unseen images are test images of the same concepts, and the value is null where the
    original model itself cannot be attacked: 0.5 would then prove nothing.

    Where samples are forgotten (a request without targets), they are test images of all concepts, in nearly the shares
    that the samples have them. This is the classical test, and what such a request is about; it always has a value.
    Samples that happen to be hard or easy move the AUC of any model, trained on them or not: by 0.04 with 40 scans of
    digits, as much as training does. So 0.5 is not the mark, but the AUC of the retrained models on these very samples,
    and a value says little alone: read the mean gap to the oracles over several requests.

    A model that makes images has no confidence: there the score is how well it denoises an image under its prompt.

    References:
        Carlini et al., Membership Inference Attacks From First Principles, 2022 (the score).
        Matsumoto, Miura and Yanai, Membership Inference Attacks against Diffusion Models, 2023 (denoising).
    """

    def __call__(self, outcome: Outcome) -> list[Value]:
        """One value `mia_sample`, in [0, 1]; none where the task asks nothing about the forget split itself."""
        split = outcome.trial.questions["split"]
        if not all((split == part).any() for part in parts(outcome)):
            return []
        found = membership_auc(outcome, outcome.answers)
        if note := sample_attack_fails(outcome):
            return [Value("mia_sample", None, "", "oracle", 0.5, found.n_images, found.n_units, note=note)]
        return [found]


def parts(outcome: Outcome) -> tuple[str, str]:
    """The splits of members and of non-members: of the forget split itself, and of unseen images like it."""
    if not outcome.trial.request.targets:
        return "forget", "retain"
    drawn = (outcome.trial.questions["split"] == UNSEEN).any()  # what a model draws of the targets is no test image
    return "forget_train", UNSEEN if drawn else "forget"


UNSEEN = "forget_unseen"
"""The split of unseen images of the targets, where `forget` asks for images instead of showing some."""


def members_and_others(outcome: Outcome) -> tuple[np.ndarray, np.ndarray]:
    """The rows (n,) of the two splits of `parts`, in the order of the questions, and which of them are members."""
    split, (members, others) = outcome.trial.questions["split"], parts(outcome)
    rows = np.flatnonzero(np.isin(split, (members, others)))
    return rows, split[rows] == members


def sample_attack_fails(outcome: Outcome) -> str:
    """Why no test on single images says anything: `mia_sample` fails on the original. Empty where it does not.

    Of samples (a request without targets) it may fail: what they say is the gap to the oracles on these very samples.
    """
    return "" if not outcome.trial.request.targets else uninformative(membership_auc(outcome, outcome.trial.original))


def uninformative(before: Value) -> str:
    """The note of a test whose value on the original model is `before`, an AUC that proves no attack; else empty."""
    # of many requests some pass the interval by chance, hence the floor too; a few hundred draws are enough for it
    low, high = _bounds(_Hashed(before))
    if low > 0.5 and (before.value or 0) >= ATTACKABLE:
        return ""
    return f"uninformative: the original's own AUC is {before.value:.2f} (95 % {low:.2f} to {high:.2f})"


class _Hashed:
    """A value as a key: that of the original comes up again for every metric and every oracle."""

    def __init__(self, value: Value) -> None:
        self.value, arrays = value, value.arrays or {}
        self._key = value.statistic, tuple((name, arrays[name].dtype.str, arrays[name].tobytes()) for name in arrays)

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Hashed) and self._key == other._key


@lru_cache(maxsize=16)
def _bounds(before: _Hashed) -> tuple[float, float]:
    return interval(before.value, resamples=400) or (0.0, 1.0)


def membership_auc(outcome: Outcome, answers: Answers) -> Value:
    """The attack on one model of a trial, on the rows of `parts`."""
    rows, member = members_and_others(outcome)
    arrays = {"x": answers["score"][rows], "unit": outcome.trial.questions["unit"][rows], "member": member}
    n_units = len(np.unique(arrays["unit"]))
    return Value("mia_sample", auc(arrays), "", "oracle", 0.5, len(arrays["x"]), n_units, arrays, auc)


def auc(arrays: Mapping[str, np.ndarray]) -> float:
    """Area under the ROC curve of `x` for `member`, ties counted half; NaN without members or non-members."""
    member, other = arrays["x"][arrays["member"]], np.sort(arrays["x"][~arrays["member"]])
    if len(member) == 0 or len(other) == 0:
        return float("nan")
    below_or_tied = np.searchsorted(other, member, "left").sum() + np.searchsorted(other, member, "right").sum()
    return float(below_or_tied) / (2 * len(member) * len(other))
