"""Whether the forgotten are mistaken for the same others as by models that never knew them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from slugbench.bench import Outcome, Value, metric

from .accuracy import average


@metric("disagree")
@dataclass(frozen=True)
class Disagreement:
    """Share of the forgotten images on which the model predicts something else than a retrained one, mean over oracles.

    Lower is better, but oracles that differ in their seed alone disagree with each other as well: theirs, each against the
    others, is the oracle value that a model's is read against. `lower` and not `oracle`: to agree with all of them more than
    they do among themselves, as their average would, is not worse.

    References:
        Golatkar, Achille and Soatto, Eternal Sunshine of the Spotless Net, 2020 (the retrained model's answers as the aim).
    """

    def __call__(self, outcome: Outcome) -> list[Value]:
        """One value `disagree`, in [0, 1]: the macro average, images -> concepts."""
        forget = outcome.trial.questions["split"] == "forget"
        if not forget.any():
            return []
        if not outcome.oracles:
            return [Value("disagree", None, "", "lower", note="there is no oracle to compare with")]
        own, unit = outcome.answers["predicted"][forget], outcome.trial.questions["unit"][forget]
        x = np.mean([oracle["predicted"][forget] != own for oracle in outcome.oracles], axis=0)
        return [average("disagree", x, unit, "lower")]
