from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from slugbench.bench import Outcome, Trial
from slugbench.bench.intervals import interval
from slugbench.metrics.membership import SampleMembership, auc


def outcome(score, original, member, unit=None):
    """Questions about forgotten images only; `member` says which were trained on."""
    member = np.asarray(member)
    questions = {
        "split": np.where(member, "forget_train", "forget"),
        "unit": np.zeros(len(member), int) if unit is None else unit,
        "near": np.zeros(len(member), bool),
    }
    request = SimpleNamespace(objective=SimpleNamespace(kind="clip"), targets=("one",))
    trial = Trial(request, questions, lambda m: {}, {"score": np.asarray(original, float)}, (), lambda s: None, 10, False)
    return Outcome(trial, {"score": np.asarray(score, float)}, ())


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=60))
def test_auc_agrees_with_scikit_learn_ties_included(rows):
    x, member = np.array([r[0] for r in rows], float), np.array([r[1] for r in rows])
    if member.all() or not member.any():
        assert np.isnan(auc({"x": x, "member": member}))
        return
    assert auc({"x": x, "member": member}) == pytest.approx(roc_auc_score(member, x))
    assert auc({"x": x, "member": ~member}) == pytest.approx(1 - auc({"x": x, "member": member}))


def test_membership_is_worked_by_hand():
    # members 3, 1 against others 0, 2: pairs won 3 > 0, 3 > 2, 1 > 0 of four
    attackable = [9, 8, 1, 0] * 10
    (value,) = SampleMembership()(outcome([3, 1, 0, 2] * 10, attackable, [1, 1, 0, 0] * 10))
    assert (value.value, value.chance, value.better) == (0.75, 0.5, "oracle")
    low, high = interval(value)
    assert low < 0.75 < high


def test_an_original_that_cannot_be_attacked_makes_it_uninformative():
    rng = np.random.default_rng(0)
    member = np.arange(80) < 32
    (value,) = SampleMembership()(outcome(member * 5.0, rng.normal(size=80), member))
    assert value.value is None
    assert value.note.startswith("uninformative: the original's own AUC is 0.")


def test_an_original_that_scores_its_members_lower_is_no_attack_either():
    member = np.arange(80) < 32
    (value,) = SampleMembership()(outcome(member * 5.0, -5.0 * member, member))
    assert value.value is None


def test_without_forget_train_questions_it_does_not_apply():
    assert SampleMembership()(outcome([1, 2], [1, 2], [False, False])) == []


def test_a_certain_but_slight_attack_on_the_original_is_not_enough():
    member = np.arange(4000) % 2 == 0
    slight = np.random.default_rng(0).normal(size=4000) + 0.2 * member  # AUC 0.56, half-width 0.02
    (value,) = SampleMembership()(outcome(member * 5.0, slight, member))
    assert value.value is None


def sampled(trained_on, oracle_score):
    """Forty samples to be forgotten, harder than the two hundred test images, in four classes; `trained_on` lifts them."""
    rng = np.random.default_rng(3)
    split = np.repeat(["forget", "retain"], [40, 200])
    hardness = rng.normal(size=240) - 0.5 * (split == "forget")
    scores = [hardness + lift * (split == "forget") + 0.1 * rng.normal(size=240) for lift in (trained_on, oracle_score)]
    questions = {"split": split, "unit": np.arange(240) % 4, "near": np.zeros(240, bool)}
    request = SimpleNamespace(objective=SimpleNamespace(kind="classifier"), targets=())
    original, oracle = ({"score": score} for score in scores)
    trial = Trial(request, questions, lambda m: {}, original, (oracle,), lambda s: None, 10, False)
    return [Outcome(trial, answers, (oracle,)) for answers in (original, oracle)], split == "forget"


def test_samples_are_told_from_test_images_of_all_classes_whatever_the_originals_own_auc():
    (original, oracle), member = sampled(0.5, 0.0)
    (value,), (reference,) = SampleMembership()(original), SampleMembership()(oracle)
    assert value.value == pytest.approx(roc_auc_score(member, original.answers["score"]))
    assert reference.value == pytest.approx(roc_auc_score(member, oracle.answers["score"]))
    # hard samples hide under 0.5 though the original knows them: the gap shows it, 0.5 does not
    assert reference.value < 0.45 < value.value < 0.55
    assert (value.n_images, value.n_units, value.better) == (240, 4, "oracle")
    low, high = interval(value)
    assert low < value.value < high
