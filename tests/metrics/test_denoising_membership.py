"""Of models that make images, whether they show what they were trained on: by the metrics that all models share."""

import dataclasses

import numpy as np
import pytest

from slugbench.metrics.canvas_accuracy import CanvasAccuracy
from slugbench.metrics.gaps import AverageGap
from slugbench.metrics.membership import SampleMembership
from slugbench.metrics.rmia import RelativeMembership

from ..planted_canvas import memorising, neon_trial, never, outcome, sees_what_is_nearest


@pytest.fixture(scope="module")
def trial():
    """Its original has the training pictures of neon by heart."""
    with pytest.MonkeyPatch.context() as patch:
        sees_what_is_nearest(patch)
        trial = neon_trial(denoised=True)
        yield dataclasses.replace(trial, original=trial.answer(memorising()))


def test_pictures_held_by_heart_are_told_from_others_and_those_never_seen_are_not(trial):
    """192 of each: the standard error of an AUC of 0.5 is 0.03."""
    (known,), (unknown,) = (SampleMembership()(outcome(trial, model())) for model in (memorising, never))
    assert known.value > 0.98 and known.n_images == 2 * 8 * 24
    assert unknown.value == pytest.approx(0.5, abs=0.1)


def test_scores_of_pictures_are_minus_their_errors_and_of_prompts_the_classifiers(trial):
    split, score = trial.questions["split"], trial.original["score"]
    assert (score[np.isin(split, ("forget_train", "forget_unseen"))] <= 0).all()
    drawn = np.isin(split, ("forget", "retain"))
    np.testing.assert_array_equal(score[drawn], trial.original["style_score"][drawn])


def test_some_rows_are_answered_as_among_all(trial):
    rows = np.arange(len(trial.questions["split"]))[::-29]
    for some in (rows, rows[trial.questions["split"][rows] == "forget_unseen"]):
        found = trial.answer(never(), some)
        np.testing.assert_allclose(found["score"], trial.oracles[0]["score"][some], rtol=1e-3, atol=1e-5)
        assert np.array_equal(found["style"], trial.oracles[0]["style"][some])


def test_other_metrics_take_pictures_shown_for_none_that_were_drawn(trial):
    judged = outcome(trial, never())
    images = {value.name: value.n_images for value in CanvasAccuracy()(judged)}
    assert images["cra"] == images["cra_on"] + images["cra_off"] == 24 + 72
    assert RelativeMembership()(judged) == []
    (gap,) = AverageGap()(judged)
    assert gap.value == pytest.approx(0, abs=1e-9)  # the oracle itself
