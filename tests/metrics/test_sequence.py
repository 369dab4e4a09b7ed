import dataclasses

import pytest
import torch

from slugbench.bench import Cost, Outcome
from slugbench.metrics.sequence import Sequence

from ..toys import toy_trial

TARGETS = ("blob4", "blob5")


def judged(unlearn, request_id="joint", model=None):
    trial = toy_trial(request_id)
    model = trial.request.model if model is None else model
    return Outcome(trial, trial.answer(model), trial.oracles, model, Cost(), (0, 1, 2, 3), unlearn)


def values(outcome):
    return {v.name: v.value for v in Sequence()(outcome)}


def sink(model, label, by=50.0):
    with torch.no_grad():
        model.output.bias[label] -= by
    return model


def never_again(request):
    """Forgets what it is asked to, by one number."""
    return sink(request.model, int(request.targets[0].removeprefix("blob")))


def only_the_last(request):
    """Forgets what it is asked to, and remembers what it was asked to forget before."""
    with torch.no_grad():
        request.model.output.bias.clamp_(min=-20)
        request.model.output.bias[4:] = toy_trial().request.model.output.bias[4:]
    return never_again(request)


def test_what_stays_forgotten_has_no_rebound():
    found = values(judged(never_again))
    assert (found["seq_fa@1"], found["seq_fa@2"], found["seq_rebound"]) == (0, 0, 0)
    assert found["seq_ra@2"] > 0.85 and abs(found["seq_slope"]) < 0.05


def test_what_comes_back_is_counted_by_target():
    """The first of two targets, known at about 0.95 again, and the second at 0."""
    found = values(judged(only_the_last))
    assert found["seq_fa@1"] == 0 and found["seq_fa@2"] == found["seq_rebound"] == pytest.approx(0.48, abs=0.06)


def test_each_request_is_of_one_target_to_the_model_made_before():
    asked = []

    def note(request):
        asked.append((request.targets, len(request.retain), request.model.output.bias[4].item()))
        return never_again(request)

    Sequence()(judged(note))
    (first, kept, before), (second, fewer, after) = asked
    assert (first, second) == (TARGETS[:1], TARGETS[1:]) and fewer == kept - 24 and after == pytest.approx(before - 50)


def test_the_slope_is_what_a_request_costs():
    def spoil(request):
        return sink(never_again(request), len(request.retain) % 2)

    outcome = judged(spoil)
    found = values(outcome)
    before = values(judged(lambda request: request.model))["seq_ra@2"]
    assert found["seq_slope"] == pytest.approx((found["seq_ra@2"] - before) / 2) and found["seq_slope"] < -0.05


def test_an_oracle_is_the_same_all_along():
    trial = toy_trial("joint")
    found = values(judged(None, model=trial.oracle_model(0)))
    assert found["seq_rebound"] == found["seq_slope"] == found["seq_fa@2"] == 0


def test_the_original_is_left_alone_and_single_requests_have_no_sequence():
    outcome = judged(never_again)
    before = {name: tensor.clone() for name, tensor in outcome.model.state_dict().items()}
    Sequence()(outcome)
    assert all(torch.equal(before[name], tensor) for name, tensor in outcome.model.state_dict().items())
    assert Sequence()(judged(never_again, "single")) == [] == Sequence()(dataclasses.replace(outcome, model=None))
