import math
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from slugbench.bench.types import Better
from slugbench.reports.statistics import (
    MIN_REQUESTS,
    _expanded_tail,
    estimate,
    interval,
    rank_ranges,
    resampled_means,
    unlike_oracles,
)


def cells(values, base_seeds=(0,), low=np.nan, high=np.nan):
    """One cell for each request and base seed; `values` is requests x base seeds."""
    rows = [
        {"request": f"r{i}", "base_seed": s, "method_seed": 0, "value": v, "ci_low": low, "ci_high": high}
        for i, row in enumerate(values)
        for s, v in zip(base_seeds, row, strict=True)
    ]
    return pd.DataFrame(rows)


def test_requests_weigh_the_same_however_many_cells_they_have():
    frame = pd.concat([cells([[0.0], [1.0]]), cells([[0.2]]), cells([[0.4]])])  # r0 three times: 0, 0.2, 0.4 -> 0.2
    assert estimate(frame).value == pytest.approx((0.2 + 1.0) / 2)


def test_few_requests_get_the_span_of_their_cells_and_not_an_interval():
    e = estimate(cells([[0.1], [0.3]], low=0.05, high=0.4))
    assert (e.value, e.low, e.high, e.spread, e.n_requests) == (pytest.approx(0.2), 0.05, 0.4, "range", 2)
    assert estimate(cells([[0.1]] * (MIN_REQUESTS - 1))).spread == "range"
    assert estimate(cells([[0.1]] * MIN_REQUESTS)).spread == "interval"


def test_six_is_the_first_number_whose_extremes_hold_a_median_with_95_percent():
    assert 1 - 2 ** (1 - (MIN_REQUESTS - 1)) < 0.95 <= 1 - 2 ** (1 - MIN_REQUESTS)


def test_a_single_cell_keeps_its_own_interval():
    assert estimate(cells([[0.1]], low=0.0, high=0.2))[:4] == (0.1, 0.0, 0.2, "cell")
    assert estimate(cells([[0.1]])).spread == "none"


def test_nothing_comes_of_nothing():
    e = estimate(cells([[np.nan], [np.nan]]))
    assert e.value is None and e.spread == "none" and e.n_values == 0


def test_gaps_in_the_table_forbid_an_interval():
    values = np.full((8, 2), 0.5)
    values[3, 1] = np.nan
    assert estimate(cells(values, base_seeds=(0, 1))).spread == "range"


def test_costs_are_medians():
    assert estimate(cells([[1.0], [2.0], [30.0]]), center="median")[:4] == (2.0, 1.0, 30.0, "range")


def test_resampled_means_have_the_mean_and_the_variance_of_the_bootstrap():
    values = np.random.default_rng(1).normal(size=12)
    means = resampled_means(values[None, :, None], draws=40_000)[0]
    assert means.mean() == pytest.approx(values.mean(), abs=0.005)
    assert means.std() == pytest.approx(values.std() / math.sqrt(12), rel=0.02)  # sd of a bootstrap mean, divisor n


def test_the_tail_moves_outwards_as_students_t_asks():
    for n in (6, 12, 50):
        expected = stats.norm.sf(math.sqrt(n / (n - 1)) * stats.t.isf(0.025, n - 1))
        assert _expanded_tail(n, 0.025) == pytest.approx(expected, rel=1e-9)
    assert _expanded_tail(10_000, 0.025) == pytest.approx(0.025, rel=0.01)


def test_the_interval_of_bell_shaped_requests_is_students():
    values = np.random.default_rng(2).normal(0.5, 0.1, size=(40, 1))
    low, high = interval(values)
    expected = stats.t.interval(0.95, 39, loc=values.mean(), scale=stats.sem(values[:, 0]))
    assert (low, high) == pytest.approx(expected, abs=0.003)  # a tenth of its half-width


