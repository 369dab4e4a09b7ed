"""Whether it still shows which concepts were ever trained on: the user-level question, which the law asks too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from slugbench.bench import Answers, Outcome, Value, metric

from .membership import auc, uninformative

LEAST_OUTSIDERS = 32
"""With 16 the AUC of retrained models, who met neither side, was 0.36: which people happen to be outside decided it."""


@metric("mia_identity")
@dataclass(frozen=True)
class IdentityMembership:
    """AUC of telling the forgotten concepts from never-trained ones, on images that no model was trained on.

        joint requests     AUC over concepts, each by the mean score of its test images
        single ones        AUC over images: there is one forgotten concept, and its images against those of all outsiders

    Closest to the retrained models' value on the same concepts is best. That is not 0.5: a handful of forgotten and a few
    dozen outside concepts differ by chance, and forgotten names are among the candidates while outsiders' are not.
    Null where there are fewer than 32 outsiders or where the original itself cannot be attacked.

    The interval of a joint request is over both sides' concepts; that of a single one over outsiders alone, as there is no
    second target to draw.

    References:
        Song and Shmatikov, Auditing Data Provenance in Text-Generation Models, 2019 (membership of a user, not a sample).
    """

    def __call__(self, outcome: Outcome) -> list[Value]:
        """One value `mia_identity`, in [0, 1]; none where samples are forgotten or nothing is asked about outsiders."""
        q = outcome.trial.questions
        if not outcome.trial.request.targets or not (q["split"] == "outsider").any():
            return []
        found = _attack(outcome, outcome.answers)
        if note := _too_few(q) or uninformative(_attack(outcome, outcome.trial.original)):
            return [Value("mia_identity", None, "", "oracle", 0.5, found.n_images, found.n_units, note=note)]
        return [found]


def _too_few(questions: Mapping[str, np.ndarray]) -> str:
    n = len(np.unique(questions["unit"][questions["split"] == "outsider"]))
    return "" if n >= LEAST_OUTSIDERS else f"{n} never-trained concepts; fewer than {LEAST_OUTSIDERS} differ by chance"


def _attack(outcome: Outcome, answers: Answers) -> Value:
    q = outcome.trial.questions
    rows = np.isin(q["split"], ("forget", "outsider"))
    member = q["split"][rows] == "forget"
    arrays = {"x": answers["score"][rows], "unit": q["unit"][rows], "member": member, "stratum": member}
    statistic = concept_auc if outcome.trial.joint else auc
    n_units = len(np.unique(arrays["unit"]))
    return Value("mia_identity", statistic(arrays), "", "oracle", 0.5, len(member), n_units, arrays, statistic)


def concept_auc(arrays: Mapping[str, np.ndarray]) -> float:
    """The AUC of the units' mean `x`; a unit's images are all members or none of them is."""
    first, unit = np.unique(arrays["unit"], return_index=True, return_inverse=True)[1:]
    return auc({"x": np.bincount(unit, arrays["x"]) / np.bincount(unit), "member": arrays["member"][first]})
