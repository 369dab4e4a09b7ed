import numpy as np
import pytest
from scipy.special import expit
from sklearn.svm import SVC

from slugbench.bench.intervals import interval
from slugbench.metrics._entropy import faulty_modified_entropy, modified_entropy
from slugbench.metrics.svc_membership import SvcEfficacy

from .trials import blocks, planted

P = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]])


def test_modified_entropy_is_worked_by_hand():
    # labels 0 and 2: -(0.3) ln 0.7 - 0.2 ln 0.8 - 0.1 ln 0.9, and -0.1 ln 0.9 - 0.8 ln 0.2 - 0.9 ln 0.1
    assert modified_entropy(P, np.array([0, 2])) == pytest.approx([0.1621667, 3.3704131], abs=1e-6)


def test_the_published_faulty_entropy_is_worked_by_hand():
    # both labels' columns are reversed, and no logarithm is of 1 - p:
    # 0.3 ln 0.7, 0.2 ln 0.2, 0.9 ln 0.1; and 0.9 ln 0.1, 0.8 ln 0.8, 0.9 ln 0.1
    assert faulty_modified_entropy(P, np.array([0, 2])) == pytest.approx([2.5012169, 4.3231680], abs=1e-6)


def test_with_every_label_in_the_batch_the_faulty_entropy_no_longer_knows_the_samples_own():
    p = np.random.default_rng(0).dirichlet(np.ones(3), size=50)
    label = np.arange(50) % 3
    assert faulty_modified_entropy(p, label) == pytest.approx(-((1 - p) * np.log(p)).sum(axis=1))
    assert faulty_modified_entropy(p, label) == pytest.approx(faulty_modified_entropy(p, label[::-1]))
    assert not np.allclose(modified_entropy(p, label), modified_entropy(p, label[::-1]))


def test_a_sure_answer_has_no_modified_entropy_when_right_and_very_much_when_wrong():
    sure = np.array([[1.0, 0.0, 0.0]] * 2)
    right, wrong = modified_entropy(sure, np.array([0, 1]))
    assert right == 0 and 50 < wrong < np.inf


def trained(forgotten, kept=3.0, unseen=-1.0, *, n=120, extra=None):
    """Scores around one value for each split; the original has learned what was to be forgotten."""
    split = blocks(forget_train=40, forget=60, retain=n, retain_train=n)
    at = {"forget_train": forgotten, "forget": unseen, "retain": unseen, "retain_train": kept}
    noise = 0.3 * np.random.default_rng(0).normal(size=len(split))
    score = np.array([at[str(name)] for name in split]) + noise
    model = {"score": score} | (extra(score) if extra else {})
    original = np.where(split == "forget_train", 9.0, score)
    return planted({"split": split, "unit": np.arange(len(split)) % 4}, model, original)


def test_images_forgotten_look_unseen_and_images_remembered_do_not():
    (forgotten,), (remembered,) = SvcEfficacy()(trained(-1.0)), SvcEfficacy()(trained(3.0))
    assert forgotten.value > 0.95 and remembered.value < 0.05
    assert (forgotten.n_images, forgotten.n_units, forgotten.better) == (40, 4, "oracle")
    assert interval(forgotten)[1] <= 1


def test_swapping_members_and_non_members_swaps_the_value():
    (value,), (swapped,) = SvcEfficacy()(trained(-1.0)), SvcEfficacy()(trained(-1.0, kept=-1.0, unseen=3.0))
    assert value.value > 0.95 and swapped.value < 0.05


def test_it_is_what_the_published_classifier_says_in_the_published_order():
    outcome = trained(1.0, kept=1.5, unseen=0.0)
    split, p = outcome.trial.questions["split"], expit(outcome.answers["score"])[:, None]
    learned = np.concatenate([p[split == "retain_train"], p[split == "retain"]])
    published = SVC(C=3, gamma="auto", kernel="rbf").fit(learned, np.repeat([1, 0], 120))
    (value,) = SvcEfficacy(legacy=True)(outcome)
    assert value.name == "mia_svc_eff_legacy" and 0 < value.value < 1
    assert value.value == pytest.approx(1 - published.predict(p[split == "forget_train"]).mean())


def test_the_entropy_is_used_where_answers_have_probabilities_and_said_not_to_be_elsewhere():
    def probabilities(score):
        p = expit(score)
        return {"probabilities": np.stack([p, (1 - p) / 2, (1 - p) / 2], axis=1)}

    outcome = trained(-1.0, extra=probabilities)
    for metric, name in (
        (SvcEfficacy("m_entropy"), "mia_svc_eff_m_entropy"),
        (SvcEfficacy("m_entropy", legacy=True), "mia_svc_eff_m_entropy_legacy"),
    ):
        (value,) = metric(outcome)
        assert value.name == name and value.value > 0.95
    (value,) = SvcEfficacy("m_entropy")(trained(-1.0))
    assert value.name == "mia_svc_eff" and "no column `probabilities`" in value.note


def test_it_is_null_until_a_task_asks_about_kept_training_images():
    split = blocks(forget_train=10, forget=10, retain=10)
    (value,) = SvcEfficacy()(planted({"split": split, "unit": np.zeros(30, int)}, 5.0 * (split == "forget_train")))
    assert (value.value, value.note) == (None, "the task asks nothing about kept training images")
