import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from slugbench.bench import Cost, Outcome
from slugbench.metrics.shadow_models import DELTA, ShadowModels, epsilons, per_example_auc

from ..toys import toy_trial


def sides(shift, n=16, images=400, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(shift, 1, (n, images)), rng.normal(0, 1, (n, images))


# ---------------------------------------------------------------- likelihood ratio


def test_sides_that_are_alike_are_at_chance():
    auc = per_example_auc(*sides(0.0, images=4000))
    assert auc.mean() == pytest.approx(0.5, abs=4 * auc.std() / math.sqrt(len(auc)))


def test_sides_apart_are_told_in_either_direction_and_in_spread():
    assert per_example_auc(*sides(12.0)).min() == per_example_auc(*sides(-12.0)).min() == 1.0
    out, wide = sides(0.0)
    assert per_example_auc(4 * wide, out / 4).mean() > 0.8  # no threshold on the score alone would do


def test_known_gaussians_give_the_area_that_theory_does():
    """AUC of two unit Gaussians d apart is Phi(d / sqrt 2); means of many models are theirs."""
    auc = per_example_auc(*sides(1.0, n=120, images=300))
    assert auc.mean() == pytest.approx(stats.norm.cdf(1 / math.sqrt(2)), abs=0.01)


def test_the_ratio_is_that_of_scipys_densities():
    """Two halves by hand: fitted to models 0, 2, ..., tried on 1, 3, ... and the other way round; below 64 models the
    variance is the mean over examples."""
    inside, outside = sides(0.5, n=6, images=5, seed=3)
    found = np.zeros(5)
    for first in (0, 1):
        fits = []
        for side in (inside, outside):
            half = side[first::2]
            fits.append((half.mean(0), math.sqrt(half.var(0, ddof=1).mean())))
        tried = inside[1 - first :: 2], outside[1 - first :: 2]
        for x in range(5):
            ratio = [
                [
                    stats.norm.logpdf(s, fits[0][0][x], fits[0][1]) - stats.norm.logpdf(s, fits[1][0][x], fits[1][1])
                    for s in t[:, x]
                ]
                for t in tried
            ]
            u = stats.mannwhitneyu(ratio[0], ratio[1]).statistic / (len(ratio[0]) * len(ratio[1]))
            found[x] += u / 2
    np.testing.assert_allclose(per_example_auc(inside, outside), found)


# ---------------------------------------------------------------- epsilon


def test_epsilon_of_sides_apart_is_what_so_many_models_can_show_and_of_equal_ones_is_nothing():
    same = np.tile(np.arange(16.0)[:, None], (1, 3))
    assert np.allclose(epsilons(*sides(99.0)), math.log(15)) and np.allclose(epsilons(same, same), 0, atol=1e-9)


def test_epsilon_by_hand():
    """Thresholded above 4.5 three of the four `in` models are found and one of the four others is called one by mistake."""
    inside, outside = np.array([[3.0], [5], [6], [7]]), np.array([[1.0], [2], [4], [8]])
    fpr = fnr = 1 / 4
    assert epsilons(inside, outside)[0] == pytest.approx(math.log((1 - DELTA - fpr) / fnr))


def test_epsilon_sees_a_spread_that_no_single_threshold_does():
    inside = np.array([[-9.0], [-8], [8], [9], [7], [-7]])
    outside = np.array([[-1.0], [1], [0.5], [-0.5], [0.2], [-0.2]])
    assert epsilons(inside, outside)[0] == pytest.approx(math.log(5))


# ---------------------------------------------------------------- on models


def values(outcome, **params):
    return {v.name: v for v in ShadowModels(**params)(outcome)}


def judged(unlearn, model=None, request_id="single"):
    trial = toy_trial(request_id)
    model = trial.request.model if model is None else model
    return Outcome(trial, trial.answer(model), trial.oracles, model, Cost(), tuple(range(4)), unlearn)


def test_a_method_that_does_nothing_is_found_and_one_that_retrains_is_not():
    trial = toy_trial()
    retrained = iter(range(100, 200))
    nothing = values(judged(lambda request: request.model), models=8)
    perfect = values(judged(lambda request: trial.oracle_model(next(retrained)), trial.oracle_model(99)), models=8)
    assert nothing["u_lira"].value > 0.95 and nothing["eps_i"].value == pytest.approx(math.log(7))
    assert abs(perfect["u_lira"].value - 0.5) < 0.2
    assert perfect["eps_score"].value > nothing["eps_score"].value


def test_an_oracle_is_read_as_retraining_is_and_is_not_compared_with_itself():
    trial = toy_trial()
    asked = []

    def oracle(number):
        asked.append(number)
        return trial.oracle_model(number)

    model = trial.oracle_model(2)
    without = replace(trial, oracle_model=oracle)
    others = (0, 1, 3)
    answers = tuple(trial.oracles[o] for o in others)
    found = values(Outcome(without, trial.answer(model), answers, model, None, others), models=6)
    assert asked == [4, 5, *range(6, 12)]  # stored answers serve for 0, 1, 3, and 2 is the one that is judged
    assert abs(found["u_lira"].value - 0.5) < 0.25


def test_it_says_nothing_where_there_are_no_shadows_or_no_model():
    trial = replace(toy_trial(), shadow=None)
    outcome = Outcome(trial, trial.original, trial.oracles, trial.request.model, Cost(), (0, 1, 2, 3))
    assert ShadowModels()(outcome) == [] == ShadowModels()(replace(judged(None), model=None))


def test_samples_are_asked_of_themselves():
    found = values(judged(lambda request: request.model, request_id="samples"), models=4)
    assert found["u_lira"].n_images == len(toy_trial("samples").request.forget)
