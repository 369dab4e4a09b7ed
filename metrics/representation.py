"""What is left in the features of what the answers no longer say. To be shown, and never ranked on: retrained models that
never saw a concept know it apart by its features nearly as well, so a value says something beside theirs alone.

Legend for array shapes: n images, D features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from slugbench.bench import Model, Outcome, Trial, Value, metric

from .accuracy import average


@metric("representation")
@dataclass(frozen=True)
class Representation:
    """Linear probe, nearest neighbours, and alignment with the oracles' features.

    Attributes:
        neighbours: k of the nearest neighbours.

    References:
        Kornblith et al., Similarity of Neural Network Representations Revisited, 2019 (linear CKA).
    """

    neighbours: int = 5

    needs_model: ClassVar[bool] = True
    preload: ClassVar[tuple[str, ...]] = ("sklearn.linear_model", "sklearn.neighbors", "sklearn.pipeline")

    def __call__(self, outcome: Outcome) -> list[Value]:
        """Values `probe`, `knn` and `cka`, in [0, 1]; best where the retrained models' are.

        probe: share of the targets' test images that a logistic regression on the features of training images names.
        knn: the same by a vote of the nearest training images, by cosine.
        cka: linear centred kernel alignment of the retained test images' features with an oracle's; read
            (1 - value) / (1 - oracle mean), which is 1 for a model as near to an oracle as another oracle is.
        """
        trial, model = outcome.trial, outcome.model
        if trial.features is None:
            return []
        if model is None:
            return [Value(name, None, better="oracle", note=NO_MODEL) for name in ("probe", "knn", "cka")]
        split = trial.questions["split"]
        rows = {name: np.flatnonzero(split == name) for name in ("forget_train", "retain_train", "forget", "retain")}
        values = []
        if len(rows["forget_train"]) and len(rows["retain_train"]) and len(rows["forget"]):
            values += self._named(trial, model, rows)
        kept = trial.features(model, rows["retain"])
        if outcome.others:
            other = trial.features(on_device_of(model, trial.oracle_model(outcome.others[0])), rows["retain"])
            values.append(Value("cka", linear_cka(kept, other), "", "oracle", None, len(kept)))
        return values

    def _named(self, trial: Trial, model: Model, rows: dict[str, np.ndarray]) -> list[Value]:
        from sklearn.linear_model import LogisticRegression
        from sklearn.neighbors import KNeighborsClassifier
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import Normalizer, StandardScaler

        assert trial.features is not None
        label, unit = trial.questions["label"], trial.questions["unit"][rows["forget"]]
        seen = np.concatenate([rows["forget_train"], rows["retain_train"]])
        x, asked = trial.features(model, seen), trial.features(model, rows["forget"])
        probe = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000))
        nearest = make_pipeline(Normalizer(), KNeighborsClassifier(self.neighbours))
        return [
            average(name, known.fit(x, label[seen]).predict(asked) == label[rows["forget"]], unit, "oracle")
            for name, known in (("probe", probe), ("knn", nearest))
        ]


NO_MODEL = "needs the model's weights, which are not kept with its answers"


def on_device_of(model: Model, other: Model) -> Model:
    """The other model in eval mode, where the first one is."""
    return other.to(next(model.parameters()).device).eval()


def linear_cka(a_nD: np.ndarray, b_nD: np.ndarray) -> float:
    """||B'A||^2 / (||A'A|| ||B'B||), columns centred, Frobenius norms; 1 for features that are rotations of each other."""
    a, b = (x.astype(np.float64) - x.mean(0) for x in (a_nD, b_nD))
    norm = np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b)
    return float(np.linalg.norm(b.T @ a) ** 2 / norm) if norm else 0.0
