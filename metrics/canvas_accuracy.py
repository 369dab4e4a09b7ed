"""What frozen classifiers see in the images that a model was asked for: of the target, of its domain, of the other domain.

A question is one image: its columns `style` and `object` are the classes prompted, those of the answers the classes seen
(see `Trial`). All values but `ua_norm` and `ua_conf` are macro averages (images -> classes) of 0 or 1 an image. Any
class's confusion row is in a cell's arrays: where `question.style` is the class, the counts of `answer.style`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from slugbench.bench import Answers, Outcome, UsageError, Value, metric

from .accuracy import average, macro

SHOWN = 5
"""Classes of a confusion row that a note names."""


@metric("canvas_accuracy")
@dataclass(frozen=True)
class CanvasAccuracy:
    """Of a model that makes images: unlearning accuracy, and accuracies retained in the target's domain and the other.

    With d the target's domain (styles or objects), e the other one, and a the accuracy in d on prompts with the target:

        ua       1 - a
        ira      accuracy in d, averaged over its other classes
        cra_off  accuracy in e, averaged over its classes, on prompts without the target
        cra_on   the same on prompts with it: the half of a forgotten prompt that is to stay
        cra      the same on all prompts, which is what is published
        ua_norm  (a0 - a) / (a0 - ar), a0 being the original's and ar the oracles' mean: 1 is as retraining forgets,
                 less is under-forgetting and more over-forgetting
        ua_conf  the share of the images prompted with the target that the class has which most of them are taken for; the
                 note has the other classes
        clf_ok   the share of all these images in which a second classifier, of another kind, sees the same class in d;
                 where it is low the other values say as much of the classifier as of the model

    Notes name the classes that were counted. UnlearnCanvas releases no code that averages; published object columns are
    multiples of 1/(20 x 255), hence of all 51 styles, its photographs (`Seed_Images`) among them.

    Attributes:
        leave_out: a class whose prompts enter no value. Some samplers ask for `Seed_Images` in words that no model was
            trained on.

    References:
        Zhang et al., UnlearnCanvas: Enhanced Stylized Image Dataset for Benchmarking Machine Unlearning in Diffusion
        Models, 2024 (UA, IRA, CRA).
    """

    leave_out: str = ""

    def __call__(self, outcome: Outcome) -> list[Value]:
        """Values `ua ira cra_on cra_off cra ua_conf` in [0, 1], and `ua_norm`; `clf_ok` in [0, 1] where answers hold a
        second opinion; none of a model that makes no images."""
        trial = outcome.trial
        if trial.request.objective.kind != "diffusion" or not trial.request.targets or not trial.classes:
            return []
        asked = _Asked(outcome, self.leave_out)
        with_target, without = asked.counted & asked.forget, asked.counted & ~asked.forget
        cra = {"cra_on": with_target, "cra_off": without, "cra": asked.counted}
        return [
            _unlearned(outcome, asked, with_target),
            asked.accuracy("ira", outcome.answers, asked.own, without),
            *(asked.accuracy(name, outcome.answers, asked.other, rows) for name, rows in cra.items()),
            _normalised(outcome, asked, with_target),
            _taken_for(outcome, asked, with_target),
            *_agreement(outcome, asked),
        ]


class _Asked:
    """The questions of a trial by domain: `own` is the targets', `other` the other one."""

    def __init__(self, outcome: Outcome, leave_out: str) -> None:
        trial = outcome.trial
        self.questions, self.classes, self.targets = trial.questions, trial.classes, trial.request.targets
        self.own, self.other = sorted(self.classes, key=lambda domain: not set(self.targets) <= set(self.classes[domain]))
        self.forget = self.questions["split"] == "forget"
        self.counted = np.isin(self.questions["split"], ("forget", "retain"))  # the others are not drawn, but denoised
        self.without = f", {leave_out} left out" if leave_out else ""
        if leave_out:
            holding = [domain for domain, names in self.classes.items() if leave_out in names]
            if not holding:
                raise UsageError(f"there is no class '{leave_out}' to leave out; there are styles and objects by name.")
            self.counted &= self.questions[holding[0]] != self.classes[holding[0]].index(leave_out)

    def right(self, answers: Answers, domain: str, rows: np.ndarray) -> np.ndarray:
        """Whether the class prompted is seen in each of these images, 0 or 1."""
        return (answers[domain][rows] == self.questions[domain][rows]).astype(np.float64)

    def accuracy(self, name: str, answers: Answers, domain: str, rows: np.ndarray) -> Value:
        """The accuracy in a domain on these images, averaged over its classes."""
        if not rows.any():
            return Value(name, None, note="no image is of this kind")
        value = average(name, self.right(answers, domain, rows), self.questions[domain][rows], "higher")
        n_prompted = {d: len(np.unique(self.questions[d][rows])) for d in self.classes}
        elsewhere = next(d for d in self.classes if d != domain)
        note = f"{_count(n_prompted[domain], domain)} on prompts of {_count(n_prompted[elsewhere], elsewhere)}"
        return replace(value, chance=1 / len(self.classes[domain]), note=note + self.without)


