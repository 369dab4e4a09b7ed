"""How far the usual columns are from the retrained models', in one number: two that papers print, from the same gaps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from slugbench.bench import Outcome, Value, metric
from slugbench.bench.types import Better

from .membership import auc, parts

Statistic: TypeAlias = Callable[[Mapping[str, np.ndarray]], float]

ACCURACIES = ("forget", "retain", "utility")
"""By their split. Utility is another task on the same model, where a task asks about one."""


@metric("avg_gap")
@dataclass(frozen=True)
class AverageGap:
    """Mean distance of the usual columns from the retrained models': forget, retain and utility accuracy, and membership.

        avg_gap = mean of |value - mean over oracles|,   membership by the AUC of `mia_sample`, attackable or not

    Lower is better; oracles, each against the others, have their own, which is what retraining anew would give. It weighs a
    point of membership like a point of accuracy and hides which of them is off, and an output mask that changes no weight
    has 0.04 on eight fictitious people, as oracles do: read it beside its parts and `fq`. Columns that a task does not
    ask for are left out, and the note says which. SalUn's column is of training accuracies and of
    `mia_svc_eff`; this one is of test accuracies, so that the two are not to be subtracted.

    References:
        Fan et al., SalUn: Empowering Machine Unlearning via Gradient-Based Weight Saliency, 2024.
    """

    def __call__(self, outcome: Outcome) -> list[Value]:
        """One value `avg_gap`, in [0, 1]."""
        return _value(outcome, "avg_gap", "lower", membership=True, statistic=average_gap)


@metric("tow")
@dataclass(frozen=True)
class TugOfWar:
    """Whether forgetting, retaining and utility are all as in the retrained models: one failure is enough to fail.

        tow = product of (1 - |value - mean over oracles|) over forget, retain and utility accuracy

    Higher is better; 1 is no gap at all. Oracles against each other have less, which is what there is to reach: 0.84 with
    eight of them on the fictitious people, 0.68 with three. Unlike a mean of gaps it is near 0 where any one is near 1.
    Accuracies a task does not ask for are left out, and the note says which.

    References:
        Zhao et al., What Makes Unlearning Hard and What to Do About It, 2024 (there of training and test images).
    """

    def __call__(self, outcome: Outcome) -> list[Value]:
        """One value `tow`, in [0, 1]."""
        return _value(outcome, "tow", "higher", membership=False, statistic=tug_of_war)


def average_gap(arrays: Mapping[str, np.ndarray]) -> float:
    """The mean of all gaps, of columns as `accuracy_gaps` and `membership_gap` take them."""
    member_gap = [membership_gap(arrays)] if "member" in arrays else []
    return float(np.mean([*accuracy_gaps(arrays), *member_gap]))


def tug_of_war(arrays: Mapping[str, np.ndarray]) -> float:
    """The product, of columns as `accuracy_gaps` takes them."""
    return float(np.prod(1 - accuracy_gaps(arrays)))


def accuracy_gaps(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """|accuracy - mean of the oracles'| of each of `ACCURACIES` that there is, macro averages (images -> concepts).

    Args:
        arrays: columns (n,) `part` (the position in `ACCURACIES`, -1 for none), `x`, by how much the model is more often
            right on an image than the oracles (its 0 or 1 less their mean), and `weight`, one over the images of its unit
            and part, so that weighted means over images are macro averages. Drawing whole units leaves the weights true.
    """
    part, weight = arrays["part"] + 1, arrays["weight"]
    total, gained = np.bincount(part, weight)[1:], np.bincount(part, weight * arrays["x"])[1:]
    return np.abs(gained[total > 0] / total[total > 0])


def membership_gap(arrays: Mapping[str, np.ndarray]) -> float:
    """|AUC - mean of the oracles'|, of columns `member` (1, 0 or -1 for neither), `score` (n,) and `oracles` (n, S)."""
    rows = np.flatnonzero(arrays["member"] >= 0)
    member, oracles_SN = arrays["member"][rows] == 1, arrays["oracles"][rows].T
    own, *others = (auc({"x": x, "member": member}) for x in (arrays["score"][rows], *oracles_SN))
    return abs(own - float(np.mean(others)))


def _value(outcome: Outcome, name: str, better: Better, *, membership: bool, statistic: Statistic) -> list[Value]:
    split = outcome.trial.questions["split"]
    if not (split == "forget").any():
        return []
    if not outcome.oracles:
        return [Value(name, None, "", better, note="there is no oracle to compare with")]
    arrays = _columns(outcome, membership)
    missing = [part for part in ACCURACIES if not (split == part).any()]
    missing += ["membership"] * (membership and "member" not in arrays)
    note = f"without {' and '.join(missing)}, which the task does not ask for" if missing else ""
    n_units = len(np.unique(arrays["unit"]))
    return [Value(name, statistic(arrays), "", better, None, len(arrays["x"]), n_units, arrays, statistic, note)]


def _columns(outcome: Outcome, membership: bool) -> dict[str, np.ndarray]:
    """What the gaps are computed from, one row a question that enters any of them."""
    split, attacked = outcome.trial.questions["split"], parts(outcome)
    membership = membership and all((split == part).any() for part in attacked)
    rows = np.isin(split, (*ACCURACIES, *attacked) if membership else ACCURACIES)
    split, unit = split[rows], np.unique(outcome.trial.questions["unit"][rows], return_inverse=True)[1]
    own, *oracles = ((answers["rank"][rows] == 0).astype(np.float64) for answers in (outcome.answers, *outcome.oracles))
    part = np.select([split == name for name in ACCURACIES], range(len(ACCURACIES)), -1)
    group, size = np.unique([part, unit], axis=1, return_inverse=True, return_counts=True)[1:]
    columns = {
        "x": own - np.mean(oracles, axis=0),
        "weight": 1 / size[group],
        "unit": unit,
        "part": part,
        # targets, kept concepts and those of the utility task are drawn apart, or a draw may be without any of a kind
        "stratum": np.select([np.isin(unit, unit[split == name]) for name in ACCURACIES], range(len(ACCURACIES)), -1),
    }
    if membership:
        columns["member"] = np.select([split == part for part in attacked], [1, 0], -1)
        columns["score"] = outcome.answers["score"][rows]
        columns["oracles"] = np.stack([oracle["score"][rows] for oracle in outcome.oracles], axis=1)
    return columns
