from types import SimpleNamespace

import numpy as np
import pytest
import torch

from slugbench.bench import Outcome
from slugbench.metrics.representation import Representation, linear_cka

from ..toys import toy_trial


def outcome(features, *, label, split, others=()):
    """Of a model whose features are given, and of an oracle with other ones."""
    questions = {"split": np.array(split), "label": np.array(label), "unit": np.array(label)}
    model, oracle = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)

    def look(of, rows):
        return (others if of is oracle else features)[rows]

    trial = SimpleNamespace(questions=questions, features=look, oracle_model=lambda s: oracle, original_model=None)
    return Outcome(trial, {}, (), model, others=(0,) if len(others) else ())


def four_classes(spread):
    """40 training and 40 test images of each of four classes; class 0 is forgotten; means 3 apart along the axes."""
    rng = np.random.default_rng(0)
    label = np.tile(np.repeat(np.arange(4), 40), 2)
    split = np.where(label == 0, "forget", "retain").astype(object)
    split[:160] += "_train"
    return spread * np.eye(4)[label] + rng.normal(size=(320, 4)), label.tolist(), split.tolist()


def test_probe_and_neighbours_name_what_the_features_tell_apart_and_no_more():
    for spread, low, high in ((12.0, 0.99, 1.0), (0.0, 0.1, 0.45)):  # of 40 images at chance .25, 2.9 standard errors
        features, label, split = four_classes(spread)
        found = {v.name: v for v in Representation()(outcome(features, label=label, split=split))}
        assert low <= found["probe"].value <= high and low <= found["knn"].value <= high
        assert found["probe"].n_images == 40


def test_cka_is_that_of_the_centred_gram_matrices():
    """HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) with linear kernels, as in the paper's section 3."""
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(30, 5)), rng.normal(size=(30, 3))
    centre = np.eye(30) - 1 / 30
    k, m = centre @ a @ a.T @ centre, centre @ b @ b.T @ centre
    assert linear_cka(a, b) == pytest.approx((k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum()))


def test_cka_does_not_see_rotation_shift_and_scale():
    rng = np.random.default_rng(2)
    a = rng.normal(size=(50, 4))
    rotation, _ = np.linalg.qr(rng.normal(size=(4, 4)))
    assert linear_cka(a, 3 * a @ rotation + 1) == pytest.approx(1)
    assert linear_cka(a, rng.normal(size=(50, 4))) < 0.3


def test_cka_is_with_an_oracle_that_is_not_the_model_itself():
    features, label, split = four_classes(12.0)
    found = {v.name: v.value for v in Representation()(outcome(features, label=label, split=split, others=2 * features + 5))}
    assert found["cka"] == pytest.approx(1)


def test_without_weights_the_values_are_null_and_say_why():
    trial = toy_trial()
    found = Representation()(Outcome(trial, trial.original, trial.oracles))
    assert {v.name for v in found} == {"probe", "knn", "cka"} and all(v.value is None and v.note for v in found)
