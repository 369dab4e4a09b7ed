from types import SimpleNamespace

import numpy as np
import pytest

from slugbench.bench import Outcome, Trial
from slugbench.metrics.accuracy import Accuracy, ZeroShot, macro


def outcome(kind, rank, before=None, targets=("0",)):
    """Two forgotten images of unit 0; kept units 1 (near, two images) and 2, 3 (far); two utility questions."""
    questions = {
        "split": np.array(["forget"] * 2 + ["retain"] * 5 + ["utility"] * 2),
        "unit": np.array([0, 0, 1, 1, 2, 2, 3, 8, 9]),
        "label": np.array([0, 0, 1, 1, 2, 2, 3, 0, 1]),
        "near": np.array([0, 0, 1, 1, 0, 0, 0, 0, 0], bool),
        "index": np.arange(9),
    }
    request = SimpleNamespace(objective=SimpleNamespace(kind=kind), targets=targets)
    original = {"rank": np.zeros(9, int) if before is None else np.array(before)}
    trial = Trial(request, questions, lambda model: {}, original, (), lambda s: None, n_classes=20, joint=False)
    return Outcome(trial, {"rank": np.array(rank)}, ())


def by_name(values):
    return {v.name: v for v in values}


def test_zero_shot_accuracies_are_macro_averages_worked_by_hand():
    got = by_name(ZeroShot()(outcome("clip", [0, 4, 0, 1, 0, 0, 3, 0, 7])))
    # ranks of kept units: 1 -> (1 + 0)/2, 2 -> 1, 3 -> 0
    expected = {"fa@1": 0.5, "fa@5": 1, "ra@1": 0.5, "ra_near@1": 0.5, "ra_far@1": 0.5, "near_gap": 0, "util@1": 0.5}
    expected |= {"ra@5": 1, "util@5": 0.5}  # all kept ranks are below 5; of the utility's 0 and 7 one is
    assert {name: v.value for name, v in got.items()} == expected | {"hold_id": None}
    assert (got["fa@1"].chance, got["fa@5"].chance, got["util@1"].chance) == (0.05, 0.25, 0.5)
    assert (got["ra@1"].n_images, got["ra@1"].n_units) == (5, 3)


def test_frequent_concepts_are_counted_with_the_target_if_it_is_one_of_them():
    asked = outcome("clip", [0, 4, 0, 1, 0, 0, 5, 0, 7])
    asked.trial.questions["frequent"] = np.array([1, 1, 1, 1, 0, 0, 1, 0, 0], bool)
    got = by_name(ZeroShot()(asked))
    # ranks of units: 0, the target, (1 + 0)/2; 1 -> (1 + 0)/2; 2 is not frequent; 3 -> 0
    assert got["ta@1"].value == pytest.approx(1 / 3) and got["ra@1"].value == pytest.approx((0.5 + 1 + 0) / 3)
    assert got["ta@5"].value == pytest.approx(2 / 3) and got["ta@1"].n_units == 3
    asked.trial.questions["frequent"][:2] = False
    assert by_name(ZeroShot()(asked))["ta@1"].value == pytest.approx((0.5 + 0) / 2)


def test_near_gap_is_what_neighbours_lost_beyond_the_others():
    # near: 1 -> 0 (lost 1); far: unit 2 lost half, unit 3 nothing: lost 0.25
    got = by_name(ZeroShot()(outcome("clip", [9, 9, 5, 5, 0, 5, 0, 0, 0])))
    assert got["near_gap"].value == pytest.approx(1 - 0.25)
    assert got["near_gap"].statistic(got["near_gap"].arrays) == got["near_gap"].value


def test_near_gap_of_the_original_is_zero():
    ranks = [0, 1, 0, 5, 5, 0, 2, 0, 0]
    assert by_name(ZeroShot()(outcome("clip", ranks, before=ranks)))["near_gap"].value == 0


def test_hold_id_is_the_mean_cosine_of_never_trained_concepts():
    asked = outcome("clip", [0] * 9)
    asked.trial.questions["split"] = np.array(["retain"] * 6 + ["outsider"] * 3)
    asked.trial.questions["unit"][-3:] = [7, 8, 8]
    assert by_name(ZeroShot()(asked))["hold_id"].note == "the answers have no column `cosine`"
    asked.answers["cosine"] = np.array([9.0] * 6 + [0.5, 0.1, 0.3])
    value = by_name(ZeroShot()(asked))["hold_id"]
    assert value.value == pytest.approx((0.5 + (0.1 + 0.3) / 2) / 2)
    assert (value.better, value.n_images, value.n_units) == ("oracle", 3, 2)


def test_accuracy_of_a_classifier_counts_the_forgotten_class_in_acc_test():
    got = by_name(Accuracy()(outcome("classifier", [0, 4, 0, 1, 0, 0, 3, 0, 7])))
    assert {name: v.value for name, v in got.items()} == {"acc_forget": 0.5, "acc_retain": 0.5, "acc_test": 0.5}
    assert [v.better for v in got.values()] == ["oracle", "higher", "oracle"]
    assert got["acc_test"].n_units == 4


def test_where_samples_are_forgotten_there_is_no_third_accuracy():
    got = by_name(Accuracy()(outcome("classifier", [0, 4, 0, 1, 0, 0, 3, 0, 7], targets=())))
    assert {name: v.value for name, v in got.items()} == {"acc_forget": 0.5, "acc_retain": 0.5}


@pytest.mark.parametrize(("metric", "kind"), [(ZeroShot(), "classifier"), (Accuracy(), "clip"), (Accuracy(), "diffusion")])
def test_accuracies_of_another_kind_of_model_do_not_apply(metric, kind):
    assert metric(outcome(kind, [0] * 9)) == []


def test_questions_that_were_not_asked_give_a_null_with_the_reason():
    without = outcome("clip", [0] * 9)
    without.trial.questions["near"][:] = False
    without.trial.questions["split"][-2:] = "retain"
    got = by_name(ZeroShot()(without))
    for name in ("ra_near@1", "near_gap", "util@1"):
        assert got[name].value is None
        assert got[name].note


def test_macro_averages_images_then_units():
    rng = np.random.default_rng(0)
    x, unit = rng.random(50), rng.integers(0, 7, 50) * 3
    assert macro(x, unit) == pytest.approx(np.mean([x[unit == u].mean() for u in set(unit.tolist())]))
