from types import SimpleNamespace

import numpy as np
import pytest
from scipy.linalg import sqrtm
from sklearn.metrics.pairwise import polynomial_kernel, rbf_kernel

from slugbench.bench import Outcome, Trial
from slugbench.bench.intervals import interval
from slugbench.metrics import image_quality
from slugbench.metrics.image_quality import ImageQuality, distance, frechet, gaussian, polynomial


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


def test_a_frechet_distance_of_few_pictures_is_refused_and_says_why(monkeypatch):
    x, y = sets(n=40)
    assert values(outcome(x, y, y))["fid"].value is None
    assert values(outcome(x, y, y))["fid"].note == "of 36 drawn and 40 real pictures; 10,000 of each are needed"
    monkeypatch.setattr(image_quality, "FID_NEEDS", 36)
    assert values(outcome(x, y, y))["fid"].value == pytest.approx(frechet(x[4:], y))
    assert values(outcome(x, y, y[:35]))["fid"].value is None and values(outcome(x, y))["fid"].value is None


def with_moments(mean, covariance, n, seed):
    """So many draws whose mean and covariance are these to the last digits."""
    z = np.random.default_rng(seed).normal(size=(n, len(mean)))
    z -= z.mean(0)
    z = z @ np.linalg.inv(np.linalg.cholesky(np.cov(z, rowvar=False))).T
    return z @ np.linalg.cholesky(covariance).T + mean


def test_the_frechet_distance_is_that_of_the_gaussians():
    """Closed form where covariances have the same axes: |m - n|^2 + sum of (sd - sd')^2, here 9 + 16 + (2-1)^2 + (3-5)^2."""
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    a, b = (turn @ np.diag(variances) @ turn.T for variances in ([4.0, 9.0], [1.0, 25.0]))
    x, y = with_moments([0.0, 0.0], a, 500, seed=0), with_moments([3.0, -4.0], b, 400, seed=1)
    assert frechet(x, y) == pytest.approx(30, rel=1e-10) and frechet(x, x) == pytest.approx(0, abs=1e-10)


def test_of_covariances_with_other_axes_it_is_what_scipys_matrix_root_gives():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(300, 6)) @ rng.normal(size=(6, 6)), rng.normal(size=(200, 6)) @ rng.normal(size=(6, 6)) + 0.5
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a + b - 2 * sqrtm(a @ b).real)
    assert frechet(x, y) == pytest.approx(expected, rel=1e-8)


def test_fewer_pictures_than_features_do_not_break_it():
    """Covariances without an inverse: the same set, shifted by 2 in one of 20 features, is at 4."""
    x, _ = sets(n=10, d=20)
    assert frechet(x, x + 2 * (np.arange(20) == 3)) == pytest.approx(4, abs=1e-6)


def test_what_there_is_nothing_to_compare_with_is_null_and_says_so():
    x, y = sets(n=40)
    for given, missing in ((outcome(x, y), "real"), (outcome(x, None, y), "original")):
        found = values(given)
        assert len(found) == 7 and all(found[name].value is None for name in (f"kid_{missing}", f"cmmd_{missing}"))
        assert found[f"kid_{missing}"].note.endswith("pictures are not at hand")
    assert found["feature_shift"].value is None and found["clip_score"].value is None and "CLIP" in found["clip_score"].note
    assert all(value.value is not None or value.note for value in found.values())
    assert ImageQuality()(Outcome(outcome(x, y).trial, {}, ())) == []
