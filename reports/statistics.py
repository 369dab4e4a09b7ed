"""From cells to a number for a leaderboard: means over requests and seeds, with what their spread allows to say.

Intervals over requests and seeds are made here and nowhere else; the interval of one cell is in its row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Literal, NamedTuple, Protocol

import numpy as np
import pandas as pd

DRAWS = 10_000
MIN_REQUESTS = 6
"""Below it no 95 % interval: even lowest-to-highest of n draws holds the median with only 1 - 2 ** (1 - n)."""

Spread = Literal["interval", "range", "cell", "none"]


class Estimate(NamedTuple):
    """A number for a leaderboard."""

    value: float | None
    low: float | None
    high: float | None
    spread: Spread
    """What `low` and `high` are: `interval` (95 %, over requests and base seeds); `range` (hull of the cells' own intervals,
    or of their values: too few requests for an interval, or gaps in the table); `cell` (the 95 % interval of the only
    cell, over its images and concepts); or `none`."""
    n_requests: int
    n_base_seeds: int
    n_values: int
    """Cells that have a value."""

    def within(self, least: float, most: float) -> Estimate:
        """With its ends cut to what such a number can be: Student's t knows of no limits."""
        if self.low is None or self.high is None:
            return self
        return self._replace(low=max(self.low, least), high=min(self.high, most))


def estimate(cells: pd.DataFrame, *, center: Literal["mean", "median"] = "mean") -> Estimate:
    """Mean over method seeds, then over base seeds, then over requests, with its interval where there is one.

    Args:
        cells: one row a cell with `request, base_seed, value, ci_low, ci_high`; rows with a null value are left out, so
            callers must say so where that changes the denominator.
        center: `median` over cells for costs, whose outliers come from the machine; it always has a `range`.
    """
    values = cells["value"].to_numpy(float)
    known = ~np.isnan(values)
    values, low_ends, high_ends = (
        values[known],
        cells["ci_low"].to_numpy(float)[known],
        cells["ci_high"].to_numpy(float)[known],
    )
    grid = by_request(cells[known])
    n = len(grid), grid.shape[1], len(values)
    if not len(values):
        return Estimate(None, None, None, "none", *n)
    value = float(np.median(values)) if center == "median" else float(np.nanmean(grid.to_numpy(), axis=1).mean())
    if len(values) == 1:
        low, high = float(low_ends[0]), float(high_ends[0])
        bounded = not (math.isnan(low) or math.isnan(high))
        return Estimate(value, low, high, "cell", *n) if bounded else Estimate(value, None, None, "none", *n)
    if center == "median" or len(grid) < MIN_REQUESTS or np.isnan(grid.to_numpy()).any():
        return Estimate(value, *span(values, low_ends, high_ends), "range", *n)
    return Estimate(value, *interval(grid.to_numpy()), "interval", *n)


def span(values: np.ndarray, low_ends: np.ndarray, high_ends: np.ndarray) -> tuple[float, float]:
    """From the lowest to the highest end of cells' own intervals; a value without one is its own."""
    lows, highs = (np.where(np.isnan(ends), values, ends) for ends in (low_ends, high_ends))
    return float(lows.min()), float(highs.max())


class Measured(Protocol):
    """What a row of the table says of a value."""

    value: float
    better: str
    oracle_mean: float
    oracle_sd: float
    ci_low: float
    ci_high: float


def unlike_oracles(row: Measured, n_oracles: int, confidence: float = 0.95) -> bool:
    """Whether a cell's value is one that a further oracle of the same request would have at most one time in twenty.

        |value - oracle_mean| > t * oracle_sd * sqrt(1 + 1 / n),   t: Student's, n - 1 degrees of freedom

    and the cell's own interval does not hold the oracles' mean either, since a few oracles may agree by chance. Where
    higher (lower) is better only being lower (higher) counts, one-sided.

    Args:
        row: of the table; nulls as NaN.
        n_oracles: behind its mean and standard deviation; of fewer than two nothing is ever unlike.
        confidence: of the prediction interval.
    """
    from scipy.special import stdtrit

    if n_oracles < 2 or math.isnan(row.oracle_sd) or math.isnan(row.value):
        return False
    gap = row.value - row.oracle_mean
    both = row.better == "oracle"
    worse = abs(gap) if both else -gap if row.better == "higher" else gap
    t = stdtrit(n_oracles - 1, (1 + confidence) / 2 if both else confidence)
    held = not (math.isnan(row.ci_low) or math.isnan(row.ci_high)) and row.ci_low <= row.oracle_mean <= row.ci_high
    return bool(worse > t * row.oracle_sd * math.sqrt(1 + 1 / n_oracles)) and not held


