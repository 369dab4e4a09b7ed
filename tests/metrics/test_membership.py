from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from slugbench.bench import Outcome, Trial
from slugbench.bench.intervals import interval
from slugbench.metrics.membership import SampleMembership, _auc


def outcome(score, original, member, unit=None):
    """Questions about forgotten images only; `member` says which were trained on."""
    member = np.asarray(member)
    questions = {
        "split": np.where(member, "forget_train", "forget"),
        "unit": np.zeros(len(member), int) if unit is None else unit,
        "near": np.zeros(len(member), bool),
    }
    request = SimpleNamespace(objective=SimpleNamespace(kind="clip"))
    trial = Trial(request, questions, lambda m: {}, {"score": np.asarray(original, float)}, (), lambda s: None, 10, False)
    return Outcome(trial, {"score": np.asarray(score, float)}, ())


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=60))
def test_auc_agrees_with_scikit_learn_ties_included(rows):
    x, member = np.array([r[0] for r in rows], float), np.array([r[1] for r in rows])
    if member.all() or not member.any():
        assert np.isnan(_auc({"x": x, "member": member}))
        return
    assert _auc({"x": x, "member": member}) == pytest.approx(roc_auc_score(member, x))
    assert _auc({"x": x, "member": ~member}) == pytest.approx(1 - _auc({"x": x, "member": member}))


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
