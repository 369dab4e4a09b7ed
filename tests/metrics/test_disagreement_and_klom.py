import numpy as np
import pytest
from scipy.stats import entropy

from slugbench.bench.intervals import interval
from slugbench.metrics.disagreement import Disagreement
from slugbench.metrics.klom import KlOfMargins, surprise

from .trials import planted


def predicted(model, *oracles, unit=None):
    n = len(model)
    columns = {"split": np.array(["forget"] * n), "unit": np.zeros(n, int) if unit is None else unit}
    return planted(columns, {"predicted": np.array(model)}, oracles=[{"predicted": np.array(o)} for o in oracles])


def test_disagreement_is_worked_by_hand():
    # against the first oracle 1 of 4 differ, against the second 3 of 4; units 0, 0, 0, 1
    (value,) = Disagreement()(predicted([1, 2, 3, 4], [1, 2, 3, 9], [9, 9, 3, 9], unit=[0, 0, 0, 1]))
    assert value.value == pytest.approx(((0.5 + 0.5 + 0) / 3 + 1) / 2)
    assert (value.better, value.n_images, value.n_units) == ("lower", 4, 2)


def test_a_copy_agrees_and_whoever_answers_something_else_never_does():
    oracle = [3, 1, 4, 1, 5]
    assert Disagreement()(predicted(oracle, oracle, oracle))[0].value == 0
    assert Disagreement()(predicted([9] * 5, oracle, oracle))[0].value == 1
    assert Disagreement()(predicted(oracle))[0].note == "there is no oracle to compare with"


def margins(model, n_oracles=16, images=40, seed=0):
    rng = np.random.default_rng(seed)
    typical = 3 * rng.normal(size=images)
    columns = {"split": np.array(["forget"] * images), "unit": np.arange(images) % 4}
    return planted(
        columns, typical + model(rng, images), oracles=[typical + rng.normal(size=images) for _ in range(n_oracles)]
    )


def test_surprise_is_the_kl_divergence_of_one_model_from_a_histogram():
    rng = np.random.default_rng(1)
    margin, oracles = rng.normal(size=6), rng.normal(size=(30, 6))
    for i, got in enumerate(surprise(margin, oracles)):
        edges = np.linspace(*np.quantile(np.append(oracles[:, i], margin[i]), [0, 1]), 21)
        p, q = np.histogram(margin[i], edges)[0], np.histogram(oracles[:, i], edges)[0] + 0.5
        assert got == pytest.approx(entropy(p, q))  # scipy normalises both


def test_a_margin_like_the_oracles_surprises_less_than_one_that_is_not():
    (like,) = KlOfMargins()(margins(lambda rng, n: rng.normal(size=n), n_oracles=100))
    (unlike,) = KlOfMargins()(margins(lambda rng, n: 12 + rng.normal(size=n), n_oracles=100))
    assert like.value < unlike.value - 1
    assert unlike.value == pytest.approx(np.log((100 + 10) / 0.5))  # an empty bin on every image
    low, high = interval(like, resamples=200)
    assert low < like.value < high and (like.unit, like.better) == ("nats", "lower")


def test_oracles_that_all_agree_with_the_model_leave_the_prior_alone():
    assert surprise(np.ones(3), np.ones((40, 3))) == pytest.approx(-np.log(40.5 / 50))


def test_fewer_than_sixteen_oracles_cannot_say():
    (value,) = KlOfMargins()(margins(lambda rng, n: rng.normal(size=n), n_oracles=15))
    assert (value.value, value.note) == (None, "15 oracles; fewer than 16 cannot fill 20 bins")
