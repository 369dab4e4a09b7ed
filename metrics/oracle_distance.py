"""How far a model's confidence on the forgotten images is from that of models retrained without them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from slugbench.bench import Answers, Outcome, Value, metric


@metric("ks_d")
@dataclass(frozen=True)
class OracleDistance:
    """Kolmogorov-Smirnov distance between the model's and the retrained models' scores on the forgotten.

        D = max over s of |F(s) - G(s)|,   F, G: shares of scores <= s of the model and of all oracles pooled

    Lower is better, but no sample has 0 and two retrained models differ as well: a value is read against the
    oracle-oracle null, the same D of each oracle from the others, which the table shows as `oracle_mean` and
    `oracle_sd`. `lower` and not `oracle`, since D is already a distance to the oracles: nearer than they are to each
    other is not worse. The p-value is left out: among retrained models that differ in their seed alone nearly every
    pair is "significantly" different.

    Null on requests of a single target. There the null is as wide as the scale: a network's confidence about one
    never-trained class shifts as a whole with the seed. Measured, leaving one oracle out: 0.2 to 1.0 on the fictitious
    identities and, with 104 to 113 images of a class, 0.06 to 0.74 on the digits, where the untouched model has 1.0.

    Not so where samples are forgotten (a request without targets): they are compared themselves, and retrained
    models agree on images of classes they know. On tenths of the digits' training scans, 40 each: 0.08 to 0.16 leaving
    one oracle out and 0.09 to 0.25 for the untouched model, which is farther off than their mean in 28 of 30 cells.

    References:
        Maini et al., TOFU: A Task of Fictitious Unlearning for LLMs, 2024 (the comparison with a retrained model).
    """

    def __call__(self, outcome: Outcome) -> list[Value]:
        """One value `ks_d`, in [0, 1]."""
        forget = outcome.trial.questions["split"] == "forget"
        if not forget.any():
            return []
        why_not = why_no_distance(outcome, forget)
        if why_not:
            return [Value("ks_d", None, "", "lower", note=why_not)]
        unit = outcome.trial.questions["unit"][forget]
        arrays = {"x": outcome.answers["score"][forget], "unit": unit}
        # one column an oracle, so that an image is resampled together with all that is said about it
        arrays |= {f"oracle{s}": oracle["score"][forget] for s, oracle in enumerate(outcome.oracles)}
        return [Value("ks_d", _ks(arrays), "", "lower", None, len(unit), len(np.unique(unit)), arrays, _ks)]


def why_no_distance(outcome: Outcome, forget: np.ndarray) -> str:
    """The reason why a distance to the oracles would mean nothing; empty where there can be one."""
    if not outcome.oracles:
        return "there is no oracle to compare with"
    if outcome.trial.joint or not outcome.trial.request.targets:
        return ""
    null = null_distances(outcome.trial.oracles, forget)
    here = f" (here {min(null):.2f} to {max(null):.2f})" if null else ""
    return f"a single target's oracles differ too much among themselves{here} for a distance to mean anything"


def null_distances(oracles: Sequence[Answers], rows: np.ndarray) -> list[float]:
    """The distance of each oracle from all others pooled; empty of fewer than two."""
    scores = [oracle["score"][rows] for oracle in oracles]
    if len(scores) < 2:
        return []
    return [ks_distance(x, np.concatenate(scores[:s] + scores[s + 1 :])) for s, x in enumerate(scores)]


def ks_distance(a: np.ndarray, b: np.ndarray) -> float:
    """The greatest difference between the empirical distribution functions of two samples."""
    a, b = np.sort(a), np.sort(b)
    at = np.concatenate([a, b])
    below_a, below_b = np.searchsorted(a, at, "right") / len(a), np.searchsorted(b, at, "right") / len(b)
    return float(np.abs(below_a - below_b).max())


def _ks(arrays: Mapping[str, np.ndarray]) -> float:
    return ks_distance(arrays["x"], np.concatenate([arrays[name] for name in arrays if name.startswith("oracle")]))