@pytest.mark.parametrize(("n_requests", "n_seeds"), [(6, 1), (12, 1), (12, 3)])
def test_intervals_hold_the_truth_about_as_often_as_they_say(n_requests, n_seeds):
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(400):
        values = 0.5 + rng.normal(0, 0.1, (n_requests, 1)) + rng.normal(0, 0.02, (n_requests, n_seeds))
        low, high = interval(values)
        hits += low <= 0.5 <= high
    assert 0.92 <= hits / 400 <= 0.99  # three standard errors of 400 trials are 0.033


def test_base_models_that_differ_widen_the_interval():
    rng = np.random.default_rng(4)
    requests = rng.normal(0, 0.02, (12, 1))
    alike, differing = requests + np.zeros((1, 3)), requests + np.array([[-0.2, 0.0, 0.2]])
    width = [np.diff(interval(v))[0] for v in (alike, differing)]
    assert width[1] > 5 * width[0]


def test_ranks_of_few_requests_are_those_seen_on_single_ones():
    scores = {m: pd.DataFrame(v) for m, v in {"a": [[0.1], [0.4]], "b": [[0.2], [0.3]], "c": [[0.9], [0.9]]}.items()}
    assert rank_ranges(scores) == {"a": (1, 2), "b": (1, 2), "c": (3, 3)}


def test_requests_that_ran_on_different_base_models_have_ranks_too():
    gaps = pd.DataFrame([[0.1, np.nan], [np.nan, 0.2], [0.1, 0.3]])
    assert rank_ranges({"a": gaps, "b": gaps + 0.01}) == {"a": (1, 1), "b": (2, 2)}


def test_ranks_of_many_requests_are_paired():
    rng = np.random.default_rng(5)
    hard = rng.normal(0.5, 0.2, (12, 1))  # what makes a request hard is shared, so b is behind a on every draw
    assert rank_ranges({"a": pd.DataFrame(hard), "b": pd.DataFrame(hard + 0.01)}) == {"a": (1, 1), "b": (2, 2)}
    assert rank_ranges({}) == {}


def test_a_further_oracle_is_called_unlike_them_one_time_in_twenty():
    """Eight oracles and a ninth from one normal distribution; with 4,000 draws 0.05 has a standard error of 0.0034."""
    rng = np.random.default_rng(0)
    for better, rate in (("oracle", 0.05), ("higher", 0.05), ("lower", 0.05)):
        found = []
        for _ in range(4000):
            x = rng.normal(size=9)
            row = SimpleNamespace(value=x[0], better=better, oracle_mean=x[1:].mean(), oracle_sd=x[1:].std(ddof=1),
                                  ci_low=math.nan, ci_high=math.nan)  # fmt: skip
            found.append(unlike_oracles(row, 8))
        assert np.mean(found) == pytest.approx(rate, abs=0.011)


def test_what_is_better_than_the_oracles_is_not_unlike_them_and_neither_is_what_their_mean_lies_in():
    row = {"oracle_mean": 0.5, "oracle_sd": 0.01, "ci_low": math.nan, "ci_high": math.nan}
    rows = {b: [SimpleNamespace(value=v, better=b, **row) for v in (0.4, 0.6)] for b in get_args(Better)}
    unlike = {b: [unlike_oracles(either, 8) for either in both] for b, both in rows.items()}
    assert unlike == {"higher": [True, False], "lower": [False, True], "oracle": [True, True]}
    wide = SimpleNamespace(value=0.6, better="oracle", **row | {"ci_low": 0.45, "ci_high": 0.7})
    assert not unlike_oracles(wide, 8) and not unlike_oracles(SimpleNamespace(value=0.9, better="oracle", **row), 1)


def test_an_interval_is_cut_to_what_its_number_can_be():
    """Of two base models 0.2 apart Student's t reaches far above 1."""
    cells = pd.DataFrame(
        [
            {"request": f"r{r}", "base_seed": b, "value": 0.75 + 0.2 * b, "ci_low": np.nan, "ci_high": np.nan}
            for r in range(8)
            for b in range(2)
        ]
    )
    found = estimate(cells)
    assert found.high > 1 and found.low < 0.7
    cut = found.within(0, 1)
    assert cut.high == 1 and cut.low == max(found.low, 0) and cut.value == found.value
    assert found._replace(low=None, high=None).within(0, 1).low is None
