"""What is still recognised: accuracies of forgotten and kept concepts, from the answers alone.

All are macro averages (images -> concepts). Forget accuracies are best where the retrained model's is: a model that
never saw the target still guesses, so an accuracy below its is over-forgetting.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from slugbench.bench import Outcome, Value, metric
from slugbench.bench.types import Better


@metric("zero_shot")
@dataclass(frozen=True)
class ZeroShot:
    """Zero-shot accuracies of a CLIP: forget (fa), retain (ra; near and far from the target), another task (util).

    `ta` is of the frequent concepts, where a task says which these are, the target counted if it is one of them; `ra` leaves
    it out always. Perfect forgetting costs `ta` the target's share, which for one of a hundred is up to a point.

    And `hold_id`, the mean cosine between pictures and names of concepts that no model was trained on. A retrained model
    relates them as loosely as the original does; less than that is forgetting that spread to all that looks alike.

    References:
        Selvas-Sala, Kang and Gomez, SALMUBench: A Benchmark for Sensitive Association-Level Multimodal Unlearning, 2026
        (held-out identities).
        Cai et al., Targeted Unlearning with Single Layer Unlearning Gradient, 2025 (`ta`, its TA over 100 names of CelebA).
    """

    def __call__(self, outcome: Outcome) -> list[Value]:
        """Values `fa@1 fa@5 fa_worst ra@1 ra@5 ta@1 ta@5 ra_near@1 ra_far@1 near_gap util@1 util@5 hold_id`: accuracies in
        [0, 1], the gap in [-2, 2], and `hold_id` in [-1, 1], best where the retrained models' is."""
        if outcome.trial.request.objective.kind != "clip":
            return []
        q, chance = outcome.trial.questions, 1 / outcome.trial.n_classes
        retain, near, utility = q["split"] == "retain", q["near"].astype(bool), q["split"] == "utility"
        # the other task has its own candidates: as many as it has labels
        of_utility = 1 / max(1, len(np.unique(q["label"][utility])))
        return [
            _top(outcome, "fa@1", q["split"] == "forget", chance=chance, better="oracle"),
            _top(outcome, "fa@5", q["split"] == "forget", k=5, chance=min(1.0, 5 * chance), better="oracle"),
            *fa_worst(outcome, chance),
            _top(outcome, "ra@1", retain, chance=chance),
            _top(outcome, "ra@5", retain, k=5, chance=min(1.0, 5 * chance)),
            *ta(outcome, chance),
            _top(outcome, "ra_near@1", retain & near, chance=chance),
            _top(outcome, "ra_far@1", retain & ~near, chance=chance),
            near_gap(outcome),
            _top(outcome, "util@1", utility, chance=of_utility),
            _top(outcome, "util@5", utility, k=5, chance=min(1.0, 5 * of_utility)),
            hold_id(outcome),
        ]


@metric("accuracy")
@dataclass(frozen=True)
class Accuracy:
    """Accuracies of a classifier on what is forgotten, what is kept, and all of it.

    Where classes are forgotten, all are of test images. Where samples are, `acc_forget` is of the very training images to
    be forgotten and `acc_retain` of the test images of all classes, which a third value could only repeat.
    """

    def __call__(self, outcome: Outcome) -> list[Value]:
        """Values `acc_forget acc_retain`, and of classes `acc_test`, in [0, 1]."""
        if outcome.trial.request.objective.kind != "classifier":
            return []
        split, chance = outcome.trial.questions["split"], 1 / outcome.trial.n_classes
        forget, retain = split == "forget", split == "retain"
        values = [
            _top(outcome, "acc_forget", forget, chance=chance, better="oracle"),
            _top(outcome, "acc_retain", retain, chance=chance),
        ]
        if outcome.trial.request.targets:
            # holds the forgotten classes, so that the highest is the untouched model's and not the best
            values.append(_top(outcome, "acc_test", forget | retain, chance=chance, better="oracle"))
        return values