def by_request(cells: pd.DataFrame) -> pd.DataFrame:
    """`value` as requests x base seeds, method seeds averaged, NaN where there is no cell."""
    # numpy, since pandas' pivot takes milliseconds and a page asks for hundreds of these
    requests, row = np.unique(cells["request"].to_numpy(str), return_inverse=True)
    seeds, column = np.unique(cells["base_seed"].to_numpy(int), return_inverse=True)
    total, count = np.zeros((len(requests), len(seeds))), np.zeros((len(requests), len(seeds)))
    np.add.at(total, (row, column), cells["value"].to_numpy(float))
    np.add.at(count, (row, column), 1)
    return pd.DataFrame(
        np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0), index=requests, columns=seeds
    )


def interval(values_RB: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Bootstrap interval of the mean of a requests x base seeds table (R, B) without gaps.

    Every request runs on every base model, so the two are crossed, not nested: both are drawn anew, independently of
    each other (the "pigeonhole" bootstrap). With one base seed the interval speaks of that base model only.

    Plain percentiles are too narrow for few requests, and much too narrow for three base models: where these differ, they
    held the truth in 77 to 87 of 100 simulations. So the percentiles' distances from the mean are scaled: to the unbiased
    variance of the two sources together, and from the normal's quantile to one of Student's t. Satterthwaite's degrees of
    freedom make that too small where three base models differ (92 of 100), the quantile of Cochran and Cox makes it too
    large where requests do (98); halfway between them the truth was held in 94 to 97 of 100, for 6 to 14 requests and 1 to 5
    base models of any spread.

    References:
        Owen, The pigeonhole bootstrap, Annals of Applied Statistics 2007. Satterthwaite, An approximate distribution of
        estimates of variance components, Biometrics Bulletin 1946. Cochran and Cox, Experimental Designs, 1950, 4.14.
    """
    return _scaled(resampled_means(values_RB[None])[0], values_RB, confidence)


def _scaled(draws: np.ndarray, values_RB: np.ndarray, confidence: float) -> tuple[float, float]:
    """Percentiles of bootstrap draws of the mean of a table, scaled about it as `interval` says."""
    from scipy.special import ndtri, stdtrit  # scipy.stats takes a second to import

    mean, tail = values_RB.mean(), (1 - confidence) / 2
    sources = [(line.var(ddof=1) / len(line), len(line) - 1) for line in _means_of_lines(values_RB)]
    variance = sum(v for v, _ in sources)
    if variance == 0 or draws.std() == 0:
        return float(mean), float(mean)
    satterthwaite = stdtrit(variance**2 / sum(v**2 / df for v, df in sources), tail)
    cochran_cox = sum(v * stdtrit(df, tail) for v, df in sources) / variance
    scale = (satterthwaite + cochran_cox) / 2 / ndtri(tail) * math.sqrt(variance) / draws.std()
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(mean + scale * (low - mean)), float(mean + scale * (high - mean))


def _means_of_lines(values_RB: np.ndarray) -> list[np.ndarray]:
    """The mean of each request, and that of each base seed if there are several."""
    return [values_RB.mean(axis=axis) for axis in (1, 0) if values_RB.shape[1 - axis] > 1]


def percentile_interval(draws: np.ndarray, n_requests: int, confidence: float = 0.95) -> tuple[float, float]:
    """Percentiles of bootstrap draws of any statistic over `n_requests` requests, moved outwards as far as Student's t asks
    (Hesterberg, What teachers should know about the bootstrap, 2015: expanded percentiles)."""
    tail = _expanded_tail(n_requests, (1 - confidence) / 2)
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)


def paired_interval(
    one_RB: np.ndarray, other_RB: np.ndarray, *, sizes: bool = False, confidence: float = 0.95
) -> tuple[float, float]:
    """Bootstrap interval of mean(other) - mean(one), two requests x base seeds tables (R, B) drawn together.

    Args:
        one_RB: without gaps.
        other_RB: of the same requests and base seeds.
        sizes: take |mean(other)| - |mean(one)|, for differences to an oracle that are best at 0.
        confidence: of the interval.
    """
    one, other = resampled_means(np.stack([one_RB, other_RB]))
    if not sizes:
        return _scaled(other - one, other_RB - one_RB, confidence)
    signed_RB = np.sign(other_RB.mean()) * other_RB - np.sign(one_RB.mean()) * one_RB  # whose mean is that of the sizes
    return _scaled(np.abs(other) - np.abs(one), signed_RB, confidence)


def resampled_means(values_MRB: np.ndarray, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """Bootstrap means (M, draws) of M tables over the same requests and base seeds, drawn together: they are paired."""
    _, n_requests, n_seeds = values_MRB.shape
    request_weights, seed_weights = _weights(n_requests, n_seeds, draws, seed)
    total = np.einsum("dr,mrb,db->md", request_weights, values_MRB, seed_weights, optimize=True)
    return total / (n_requests * n_seeds)


@lru_cache(maxsize=8)  # a page asks for hundreds of intervals over the same few numbers of requests
def _weights(n_requests: int, n_seeds: int, draws: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    requests = generator.multinomial(n_requests, np.full(n_requests, 1 / n_requests), draws)
    return requests, generator.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), draws)


def crossed(values_MRB: np.ndarray) -> np.ndarray:
    """The same tables (M, R, B); (M, R, 1), base seeds averaged, where not every request ran on every base model."""
    return np.nanmean(values_MRB, axis=2, keepdims=True) if np.isnan(values_MRB).any() else values_MRB


def rank_ranges(scores: Mapping[str, pd.DataFrame]) -> dict[str, tuple[int, int]]:
    """The ranks each method may have, 1 being the lowest score, from requests x base seeds tables with the same gaps if any.

    From 6 requests on these hold 95 % of paired bootstrap draws over requests and base seeds; below, they are the best
    and the worst rank on any single request and base seed.
    """
    if not scores:
        return {}
    tables = crossed(np.stack([table.to_numpy() for table in scores.values()]))
    few = tables.shape[1] < MIN_REQUESTS
    columns = pd.DataFrame(tables.reshape(len(scores), -1) if few else resampled_means(tables))
    tail = 0.0 if few else 0.025
    best = np.quantile(columns.rank(method="min"), tail, axis=1, method="lower")
    worst = np.quantile(columns.rank(method="max"), 1 - tail, axis=1, method="higher")
    return {m: (int(low), int(high)) for m, low, high in zip(scores, best, worst, strict=True)}


def non_dominated(losses: np.ndarray, *, ties_stay: bool = False) -> np.ndarray:
    """Which rows of losses (M, D) no other row beats: lower or equal on all and lower on one; with `ties_stay` lower on all.

    A row with a NaN neither beats nor stays.
    """
    one, other = losses[:, None], losses[None, :]  # NaN compares false, so what has one beats nothing
    lower = np.less(other, one)
    beats = np.all(lower, axis=2) if ties_stay else np.all(other <= one, axis=2) & np.any(lower, axis=2)
    return np.asarray(~np.any(beats, axis=1) & ~np.any(np.isnan(losses), axis=1))


def _expanded_tail(n: int, tail: float) -> float:
    """Normal tail area at sqrt(n / (n - 1)) times Student's t quantile."""
    from scipy.special import ndtr, stdtrit  # scipy.stats takes a second to import

    return float(ndtr(math.sqrt(n / (n - 1)) * stdtrit(n - 1, tail)))
