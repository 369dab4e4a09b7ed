import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from slugbench.bench.intervals import interval
from slugbench.metrics.accuracy import macro
from slugbench.metrics.gaps import AverageGap, TugOfWar

from .trials import blocks, planted


def asked(p, *, n_oracles=3, seed=0, lift=0.0, utility=60, targets=("a", "b")):
    """A model that is right with probability `p` on forgotten, kept and utility images, and oracles with 0.1, 0.8, 0.9."""
    rng = np.random.default_rng(seed)
    split = blocks(forget_train=40, forget=50, retain=200, utility=utility)
    unit = np.concatenate([np.arange(40) % 2, np.arange(50) % 2, 2 + np.arange(200) % 20, 30 + np.arange(utility) % 5])

    def drawn(chances, lift):
        chance = np.array([chances[str(name)] for name in split])
        score = rng.normal(size=len(split)) + lift * (split == "forget_train")
        return {"rank": (rng.random(len(split)) > chance).astype(int), "score": score}

    named = [
        dict(zip(("forget", "retain", "utility", "forget_train"), (*c, c[0]), strict=True)) for c in (p, (0.1, 0.8, 0.9))
    ]
    oracles = [drawn(named[1], 0.0) for _ in range(n_oracles)]
    return planted({"split": split, "unit": unit}, drawn(named[0], lift), oracles=oracles, targets=targets)


def gaps(outcome, parts=("forget", "retain", "utility")):
    """Value less oracle mean, one metric after the other, as a reader of the table would."""
    q, found = outcome.trial.questions, []
    for part in parts:
        rows = q["split"] == part
        own, *others = (macro((a["rank"] == 0)[rows], q["unit"][rows]) for a in (outcome.answers, *outcome.oracles))
        found.append(abs(own - np.mean(others)))
    return found


def membership(outcome, members="forget_train", others="forget"):
    split = outcome.trial.questions["split"]
    rows = np.isin(split, (members, others))
    own, *oracles = (roc_auc_score(split[rows] == members, a["score"][rows]) for a in (outcome.answers, *outcome.oracles))
    return abs(own - np.mean(oracles))


@pytest.mark.parametrize("p", [(0.9, 0.8, 0.9), (0.0, 0.3, 0.5), (0.1, 0.8, 0.9)])
def test_both_are_made_of_the_columns_gaps(p):
    outcome = asked(p, lift=1.0)
    (mean,), (product,) = AverageGap()(outcome), TugOfWar()(outcome)
    assert mean.value == pytest.approx(np.mean([*gaps(outcome), membership(outcome)]))
    assert product.value == pytest.approx(np.prod([1 - gap for gap in gaps(outcome)]))
    assert (mean.better, product.better, mean.note, product.note) == ("lower", "higher", "", "")
    assert (mean.n_images, product.n_images) == (350, 310)


def test_intervals_hold_the_value_and_draw_whole_concepts_of_every_kind():
    for metric in (AverageGap(), TugOfWar()):
        (value,) = metric(asked((0.5, 0.6, 0.9)))
        low, high = interval(value, resamples=300)
        assert 0 <= low < value.value < high <= 1
        kinds = {u: set(value.arrays["stratum"][value.arrays["unit"] == u].tolist()) for u in value.arrays["unit"].tolist()}
        assert all(len(kind) == 1 for kind in kinds.values())


def test_a_resample_of_whole_units_is_their_macro_average():
    (value,) = TugOfWar()(asked((0.5, 0.6, 0.9)))
    drawn = [0, 0, 1, 2, 2, 3, 9, 22, 24]
    rows = np.concatenate([np.flatnonzero(value.arrays["unit"] == u) for u in drawn])
    sample = {name: column[rows] for name, column in value.arrays.items()}
    by_hand = 1.0
    for part, units in {0: [0, 0, 1], 1: [2, 2, 3, 9], 2: [22, 24]}.items():
        means = [value.arrays["x"][(value.arrays["unit"] == u) & (value.arrays["part"] == part)].mean() for u in units]
        by_hand *= 1 - abs(np.mean(means))
    assert value.statistic(sample) == pytest.approx(by_hand)


def test_an_oracles_copy_has_no_gap_and_one_failure_is_enough_to_lose_the_tug_of_war():
    outcome = asked((0.1, 0.8, 0.9), n_oracles=1)
    outcome.answers.update(outcome.oracles[0])
    assert AverageGap()(outcome)[0].value == 0 and TugOfWar()(outcome)[0].value == 1
    (mean,), (product,) = AverageGap()(asked((1.0, 0.8, 0.9))), TugOfWar()(asked((1.0, 0.8, 0.9)))
    assert mean.value < 0.35 and product.value < 0.2  # 0.9 of one column in four; 0.1 of the product


def test_what_is_not_asked_for_is_left_out_and_named():
    outcome = asked((0.5, 0.6, 0.9), utility=0)
    (mean,), (product,) = AverageGap()(outcome), TugOfWar()(outcome)
    assert mean.note == product.note == "without utility, which the task does not ask for"
    assert mean.value == pytest.approx(np.mean([*gaps(outcome, ("forget", "retain")), membership(outcome)]))


def test_of_samples_membership_is_against_the_test_images_of_all_concepts():
    outcome = asked((0.5, 0.6, 0.9), targets=())
    (mean,) = AverageGap()(outcome)
    assert mean.value == pytest.approx(np.mean([*gaps(outcome), membership(outcome, "forget", "retain")]))


def test_without_oracles_they_are_null_with_the_reason():
    for metric in (AverageGap(), TugOfWar()):
        (value,) = metric(asked((0.5, 0.6, 0.9), n_oracles=0))
        assert (value.value, value.note) == (None, "there is no oracle to compare with")
