"""The membership column of l1-sparse unlearning and SalUn, under its usual name of MIA-Efficacy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np

from slugbench.bench import Answers, Outcome, Value, metric

from .accuracy import average
from .membership import parts, sample_attack_fails

KEPT = "retain_train"
"""The split of kept training images, the members that the attack learns from."""


@metric("mia_svc_eff")
@dataclass(frozen=True)
class SvcEfficacy:
    """Share of the forgotten training images that a support vector machine calls non-members.

    It learns on the judged model's own answers to kept training images (members) and unseen images of kept concepts
    (non-members), as many of each, and is asked about the forgotten. High means it takes them for never trained on. Neither
    1 nor 0.5 is the mark but what it says of retrained models: 0.13 in SalUn's own table, so closest to theirs is best.
    Print it only beside published columns of the same name: it moves with how sure a model is of anything.

    Null where the task asks nothing about kept training images (split `retain_train`), or where `mia_sample` fails on the
    original. The interval is over the forgotten concepts, given the machine as it was fitted.

    Attributes:
        feature: `confidence`, the probability of the true label and the published column, or `entropy` or `m_entropy`,
            the modified entropy, where answers have these columns; elsewhere confidence is taken.
        legacy: as the published code: members are the first of the kept images instead of drawn ones, and the modified
            entropy is its faulty one. Such values have a name of their own.
        most: images of each side that are learned from; time grows with their square (500: a tenth of a second).

    References:
        Jia et al., Model Sparsity Can Simplify Machine Unlearning, 2023. Fan et al., SalUn: Empowering Machine Unlearning
        via Gradient-Based Weight Saliency, 2024.
    """

    feature: Literal["confidence", "entropy", "m_entropy"] = "confidence"
    legacy: bool = False
    most: int = 500

    preload: ClassVar[tuple[str, ...]] = ("sklearn.svm",)

    def __post_init__(self) -> None:
        if self.most < 1:
            raise ValueError("most has to be at least 1")

    def __call__(self, outcome: Outcome) -> list[Value]:
        """One value `mia_svc_eff`, in [0, 1]; none where the task asks nothing about the forget split itself."""
        split = outcome.trial.questions["split"]
        target = split == parts(outcome)[0]
        if not all((split == part).any() for part in parts(outcome)):
            return []
        name, note = self._name(outcome.answers)
        unit = outcome.trial.questions["unit"][target]
        n_images, n_units = len(unit), len(np.unique(unit))
        if not (split == KEPT).any():
            why_not = "the task asks nothing about kept training images"
        else:
            why_not = sample_attack_fails(outcome)
        if why_not:
            return [Value(name, None, "", "oracle", None, n_images, n_units, note=why_not)]
        return [replace(average(name, self._called_unseen(outcome, target), unit, "oracle"), note=note)]

    def _name(self, answers: Answers) -> tuple[str, str]:
        """What the value is called, and what a reader has to know."""
        suffix = "_legacy" if self.legacy else ""
        if self.feature == "confidence":
            return f"mia_svc_eff{suffix}", ""
        if self._column not in answers:
            return f"mia_svc_eff{suffix}", f"of confidence: the answers have no column `{self._column}`"
        return f"mia_svc_eff_{self.feature}{suffix}", ""

    @property
    def _column(self) -> str:
        return f"{self.feature}{'_legacy' * (self.legacy and self.feature == 'm_entropy')}"

    def _called_unseen(self, outcome: Outcome, target: np.ndarray) -> np.ndarray:
        """(n,) 1.0 where the machine takes a target for a non-member."""
        from sklearn.svm import SVC

        feature = self._feature(outcome)[:, None]
        split = outcome.trial.questions["split"]
        members, others = np.flatnonzero(split == KEPT), np.flatnonzero(split == "retain")
        n = min(len(members), len(others), self.most)
        rng = np.random.default_rng(0)  # the same images for every model, or the draw would be a difference between them
        others = rng.permutation(others)[:n]
        members = members[:n] if self.legacy else rng.permutation(members)[:n]
        # gamma = 1 / (number of features), and features as they are: the published code's
        machine = SVC(C=3, kernel="rbf", gamma="auto")
        machine.fit(feature[np.concatenate([members, others])], np.repeat([1, 0], n))
        return (machine.predict(feature[target]) == 0).astype(np.float64)

    def _feature(self, outcome: Outcome) -> np.ndarray:
        from scipy.special import expit

        answers = outcome.answers
        return answers[self._column].astype(np.float64) if self._column in answers else expit(answers["score"])
