from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.metrics.pairwise import polynomial_kernel, rbf_kernel

from slugbench.bench import Outcome, Trial
from slugbench.bench.intervals import interval
from slugbench.metrics.image_quality import ImageQuality, distance, gaussian, polynomial


def unbiased(k_xx, k_yy, k_xy):
    """By the formula, pair by pair."""
    n, m = len(k_xx), len(k_yy)
    return (k_xx.sum() - np.trace(k_xx)) / (n * (n - 1)) + (k_yy.sum() - np.trace(k_yy)) / (m * (m - 1)) - 2 * k_xy.mean()


def sets(n=30, m=40, d=8, shift=0.0, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) + shift, rng.normal(size=(m, d))


def test_kid_is_that_of_scikit_learns_kernel():
    x, y = sets(shift=0.3)
    pairs = [polynomial_kernel(a, b, degree=3, gamma=1 / 8, coef0=1) for a, b in ((x, x), (y, y), (x, y))]
    assert distance("kid", x, y, np.arange(30), polynomial).value == pytest.approx(unbiased(*pairs))


def test_cmmd_is_that_of_scikit_learns_kernel():
    x, y = sets(shift=0.3)
    sphere = [a / np.linalg.norm(a, axis=1, keepdims=True) for a in (x, y)]
    pairs = [1000 * rbf_kernel(a, b, gamma=1 / 200) for a, b in ((sphere[0],) * 2, (sphere[1],) * 2, sphere)]
    assert distance("cmmd", x, y, np.arange(30), gaussian).value == pytest.approx(unbiased(*pairs), rel=1e-6)


def test_alike_sets_are_at_zero_on_average_and_others_above():
    alike = [distance("kid", *sets(seed=seed), np.arange(30), polynomial).value for seed in range(200)]
    assert np.mean(alike) == pytest.approx(0, abs=4 * np.std(alike) / np.sqrt(200))
    assert distance("kid", *sets(shift=1.0), np.arange(30), polynomial).value > 10 * np.std(alike)


def test_resamples_are_not_pulled_up_by_pictures_drawn_twice():
    """Of alike sets the interval holds 0, and its middle is near the value."""
    x, y = sets(n=60, m=400, seed=3)
    value = distance("kid", x, y, np.arange(60) // 2, polynomial)
    low, high = interval(value, resamples=400)
    assert low < 0 < high and (low + high) / 2 == pytest.approx(value.value, abs=(high - low) / 3)


def outcome(features, before, real=None, cosine=None):
    n = len(features)
    questions = {
        "split": np.where(np.arange(n) < 4, "forget", "retain"),
        "style": np.arange(n) % 3,
        "object": np.arange(n) % 2,
        "unit": np.arange(n) % 3,
    }
    request = SimpleNamespace(objective=SimpleNamespace(kind="diffusion"), targets=("a",))
    original = {} if before is None else {"features": before}
    trial = Trial(request, questions, lambda model: {}, original, (), lambda s: None, 3, False, real=real)
    answers = {"features": features} | ({} if cosine is None else {"cosine": cosine})
    return Outcome(trial, answers, ())


def values(given):
    return {v.name: v for v in ImageQuality()(given)}


def test_only_retained_prompts_count():
    x, y = sets(n=40, m=40)
    spoilt = x.copy()
    spoilt[:4] += 100  # of the target
    one, other = values(outcome(x, y, y, x[:, 0])), values(outcome(spoilt, y, y, x[:, 0]))
    assert {n: v.value for n, v in one.items()} == {n: v.value for n, v in other.items()}
    assert set(one) == {
        *("kid_real", "kid_original", "cmmd_real", "cmmd_original", "fid", "feature_shift", "clip_score"),
    }
    assert one["clip_score"].n_images == 36 and one["clip_score"].n_units == 6


def test_the_same_pictures_have_no_shift_and_opposite_ones_the_most():
    x, _ = sets(n=40)
    assert values(outcome(x, x))["feature_shift"].value == pytest.approx(0)
    assert values(outcome(-x, x))["feature_shift"].value == pytest.approx(2)


def test_a_frechet_distance_of_few_pictures_is_refused_and_says_why():
    x, y = sets(n=40)
    assert values(outcome(x, y))["fid"].value is None and "10,000" in values(outcome(x, y))["fid"].note
    assert "kid_real" not in values(outcome(x, y)) and ImageQuality()(Outcome(outcome(x, y).trial, {}, ())) == []
