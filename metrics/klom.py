"""Whether each forgotten image's margin is one that retraining would give, image by image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from slugbench.bench import Outcome, Value, metric

from .accuracy import macro

BINS = 20
LEAST_ORACLES = 16
PRIOR = 0.5
"""Added to every bin's count, half a model: an empty bin is then unlikely and not impossible."""


@metric("klom")
@dataclass(frozen=True)
class KlOfMargins:
    """Kullback-Leibler divergence of margins from the retrained models', per image, mean over the forgotten.

        klom = mean over images of  sum over bins of p log(p / q),   in nats

    q is the histogram of the oracles' margins on that image in 20 equal bins from the least to the greatest margin, the
    model's included; p that of the unlearned models. A cell has a single one, so p is 1 in its bin and the value -log q
    of that: how surprising the margin is. Lower is better, and what the oracles have, each against the others, is as low as
    one can expect. The margin is log p / (1 - p).

    Null below 16 oracles: fewer cannot fill 20 bins, and what is empty for lack of models looks surprising.

    References:
        Georgiev et al., Attribute-to-Delete: Machine Unlearning via Datamodel Matching, 2024 (100 models a side).
    """

    def __call__(self, outcome: Outcome) -> list[Value]:
        """One value `klom`, from 0 up to log(2 S + 20) nats of S oracles."""
        forget = outcome.trial.questions["split"] == "forget"
        if not forget.any():
            return []
        n = len(outcome.trial.oracles)
        if n < LEAST_ORACLES:
            note = f"{n} oracles; fewer than {LEAST_ORACLES} cannot fill {BINS} bins"
            return [Value("klom", None, "nats", "lower", note=note)]
        unit = outcome.trial.questions["unit"][forget]
        x = surprise(outcome.answers["score"][forget], np.stack([oracle["score"][forget] for oracle in outcome.oracles]))
        arrays = {"x": x, "unit": unit}
        return [Value("klom", macro(x, unit), "nats", "lower", None, len(x), len(np.unique(unit)), arrays)]


def surprise(margin_N: np.ndarray, oracles_SN: np.ndarray) -> np.ndarray:
    """-log of the share of each image's oracles (S, N) that lie in the margin's (N,) bin, in nats, (N,)."""
    both_SN = np.vstack([margin_N, oracles_SN])
    low_N, width_N = both_SN.min(axis=0), np.ptp(both_SN, axis=0) / BINS
    # the greatest belongs to the last bin; where all are equal any one bin holds them all
    bin_SN = np.minimum((both_SN - low_N) / np.where(width_N > 0, width_N, 1), BINS - 1).astype(int)
    count_N = (bin_SN[1:] == bin_SN[0]).sum(axis=0)
    return -np.log((count_N + PRIOR) / (len(oracles_SN) + PRIOR * BINS))
