import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from scipy import stats

from slugbench.bench import Value
from slugbench.bench.intervals import interval


def macro_value(x, unit):
    x, unit = np.asarray(x, float), np.asarray(unit)
    macro = float(np.mean([x[unit == u].mean() for u in np.unique(unit)]))
    return Value("m", macro, arrays={"x": x, "unit": unit})


@given(n=st.integers(2, 60), data=st.data())
def test_one_unit_right_or_wrong_is_the_exact_binomial(n, data):
    k = data.draw(st.integers(0, n))
    ours = interval(macro_value([1] * k + [0] * (n - k), [7] * n))
    assert ours == pytest.approx(tuple(stats.binomtest(k, n).proportion_ci(0.95, "exact")), abs=1e-9)


def test_none_right_on_many_units_is_bounded_by_the_exact_binomial_not_zero():
    low, high = interval(macro_value(np.zeros(576), np.repeat(range(12), 48)))
    assert low == 0
    assert high == pytest.approx(1 - 0.025 ** (1 / 576))  # zero of n: (1 - p)^n = 0.025


@pytest.mark.parametrize("right", [0, 1])
def test_the_worst_of_several_phrasings_that_all_fail_or_all_hold_is_bounded_as_one_is(right):
    arrays = {"x": np.full((48, 5), float(right)), "unit": np.repeat(range(3), 16)}
    worst = Value("m", float(right), arrays=arrays, statistic=lambda a: float(a["x"].mean(0).max()))
    assert interval(worst) == interval(macro_value(np.full(48, right), arrays["unit"]))


@settings(max_examples=60)
@given(
    x=arrays_of.arrays(float, st.integers(2, 40), elements=st.floats(1.5, 5, width=16)),
    n_units=st.integers(1, 14),
    seed=st.integers(0, 3),
)
def test_the_value_lies_within_its_interval_and_the_interval_within_the_data(x, n_units, seed):
    value = macro_value(x, np.arange(len(x)) % n_units)
    low, high = interval(value, seed=seed, resamples=200)
    assert x.min() - 1e-9 <= low <= value.value <= high <= x.max() + 1e-9
    assert (low, high) == interval(value, seed=seed, resamples=200)


@pytest.mark.parametrize("value", [Value("m", None), Value("m", 0.5), macro_value([1.0], [0])])
def test_nothing_to_resample_has_no_interval(value):
    assert interval(value) is None


@pytest.mark.parametrize("n", [12, 40])
def test_bca_of_one_image_a_unit_agrees_with_scipys_at_the_expanded_level(n):
    x = np.random.default_rng(3).exponential(size=n)
    ours = interval(macro_value(x, np.arange(n)), resamples=20_000)
    level = 1 - 2 * stats.norm.cdf(np.sqrt(n / (n - 1)) * stats.t.ppf(0.025, n - 1))  # Hesterberg 2015, equation 6
    made = stats.bootstrap((x,), np.mean, n_resamples=20_000, method="BCa", rng=0, confidence_level=level)
    sd = x.std() / np.sqrt(n)
    assert ours == pytest.approx(tuple(made.confidence_interval), abs=0.15 * sd)  # a bootstrap quantile's sd: about 0.03


def test_a_mean_given_as_a_statistic_gets_the_interval_of_the_mean():
    rng = np.random.default_rng(0)
    plain = macro_value(rng.normal(size=300), np.repeat(range(15), 20))
    general = Value("m", plain.value, arrays=plain.arrays, statistic=lambda a: macro_value(a["x"], a["unit"]).value)
    assert interval(general) == pytest.approx(interval(plain), abs=1e-9)


def test_a_statistic_on_one_unit_resamples_images():
    x = np.random.default_rng(0).normal(size=60)
    value = Value(
        "m", float(np.median(x)), arrays={"x": x, "unit": np.zeros(60)}, statistic=lambda a: float(np.median(a["x"]))
    )
    scipys = stats.bootstrap((x,), np.median, n_resamples=2000, method="BCa", rng=0).confidence_interval
    assert interval(value) == pytest.approx(tuple(scipys), abs=0.06)


def test_every_resample_keeps_the_strata():
    seen = []
    stratum = np.repeat([True, False, False, False], 5)

    def statistic(a):
        seen.append(int(a["stratum"].sum()))
        return float(a["x"].mean())

    arrays = {"x": np.arange(20.0), "unit": np.repeat(range(4), 5), "stratum": stratum}
    interval(Value("m", 9.5, arrays=arrays, statistic=statistic), resamples=50)
    assert set(seen) == {5}


def coverage(n_units, n_sims, images=20):
    """Share of intervals that hold the truth 0.7, units being as unlike as Beta(3.5, 1.5) (design effect about 4)."""
    rng, hits = np.random.default_rng(1), 0
    for _ in range(n_sims):
        p = np.repeat(rng.beta(3.5, 1.5, n_units), images)
        low, high = interval(macro_value(rng.random(len(p)) < p, np.repeat(range(n_units), images)), resamples=500)
        hits += low <= 0.7 <= high
    return hits / n_sims


def test_intervals_of_24_units_cover_the_truth_about_95_times_in_100():
    # 400 simulations: sd 0.011
    assert 0.92 <= coverage(24, 400) <= 0.985


def test_intervals_of_8_units_cover_the_truth_more_often_than_plain_percentiles():
    # plain percentiles: 0.87; 400 simulations: sd 0.013
    assert 0.89 <= coverage(8, 400) <= 0.985


def test_a_distance_which_resampling_inflates_is_corrected_for_it():
    rng, draws = np.random.default_rng(0), []
    x = rng.normal(size=40)
    arrays = {"x": x - x.mean() + 0.02, "unit": np.arange(40)}

    def distance(a):
        draws.append(abs(a["x"].mean()))
        return draws[-1]

    low, high = interval(Value("m", 0.02, arrays=arrays, statistic=distance), resamples=1000)
    plain = np.quantile(draws[:1000], 0.975)  # the draws come first, the jackknife after them
    assert low <= 0.02 < high < 0.8 * plain


def test_three_thousand_images_of_64_units_take_under_50_ms():
    value = macro_value(np.random.default_rng(0).random(3000) < 0.8, np.arange(3000) % 64)
    interval(value)
    start = time.process_time()
    interval(value)
    assert time.process_time() - start < 0.05
