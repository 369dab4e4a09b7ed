import numpy as np
import pytest
import torch
from scipy.special import expit
from sklearn.svm import SVC

from slugbench.bench.entropies import entropies
from slugbench.bench.intervals import interval
from slugbench.metrics.svc_membership import SvcEfficacy

from .trials import blocks, planted


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


def test_an_entropy_is_used_where_answers_have_it_and_said_not_to_be_elsewhere():
    def columns(score):
        logits = torch.from_numpy(np.stack([score, np.zeros_like(score), np.zeros_like(score)], axis=1))
        return {
            name: column.numpy() for name, column in entropies(logits, torch.zeros(len(score), dtype=torch.long)).items()
        }

    outcome = trained(-1.0, extra=columns)
    for metric, name in (
        (SvcEfficacy("m_entropy"), "mia_svc_eff_m_entropy"),
        (SvcEfficacy("m_entropy", legacy=True), "mia_svc_eff_m_entropy_legacy"),
    ):
        (value,) = metric(outcome)
        assert value.name == name and value.value > 0.95
    (value,) = SvcEfficacy("m_entropy")(trained(-1.0))
    assert value.name == "mia_svc_eff" and "no column `m_entropy`" in value.note


def test_it_is_null_until_a_task_asks_about_kept_training_images():
    split = blocks(forget_train=10, forget=10, retain=10)
    (value,) = SvcEfficacy()(planted({"split": split, "unit": np.zeros(30, int)}, 5.0 * (split == "forget_train")))
    assert (value.value, value.note) == (None, "the task asks nothing about kept training images")
