"""From cells to a number for a leaderboard: means over requests and seeds, with what their spread allows to say.

Intervals over requests and seeds are made here and nowhere else; the interval of one cell is in its row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

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
    """What `low` and `high` are: `interval` (95 %, over requests and base seeds), `range` (hull of the
    cells' own intervals, or of their values: too few requests for an interval, or gaps in the table), `cell` (the 95 % interval of the only cell, over its images and concepts), or `none`."""
    n_requests: int
    n_base_seeds: int
    n_values: int
    """Cells that have a value."""


def estimate(cells: pd.DataFrame, *, center: Literal["mean", "median"] = "mean") -> Estimate:
    """Mean over method seeds, then over base seeds, then over requests, with its interval where there is one.

    Args:
        cells: one row a cell with `request, base_seed, value, ci_low, ci_high`; rows with a null value are left out, so
            callers must say so where that changes the denominator.
        center: `median` over cells for costs, whose outliers come from the machine; it always has a `range`.
    """
    cells = cells[cells["value"].notna()]
    grid = by_request(cells, "value")
    n = len(grid), grid.shape[1], len(cells)
    if not len(cells):
        return Estimate(None, None, None, "none", *n)
    values = cells["value"]
    value = float(values.median()) if center == "median" else float(grid.mean(axis=1).mean())
    if len(cells) == 1:
        low, high = (float(cells[c].iloc[0]) for c in ("ci_low", "ci_high"))
        known = not (math.isnan(low) or math.isnan(high))
        return Estimate(value, low, high, "cell", *n) if known else Estimate(value, None, None, "none", *n)
    if center == "median" or len(grid) < MIN_REQUESTS or grid.isna().any(axis=None):
        low, high = cells["ci_low"].fillna(values).min(), cells["ci_high"].fillna(values).max()
        return Estimate(value, float(low), float(high), "range", *n)
    return Estimate(value, *interval(grid.to_numpy()), "interval", *n)


def by_request(cells: pd.DataFrame, column: str) -> pd.DataFrame:
    """Requests x base seeds, method seeds averaged."""
    cells = cells.assign(**{column: cells[column].astype("float64")})
    return cells.pivot_table(index="request", columns="base_seed", values=column, aggfunc="mean").sort_index()


def interval(values_RB: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Bootstrap interval of the mean of a requests x base seeds table (R, B) without gaps.

    Every request runs on every base model, so the two are crossed, not nested: both are drawn anew, independently of
    each other (the "pigeonhole" bootstrap). With one base seed the interval speaks of that base model only.

    The percentiles are moved outwards as far as Student's t asks at R - 1 degrees of freedom, since plain bootstrap
    percentiles are too narrow for few requests.

    References:
        Owen, The pigeonhole bootstrap, Annals of Applied Statistics 2007. Hesterberg, What teachers should know about
        the bootstrap, The American Statistician 2015, its section on expanded percentile intervals.
    """
    means = resampled_means(values_RB[None])[0]
    tail = _expanded_tail(len(values_RB), (1 - confidence) / 2)
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def resampled_means(values_MRB: np.ndarray, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """Bootstrap means (M, draws) of M tables over the same requests and base seeds, drawn together: they are paired."""
    generator = np.random.default_rng(seed)
    _, n_requests, n_seeds = values_MRB.shape
    request_weights = generator.multinomial(n_requests, np.full(n_requests, 1 / n_requests), draws)
    seed_weights = generator.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), draws)
    total = np.einsum("dr,mrb,db->md", request_weights, values_MRB, seed_weights, optimize=True)
    return total / (n_requests * n_seeds)


def rank_ranges(scores: Mapping[str, pd.DataFrame]) -> dict[str, tuple[int, int]]:
    """The ranks each method may have, 1 being the lowest score, from complete requests x base seeds tables.

    From 6 requests on these hold 95 % of paired bootstrap draws over requests and base seeds; below, they are the best
    and the worst rank on any single request and base seed.
    """
    if not scores:
        return {}
    tables = np.stack([table.to_numpy() for table in scores.values()])
    few = tables.shape[1] < MIN_REQUESTS
    columns = pd.DataFrame(tables.reshape(len(scores), -1) if few else resampled_means(tables), index=list(scores))
    best, worst = columns.rank(method="min"), columns.rank(method="max")
    low, high = (0.0, 1.0) if few else (0.025, 0.975)
    return {
        m: (int(best.loc[m].quantile(low, interpolation="lower")), int(worst.loc[m].quantile(high, interpolation="higher")))
        for m in scores
    }


def _expanded_tail(n: int, tail: float) -> float:
    """Normal tail area at sqrt(n / (n - 1)) times Student's t quantile."""
    from scipy.special import ndtr, stdtrit  # scipy.stats takes a second to import

    return float(ndtr(math.sqrt(n / (n - 1)) * stdtrit(n - 1, tail)))