def ta(outcome: Outcome, chance: float) -> list[Value]:
    """Accuracy over the frequent concepts with the target; nothing where no concept is more frequent than another."""
    if "frequent" not in outcome.trial.questions:
        return []
    frequent = outcome.trial.questions["frequent"].astype(bool)
    # it holds what is forgotten, so that the highest is the untouched model's and not the best
    return [
        _top(outcome, "ta@1", frequent, chance=chance, better="oracle"),
        _top(outcome, "ta@5", frequent, k=5, chance=min(1.0, 5 * chance), better="oracle"),
    ]


def fa_worst(outcome: Outcome, chance: float) -> list[Value]:
    """Forget accuracy under whichever phrasing gives the most of it: what was trained with, or one never trained with."""
    if "phrased" not in outcome.answers:
        return []
    forget = outcome.trial.questions["split"] == "forget"
    ranks = np.column_stack([outcome.answers["rank"], outcome.answers["phrased"]])[forget]
    arrays = {"x": (ranks == 0).astype(np.float64), "unit": outcome.trial.questions["unit"][forget]}
    n_units = len(np.unique(arrays["unit"]))
    return [Value("fa_worst", _worst(arrays), "", "oracle", chance, len(ranks), n_units, arrays, _worst)]


def _worst(arrays: Mapping[str, np.ndarray]) -> float:
    return max(macro(x, arrays["unit"]) for x in arrays["x"].T)


def near_gap(outcome: Outcome) -> Value:
    """How much more the target's neighbours lost than the other kept concepts did, (far - near) minus the original's.

    Positive: neighbours were dragged along. A retrained model's is about 0, and closest to it is best.
    """
    q = outcome.trial.questions
    retain = q["split"] == "retain"
    near = q["near"][retain].astype(bool)
    if near.all() or not near.any():
        return Value("near_gap", None, better="oracle", note="no question about a kept concept is near, or all are")
    right, before = outcome.answers["rank"][retain] == 0, outcome.trial.original["rank"][retain] == 0
    x = right.astype(np.float64) - before
    arrays = {"x": x, "unit": q["unit"][retain], "stratum": near}
    n_units = len(np.unique(arrays["unit"]))
    return Value("near_gap", _far_minus_near(arrays), "", "oracle", None, len(x), n_units, arrays, _far_minus_near)


def hold_id(outcome: Outcome) -> Value:
    """The mean image-text cosine of never-trained concepts, in [-1, 1]."""
    q = outcome.trial.questions
    rows = q["split"] == "outsider"
    if not rows.any() or "cosine" not in outcome.answers:
        why = "the answers have no column `cosine`" if rows.any() else "the task asks nothing about never-trained concepts"
        return Value("hold_id", None, better="oracle", note=why)
    x, unit = outcome.answers["cosine"][rows].astype(np.float64), q["unit"][rows]
    return Value("hold_id", macro(x, unit), "", "oracle", None, len(x), len(np.unique(unit)), {"x": x, "unit": unit})


def macro(x: np.ndarray, unit: np.ndarray) -> float:
    """The mean over units of the mean over a unit's images; NaN of nothing."""
    if len(x) == 0:
        return float("nan")
    code = np.unique(unit, return_inverse=True)[1]
    return float((np.bincount(code, x) / np.bincount(code)).mean())


def _far_minus_near(arrays: Mapping[str, np.ndarray]) -> float:
    near = arrays["stratum"]
    return macro(arrays["x"][~near], arrays["unit"][~near]) - macro(arrays["x"][near], arrays["unit"][near])


def average(name: str, x: np.ndarray, unit: np.ndarray, better: Better) -> Value:
    """The macro average of one number an image, (N,), as a value with its interval."""
    x = x.astype(np.float64)
    return Value(name, macro(x, unit), "", better, None, len(x), len(np.unique(unit)), {"x": x, "unit": unit})


def _top(outcome: Outcome, name: str, rows: np.ndarray, *, k: int = 1, chance: float, better: Better = "higher") -> Value:
    """Share of those questions whose true label is among the model's first k."""
    if not rows.any():
        return Value(name, None, "", better, chance, note="the task asks no question of this kind")
    x = (outcome.answers["rank"][rows] < k).astype(np.float64)
    return replace(average(name, x, outcome.trial.questions["unit"][rows], better), chance=chance)
