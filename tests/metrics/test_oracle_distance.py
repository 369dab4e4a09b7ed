from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ks_2samp

from slugbench.bench import Outcome, Trial
from slugbench.bench.intervals import interval
from slugbench.metrics.oracle_distance import OracleDistance, ks_distance, null_distances

scores = st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=40)


def outcome(score, oracles, joint=True, targets=("one",)):
    """All questions are about forgotten images, eight units of equal size."""
    n = len(score)
    questions = {"split": np.array(["forget"] * n), "unit": np.arange(n) % 8}
    oracles = tuple({"score": np.asarray(o, float)} for o in oracles)
    request = SimpleNamespace(objective=SimpleNamespace(kind="clip"), targets=targets)
    trial = Trial(request, questions, lambda m: {}, {}, oracles, lambda s: None, 10, joint)
    return Outcome(trial, {"score": np.asarray(score, float)}, oracles)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # about scipy's p-value, which is not used
@given(scores, scores)
def test_ks_distance_agrees_with_scipy(a, b):
    assert ks_distance(np.array(a), np.array(b)) == pytest.approx(ks_2samp(a, b).statistic)


def test_value_compares_with_all_oracles_pooled():
    rng = np.random.default_rng(0)
    score, oracles = rng.normal(1, 1, 160), [rng.normal(0, 1, 160) for _ in range(3)]
    (value,) = OracleDistance()(outcome(score, oracles))
    assert value.value == pytest.approx(ks_2samp(score, np.concatenate(oracles)).statistic)
    low, high = interval(value, resamples=300)
    assert 0 < low < value.value < high <= 1


def test_distance_by_hand():
    # at 2.5 all of the model's lie below and half of the oracles'
    (value,) = OracleDistance()(outcome([1, 1, 2, 2], [[1, 2, 3, 4], [2, 1, 4, 3]]))
    assert value.value == 0.5


def test_the_null_leaves_each_oracle_out():
    oracles = [np.zeros(8), np.zeros(8), np.ones(8)]
    # of the first two, half of the others are 1; nothing of the third is 0
    assert null_distances([{"score": o} for o in oracles], np.ones(8, bool)) == [0.5, 0.5, 1.0]


def test_single_targets_get_a_null_that_says_how_far_their_oracles_are_apart():
    (value,) = OracleDistance()(outcome(np.zeros(8), [np.zeros(8), np.zeros(8), np.ones(8)], joint=False))
    assert value.value is None
    assert "0.50 to 1.00" in value.note


def test_samples_have_a_distance_since_their_oracles_agree():
    (value,) = OracleDistance()(outcome([1, 1, 2, 2], [[1, 2, 3, 4], [2, 1, 4, 3]], joint=False, targets=()))
    assert (value.value, value.note) == (0.5, "")  # by hand, as above


def test_without_oracles_there_is_a_null_with_the_reason():
    (value,) = OracleDistance()(outcome(np.zeros(8), []))
    assert (value.value, value.note) == (None, "there is no oracle to compare with")