def _unlearned(outcome: Outcome, asked: _Asked, rows: np.ndarray) -> Value:
    """1 - a, and in the note where it starts: the original's."""
    if not rows.any():
        return Value("ua", None, note="no image is prompted with the target")
    unit, chance = asked.questions[asked.own][rows], 1 - 1 / len(asked.classes[asked.own])
    value = average("ua", 1 - asked.right(outcome.answers, asked.own, rows), unit, "higher")
    before = outcome.trial.original
    floor = f"; the original's is {1 - macro(asked.right(before, asked.own, rows), unit):.4f}" if before else ""
    n_others = len(np.unique(asked.questions[asked.other][rows]))
    prompts = f"prompts of {', '.join(asked.targets)} with {_count(n_others, asked.other)}"
    return replace(value, chance=chance, note=prompts + asked.without + floor)


def _normalised(outcome: Outcome, asked: _Asked, rows: np.ndarray) -> Value:
    """How far the way from the original to the oracles the target was forgotten."""
    before = outcome.trial.original
    if not (outcome.oracles and before and rows.any()):
        return Value("ua_norm", None, better="oracle", note="it needs images of the original and of an oracle")
    right = [asked.right(answers, asked.own, rows) for answers in (outcome.answers, before, *outcome.oracles)]
    unit = asked.questions[asked.own][rows]
    arrays = {"x": right[0], "original": right[1], "oracles": np.mean(right[2:], axis=0), "unit": unit}
    value = _share_of_the_way(arrays)
    if not np.isfinite(value):
        why = "the original draws the target no more often than the oracles"
        return Value("ua_norm", None, better="oracle", note=why)
    return Value("ua_norm", value, "", "oracle", None, len(unit), len(np.unique(unit)), arrays, _share_of_the_way)


def _share_of_the_way(arrays: Mapping[str, np.ndarray]) -> float:
    now, before, never = (macro(arrays[name], arrays["unit"]) for name in ("x", "original", "oracles"))
    return (before - now) / (before - never) if before > never else float("nan")


def _taken_for(outcome: Outcome, asked: _Asked, rows: np.ndarray) -> Value:
    """The share of the target's images that the class has which most of them are taken for, and in `seen` all of the row."""
    if not rows.any():
        return Value("ua_conf", None, better="oracle", note="no image is prompted with the target")
    names, label, seen = asked.classes[asked.own], asked.questions[asked.own][rows], outcome.answers[asked.own][rows]
    counts = np.bincount(seen[seen != label], minlength=len(names))
    most = np.argsort(-counts, kind="stable")
    value = average("ua_conf", (seen == most[0]) & (seen != label), label, "oracle")
    row = ", ".join(f"{names[c]} {counts[c]}" for c in most[:SHOWN] if counts[c]) or "none of them for another class"
    return replace(value, arrays={**(value.arrays or {}), "seen": seen}, note=f"of {len(seen)} images: {row}")


def _agreement(outcome: Outcome, asked: _Asked) -> list[Value]:
    """How often both classifiers see the same; the note has the original's, which depends on no method."""
    own, second, rows = asked.own, f"second_{asked.own}", asked.counted
    if second not in outcome.answers or not rows.any():
        return []
    unit, before = asked.questions[own][rows], outcome.trial.original
    value = average("clf_ok", outcome.answers[own][rows] == outcome.answers[second][rows], unit, "higher")
    note = _count(len(np.unique(unit)), own) + asked.without
    if second in before:
        note += f"; the original's is {macro(before[own][rows] == before[second][rows], unit):.4f}"
    return [replace(value, note=note)]


def _count(n: int, domain: str) -> str:
    return f"{n} {domain}{'' if n == 1 else 's'}"
