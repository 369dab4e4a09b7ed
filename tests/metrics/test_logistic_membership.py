import re

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedShuffleSplit, cross_val_score

from slugbench.bench.intervals import interval
from slugbench.metrics.logistic_membership import LogisticAccuracy, resplits

from .trials import blocks, planted


def asked(lift, n=60, others=60, seed=0, **columns):
    split = blocks(forget_train=n, forget=others)
    member = split == "forget_train"
    score = np.random.default_rng(seed).normal(size=len(split)) + lift * (member - 0.5)
    return planted({"split": split, "unit": np.zeros(len(split), int)}, {"score": score, **columns}, 9.0 * member), member


def test_it_is_scikit_learns_cross_validated_accuracy_over_a_hundred_resplits():
    outcome, member = asked(1.0)
    loss = np.log1p(np.exp(-outcome.answers["score"]))
    (value,) = LogisticAccuracy()(outcome)
    accuracies = []
    for seed in range(10):
        rng = np.random.default_rng(seed)  # as many of each already: drawing them only shuffles
        drawn = np.concatenate([rng.permutation(np.flatnonzero(side)) for side in (member, ~member)])
        splits = StratifiedShuffleSplit(10, test_size=0.1, random_state=seed)
        accuracies.append(cross_val_score(LogisticRegression(), loss[drawn, None], member[drawn], cv=splits))
    # two solvers of one convex problem: at most an image on the boundary apart
    assert value.value == pytest.approx(np.mean(accuracies), abs=0.002)
    spread = re.fullmatch(r"SD over the 100 resplits (\d\.\d+), which is no interval", value.note)
    assert float(spread[1]) == pytest.approx(np.std(accuracies, ddof=1), abs=0.002)


def test_the_loss_is_the_cosine_where_a_clip_answers_and_not_where_one_looks_at_what_others_drew():
    (plain,) = LogisticAccuracy()(asked(1.0)[0])
    beside, member = asked(1.0, cosine=np.zeros(120))
    beside.answers["cosine"] = 1.0 * member
    assert LogisticAccuracy()(beside)[0].value == 1 > plain.value
    beside.trial.request.objective.kind = "diffusion"
    assert LogisticAccuracy()(beside)[0].value == plain.value


@pytest.mark.parametrize("lift", [40.0, -40.0])
def test_losses_apart_are_told_whichever_way(lift):
    """Unlike an AUC: the classifier learns which side is lower."""
    (value,) = LogisticAccuracy()(asked(lift)[0])
    assert value.value == 1 and value.better == "oracle"


def test_losses_alike_are_at_chance():
    found = [LogisticAccuracy()(asked(0.0, n=150, others=150, seed=seed)[0])[0].value for seed in range(4)]
    assert np.mean(found) == pytest.approx(0.5, abs=0.06)  # 300 images, four times: an SE of 0.015, and a bias below


def test_more_images_on_one_side_are_no_advantage():
    """Always answering the larger side would be right in three of four."""
    (value,) = LogisticAccuracy()(asked(0.0, n=100, others=300)[0])
    assert value.value == pytest.approx(0.5, abs=0.1)


def test_every_judgement_is_counted():
    member = np.arange(60) < 20
    right, judged, spread = resplits(np.random.default_rng(0).normal(size=60), member)
    assert judged.sum() == 100 * 4 and (right <= judged).all()  # a tenth of twice twenty
    assert judged[member].sum() == 200 and spread > 0


def test_of_a_clip_the_loss_is_one_minus_the_cosine():
    cosine = np.where(np.arange(120) < 60, 0.9, 0.1)
    (value,) = LogisticAccuracy()(asked(0.0, cosine=cosine)[0])
    assert value.value == 1
    low, high = interval(value, resamples=200)
    assert low == high == 1


def test_too_few_images_or_an_original_that_cannot_be_attacked_give_a_null_with_the_reason():
    (few,) = LogisticAccuracy()(asked(1.0, n=9)[0])
    assert (few.value, few.note) == (None, "9 images a side; 10 are needed to hold out a tenth")
    split = blocks(forget_train=50, forget=50)
    outcome = planted({"split": split, "unit": np.zeros(100, int)}, np.random.default_rng(0).normal(size=100))
    assert LogisticAccuracy()(outcome)[0].note.startswith("uninformative")
