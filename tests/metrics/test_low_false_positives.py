import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import roc_curve

from slugbench.bench.intervals import interval
from slugbench.metrics.low_false_positives import LowFalsePositives, threshold

from .trials import blocks, planted


def sampled(lift, others=1500, members=200, seed=0):
    split = blocks(forget=members, retain=others)
    member = split == "forget"
    score = np.random.default_rng(seed).normal(size=len(split)) + lift * member
    columns = {"split": split, "unit": np.arange(len(split)) % 10}
    return planted(columns, score, targets=()), member, score


def test_it_is_the_highest_point_of_the_roc_curve_at_that_rate():
    outcome, member, score = sampled(1.5)
    one, tenth = LowFalsePositives()(outcome)
    fpr, tpr, _ = roc_curve(member, score, drop_intermediate=False)
    assert one.value == tpr[fpr <= 0.01].max()
    assert (one.chance, one.better, tenth.value) == (0.01, "oracle", None)


def test_its_interval_is_the_exact_binomial_one():
    (one, _) = LowFalsePositives()(sampled(1.5)[0])
    exact = binomtest(round(one.value * 200), 200).proportion_ci(method="exact")
    assert interval(one) == pytest.approx((exact.low, exact.high))


def test_scores_apart_are_all_found_and_swapped_ones_none():
    assert LowFalsePositives()(sampled(50.0)[0])[0].value == 1
    assert LowFalsePositives()(sampled(-50.0)[0])[0].value == 0


def test_alike_ones_are_found_as_often_as_false_alarms_are_allowed():
    one, tenth = LowFalsePositives()(sampled(0.0, others=20_000, members=20_000)[0])
    assert one.value == pytest.approx(0.01, abs=0.003) and tenth.value == pytest.approx(0.001, abs=0.001)  # 3 SE


@pytest.mark.parametrize(("others", "known"), [(999, [False, False]), (1000, [True, False]), (10_000, [True, True])])
def test_thresholds_that_too_few_non_members_would_make_a_draw_are_not_drawn(others, known):
    values = LowFalsePositives()(sampled(1.0, others)[0])
    assert [value.value is not None for value in values] == known
    assert all(value.note.startswith(f"{others:,} unseen images; 10,000") for value in values[1:] if value.value is None)


def test_a_threshold_leaves_that_share_above_it_ties_included():
    assert threshold(np.arange(1000.0), 0.01) == 989  # 990 to 999 are ten
    assert threshold(np.array([1.0] * 900 + [2.0] * 100), 0.01) == 2  # a hundred would be too many


def test_an_original_that_cannot_be_attacked_makes_it_uninformative():
    split = blocks(forget_train=50, forget=1000)
    outcome = planted({"split": split, "unit": np.zeros(1050, int)}, np.random.default_rng(0).normal(size=1050))
    assert LowFalsePositives()(outcome)[0].note.startswith("uninformative")
