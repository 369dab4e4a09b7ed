"""The 95 % interval of one value of one cell. Intervals over requests and seeds are made in `reports/statistics.py`.

Four cases, by what the value is and how many units (concepts) it was measured on:

    several units                  cluster bootstrap: units are drawn with replacement, each with all its images
    one unit, images right/wrong   exact binomial (Clopper and Pearson 1934)
    one unit, otherwise            bootstrap over its images
    all images right, or all wrong exact binomial over the images: a bootstrap of constants would claim certainty

The unit is drawn, not the image, since images of one concept fail together: on the fictitious identities an interval
that drew images was 1.6 to 2 times too narrow. Bootstrap intervals are bias-corrected, which matters for distances (a
resampled one is larger than the one resampled), and from ten units on accelerated as well (BCa); below ten the
acceleration cannot be estimated. For any number of units the percentiles are set further out, as Student's t is wider
than the normal: of 100 simulated macro averages plain percentiles held the truth in 80 (4 units), 88 (8) and 92 (16),
these in 87, 93 and 95. Two or three units remain too few for any bootstrap (60 and 72). The exact bound of "none of 384
images" takes images for independent, there being no spread to estimate their dependence from, and is to that extent
optimistic.

References:
    Efron, Better Bootstrap Confidence Intervals, 1987 (BCa: his equations 4.1 and 6.6).
    Clopper and Pearson, The Use of Confidence or Fiducial Limits Illustrated in the Case of the Binomial, 1934.
    Field and Welsh, Bootstrapping Clustered Data, 2007 (drawing whole clusters).
    Hesterberg, What Teachers Should Know About the Bootstrap, 2015 (expanded percentiles).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .types import Value

LEVEL = 0.95
MIN_UNITS_BCA = 10


def interval(value: Value, *, seed: int = 0, resamples: int = 2000) -> tuple[float, float] | None:
    """The 95 % interval (low, high) of one value of one cell, low <= value <= high.

    Args:
        value: its `arrays` hold `x` (n,) and `unit` (n,); with a `statistic`, any further columns that needs, and
            optionally `stratum` (n,), constant within a unit: then every resample keeps each stratum's number of units.
        seed: of the resampling; the same value and seed give the same interval.
        resamples: bootstrap draws.

    Returns:
        None where there is nothing to resample: no value, no arrays, fewer than two images.
    """
    if value.value is None or value.arrays is None or len(value.arrays["x"]) < 2:
        return None
    x = np.asarray(value.arrays["x"], dtype=np.float64)
    unit = np.unique(value.arrays["unit"], return_inverse=True)[1]
    one_unit = unit.max() == 0
    if np.isin(x, (0, 1)).all() and (x.min() == x.max() == value.value or (value.statistic is None and one_unit)):
        return clopper_pearson(round(x.mean() * len(x)), len(x))  # x has a column per phrasing, where there are several

    cluster = np.arange(len(x)) if one_unit else unit
    draws_BK = _draws(cluster, value.arrays.get("stratum"), resamples, np.random.default_rng(seed))
    if value.statistic is None:
        mean_K = np.bincount(cluster, x) / np.bincount(cluster)
        boot, left_out = mean_K[draws_BK].mean(axis=1), (mean_K.sum() - mean_K) / (len(mean_K) - 1)
    else:
        boot, left_out = _apply(value.statistic, value.arrays, cluster, draws_BK, relabel=not one_unit)
    return _bounds(value.value, boot, left_out)


def clopper_pearson(k: int, n: int) -> tuple[float, float]:
    """The exact two-sided 95 % interval of a proportion of k in n, both ends in [0, 1]."""
    from scipy.special import betaincinv

    tail = (1 - LEVEL) / 2
    low = float(betaincinv(k, n - k + 1, tail)) if k > 0 else 0.0
    high = float(betaincinv(k + 1, n - k, 1 - tail)) if k < n else 1.0
    return low, high


def _draws(cluster: np.ndarray, stratum: np.ndarray | None, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """(resamples, clusters) numbers of the clusters drawn, stratum by stratum."""
    first_row = np.unique(cluster, return_index=True)[1]
    stratum_K = np.zeros(len(first_row)) if stratum is None else np.asarray(stratum)[first_row]
    members = [np.flatnonzero(stratum_K == s) for s in np.unique(stratum_K)]
    return np.hstack([m[rng.integers(0, len(m), (resamples, len(m)), dtype=np.int32)] for m in members])


def _apply(
    statistic: Callable[[Mapping[str, np.ndarray]], float],
    arrays: Mapping[str, np.ndarray],
    cluster: np.ndarray,
    draws_BK: np.ndarray,
    *,
    relabel: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """The statistic of every draw, and of all clusters but one for each."""
    rows = np.split(np.argsort(cluster, kind="stable"), np.cumsum(np.bincount(cluster))[:-1])
    size = np.bincount(cluster)

    def of(drawn: np.ndarray) -> float:
        taken = np.concatenate([rows[k] for k in drawn])
        sample = {name: np.asarray(column)[taken] for name, column in arrays.items()}
        if relabel:  # a unit drawn twice counts as two, also in a statistic that averages over units
            sample["unit"] = np.repeat(np.arange(len(drawn)), size[drawn])
        return statistic(sample)

    everyone = np.arange(len(rows))
    # a draw may lack what the statistic needs, such as one side of a comparison: it gives NaN and is left out
    boot = np.array([of(draw) for draw in draws_BK])
    left_out = np.array([of(np.delete(everyone, k)) for k in everyone]) if len(rows) >= MIN_UNITS_BCA else everyone * np.nan
    return boot[np.isfinite(boot)], left_out


def _bounds(value: float, boot: np.ndarray, left_out: np.ndarray) -> tuple[float, float] | None:
    """Bias-corrected bounds of the draws (see the module), widened where needed to hold the value itself."""
    from scipy.special import ndtr, ndtri, stdtrit

    if len(boot) == 0:
        return None
    n = len(left_out)
    z = np.sqrt(n / (n - 1)) * stdtrit(n - 1, np.array([(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
    acceleration = _acceleration(left_out) if n >= MIN_UNITS_BCA else 0.0
    # ties count half, and never all or nothing: the normal quantile of 0 or 1 is infinite
    below = (np.mean(boot < value) + np.mean(boot <= value)) / 2
    bias = ndtri(np.clip(below, 0.5 / len(boot), 1 - 0.5 / len(boot)))
    # kept positive: past its pole the formula would swap the tails
    tails = ndtr(bias + (bias + z) / np.maximum(1 - acceleration * (bias + z), 1e-9))
    low, high = np.quantile(boot, tails)
    return float(min(low, value)), float(max(high, value))


def _acceleration(left_out: np.ndarray) -> float:
    """A sixth of the jackknife values' skewness; 0 where it is undefined."""
    deviation = left_out.mean() - left_out
    spread = float((deviation**2).sum())
    return float((deviation**3).sum() / (6 * spread**1.5)) if np.isfinite(spread) and spread > 1e-24 else 0.0
