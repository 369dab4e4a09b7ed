import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from slugbench.bench.intervals import interval
from slugbench.metrics.identity_membership import IdentityMembership, concept_auc

from .trials import blocks, planted

OUTSIDERS, IMAGES = 32, 6


def met(lift, *, targets=8, outsiders=OUTSIDERS, seed=0, known=5.0):
    """So many targets and outsiders of six images each; `lift` is what the model gives images of targets, `known` what the
    original does."""
    unit = np.repeat(np.arange(targets + outsiders), IMAGES)
    member = unit < targets
    noise = np.random.default_rng(seed).normal(size=len(unit))
    columns = {"split": blocks(forget=targets * IMAGES, outsider=outsiders * IMAGES), "unit": unit}
    names = tuple("abcdefgh"[:targets])
    return planted(columns, noise + lift * member, noise + known * member, targets=names), member, unit


@pytest.mark.parametrize(("lift", "auc"), [(20.0, 1.0), (-20.0, 0.0)])
@pytest.mark.parametrize("targets", [1, 8])
def test_concepts_apart_are_told_apart_and_swapped_ones_the_other_way(targets, lift, auc):
    (value,) = IdentityMembership()(met(lift, targets=targets)[0])
    assert (value.value, value.better, value.n_units) == (auc, "oracle", targets + OUTSIDERS)


def test_a_joint_request_is_judged_by_its_concepts_means_as_scikit_learn_says():
    outcome, _, unit = met(0.3)
    means = [outcome.answers["score"][unit == u].mean() for u in range(8 + OUTSIDERS)]
    (value,) = IdentityMembership()(outcome)
    assert value.value == pytest.approx(roc_auc_score(np.arange(8 + OUTSIDERS) < 8, means))


def test_a_single_request_is_judged_by_its_images_as_scikit_learn_says():
    outcome, member, _ = met(0.3, targets=1)
    (value,) = IdentityMembership()(outcome)
    assert value.value == pytest.approx(roc_auc_score(member, outcome.answers["score"]))


def test_concepts_nobody_met_are_at_chance_within_the_interval():
    inside = 0
    for seed in range(20):
        (value,) = IdentityMembership()(met(0.0, seed=seed)[0])
        low, high = interval(value, resamples=300)
        inside += low <= 0.5 <= high
    assert inside >= 16  # 19 expected, 1 standard error each; eight targets make the bootstrap a little narrow


def test_a_drawn_concept_counts_with_all_its_images():
    arrays = {"x": np.array([1.0, 3, 0, 9, 5]), "unit": np.array([7, 7, 2, 2, 4]), "member": np.array([1, 1, 0, 0, 0], bool)}
    assert concept_auc(arrays) == 0.0  # means 2 against 4.5 and 5


def test_too_few_outsiders_and_an_original_that_knows_nobody_give_a_null_with_the_reason():
    (few,) = IdentityMembership()(met(1.0, outsiders=31)[0])
    assert few.value is None and few.note.startswith("31 never-trained concepts")
    (unknown,) = IdentityMembership()(met(1.0, known=0.0)[0])
    assert unknown.value is None and unknown.note.startswith("uninformative")


def test_it_does_not_apply_without_outsiders_or_to_samples():
    columns = {"split": blocks(forget=4, outsider=4), "unit": np.arange(8)}
    assert IdentityMembership()(planted(columns, np.zeros(8), targets=())) == []
    assert IdentityMembership()(planted({"split": blocks(forget=4), "unit": np.arange(4)}, np.zeros(4))) == []
