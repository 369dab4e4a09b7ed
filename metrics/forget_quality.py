"""How much of the way from the original to the retrained models was gone, on a scale where one of those has 1."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from slugbench.bench import Answers, Outcome, Value, metric

from .oracle_distance import why_no_distance


@metric("fq")
@dataclass(frozen=True)
class ForgetQuality:
    """The distance to the retrained models that was gone, as a share of what there was to go.

        fq = clip((D_0 - D_u) / (D_0 - D_null), 0, 1)

    D is `ks_d`, the Kolmogorov-Smirnov distance of scores on the forgotten from all oracles pooled: of the original (D_0),
    of the model (D_u), and the median of the oracles' own, each from the others (D_null). Higher is better: 0 is no nearer
    than the original and 1 as near as oracles are to each other. The note says where D_u lies among theirs. No p-value: of
    oracles that differ in their seed alone nearly every pair is "significantly" apart.

    Null where `ks_d` is, with fewer than two oracles, and where the original is no farther off than oracles are.

    References:
        Maini et al., TOFU: A Task of Fictitious Unlearning for LLMs, 2024 (forget quality, there as a p-value).
    """

    def __call__(self, outcome: Outcome) -> list[Value]:
        """One value `fq`, in [0, 1]."""
        forget = outcome.trial.questions["split"] == "forget"
        if not forget.any():
            return []
        unit = outcome.trial.questions["unit"][forget]
        n_images, n_units = len(unit), len(np.unique(unit))
        why_not = why_no_distance(outcome, forget)
        if not why_not and len(outcome.oracles) < 2:
            why_not = "one oracle alone has no distance from others"
        if why_not:
            return [Value("fq", None, "", "higher", None, n_images, n_units, note=why_not)]
        arrays = _ranks(outcome, forget) | {"unit": unit}
        d_model, d_original, null = distances(arrays)
        if d_original <= np.median(null):
            why_not = f"the original is at {d_original:.2f}, and oracles at {np.median(null):.2f} from each other"
            return [Value("fq", None, "", "higher", None, n_images, n_units, note=why_not)]
        below = np.mean(null < d_model)
        note = f"D = {d_model:.2f}, above {below:.0%} of the oracles' own ({null.min():.2f} to {null.max():.2f})"
        return [Value("fq", quality(arrays), "", "higher", None, n_images, n_units, arrays, quality, note)]


def quality(arrays: Mapping[str, np.ndarray]) -> float:
    """The share, of columns as `distances` takes them; NaN where there was nothing to go."""
    d_model, d_original, null = distances(arrays)
    to_go = d_original - np.median(null)
    return float(np.clip((d_original - d_model) / to_go, 0, 1)) if to_go > 0 else float("nan")


def distances(arrays: Mapping[str, np.ndarray]) -> tuple[float, float, np.ndarray]:
    """D of the model and of the original from all oracles pooled, and (S,) of each oracle from the others pooled.

    Args:
        arrays: (n,) columns `x` (the model), `original`, `oracle0`, `oracle1`, ...: positions of scores among the sorted
            distinct scores of all models together, which a KS distance depends on alone and which can be counted.
    """
    models = [arrays["x"], arrays["original"], *(arrays[name] for name in arrays if name.startswith("oracle"))]
    n_positions = 1 + max(int(column.max()) for column in models)
    below_MP = np.cumsum([np.bincount(column, minlength=n_positions) for column in models], axis=1) / len(models[0])
    oracles_SP = below_MP[2:]
    pooled_P = oracles_SP.mean(axis=0)
    others_SP = (len(oracles_SP) * pooled_P - oracles_SP) / (len(oracles_SP) - 1)
    d_model, d_original = np.abs(below_MP[:2] - pooled_P).max(axis=1)
    return float(d_model), float(d_original), np.abs(oracles_SP - others_SP).max(axis=1)


def _ranks(outcome: Outcome, rows: np.ndarray) -> dict[str, np.ndarray]:
    """The columns of `distances` but for `unit`."""
    models: dict[str, Answers] = {"x": outcome.answers, "original": outcome.trial.original}
    models |= {f"oracle{s}": oracle for s, oracle in enumerate(outcome.oracles)}
    scores = np.concatenate([answers["score"][rows] for answers in models.values()])
    position = np.unique(scores, return_inverse=True)[1]
    return dict(zip(models, np.split(position, len(models)), strict=True))
