import numpy as np
import pytest
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from slugbench.metrics.rmia import RelativeMembership, dominated, likelihood_ratio

from .trials import blocks, planted

MEMBERS, OTHERS, POPULATION = 60, 80, 300


def asked(lift, *, targets=("one",), seed=0):
    """Images of all hardnesses, which every oracle finds as hard; training lifts the score of members by `lift`."""
    rng = np.random.default_rng(seed)
    split = blocks(forget_train=MEMBERS, forget=OTHERS, retain=POPULATION)
    hard = 4 * rng.normal(size=len(split))
    member = split == "forget_train"
    jitter = [0.1 * rng.normal(size=len(split)) for _ in range(5)]
    original = hard + 9.0 * member + jitter[0]
    columns = {"split": split, "unit": np.zeros(len(split), int)}
    return planted(columns, hard + lift * member + jitter[1], original, [hard + j for j in jitter[2:]], targets=targets)


def published(outcome, a):
    """Pair by pair, as the paper defines it."""
    p = expit(outcome.answers["score"])
    out = np.mean([expit(oracle["score"]) for oracle in outcome.oracles], axis=0)
    ratio = p / (((1 + a) * out + (1 - a)) / 2)
    split = outcome.trial.questions["split"]
    rows = split != "retain"
    score = (ratio[rows][:, None] / ratio[split == "retain"][None, :] > 1).mean(axis=1)
    return roc_auc_score(split[rows] == "forget_train", score)


@pytest.mark.parametrize("a", [0.0, 0.3, 1.0])
def test_it_is_the_papers_score_over_all_pairs(a):
    outcome = asked(1.0)
    (value,) = RelativeMembership(offline_a=a)(outcome)
    assert value.value == pytest.approx(published(outcome, a))
    assert (value.better, value.chance, value.n_images) == ("oracle", 0.5, MEMBERS + OTHERS)


def test_allowing_for_hardness_finds_what_confidence_alone_does_not():
    outcome = asked(1.0)
    rows = outcome.trial.questions["split"] != "retain"
    plain = roc_auc_score(outcome.trial.questions["split"][rows] == "forget_train", outcome.answers["score"][rows])
    (value,) = RelativeMembership()(outcome)
    assert value.value > plain + 0.1  # hardness has an SD of 4, training lifts by 1


def test_what_retraining_gives_is_at_chance_and_the_opposite_below_it():
    (like,), (over,) = RelativeMembership()(asked(0.0)), RelativeMembership()(asked(-3.0))
    assert like.value == pytest.approx(0.5, abs=0.1)  # 2 standard errors of 60 against 80
    assert over.value < 0.35  # not 0: of the hardest images, p is 0 before and after


def test_a_ratio_is_worked_by_hand():
    answers, references = {"score": np.array([0.0])}, [{"score": np.array([np.log(3)])}, {"score": np.array([-np.log(3)])}]
    # p = 1/2, mean of 3/4 and 1/4 = 1/2; (1.3 / 2 + 0.7) / 2 = 0.675
    assert likelihood_ratio(answers, references, 0.3) == pytest.approx(0.5 / 0.675)
    assert dominated(np.array([1.0, 2.5, 0.5]), np.array([0.5, 1.0, 2.0, 3.0]), 1.0).tolist() == [0.25, 0.75, 0.0]
    assert dominated(np.array([1.0]), np.array([0.5, 1.0, 2.0, 3.0]), 0.4).tolist() == [0.75]


def test_of_samples_no_non_member_is_in_the_population():
    split = blocks(forget=40, retain=201)
    columns = {"split": split, "unit": np.arange(241) % 10}
    score = np.random.default_rng(0).normal(size=241) + 2.0 * (split == "forget")
    (value,) = RelativeMembership()(planted(columns, score, oracles=[np.zeros(241)], targets=()))
    assert value.n_images == 40 + 100
    assert value.value > 0.85  # normals two SD apart: 0.92


def test_without_oracles_or_an_attackable_original_it_is_null_with_the_reason():
    split = blocks(forget_train=40, forget=40, retain=40)
    columns = {"split": split, "unit": np.zeros(120, int)}
    (alone,) = RelativeMembership()(planted(columns, 5.0 * (split == "forget_train")))
    assert (alone.value, alone.note) == (None, "there is no oracle to refer to")
    (vain,) = RelativeMembership()(planted(columns, np.zeros(120), oracles=[np.zeros(120)]))
    assert vain.value is None and vain.note.startswith("uninformative")


@pytest.mark.parametrize("bad", [{"offline_a": 1.5}, {"gamma": 0.0}])
def test_senseless_parameters_are_refused(bad):
    with pytest.raises(ValueError, match="offline_a has to be"):
        RelativeMembership(**bad)
