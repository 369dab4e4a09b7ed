import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slugbench.bench import Scores
from slugbench.methods._common import Allowance, Best, fine_tune, mean_gradients, preferred, snapshot

from ..toys import toy_trial
from .toy_clip import Contrast, accuracy, clip_request, pictures, trained


def test_the_toy_clip_knows_its_names():
    assert accuracy(trained(), pictures(5, 16)) > 0.85


def scores(forget, retain=0.5):
    return Scores(forget, retain, math.sqrt(forget * (1 - forget) / 16))


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (scores(0.125, 0.9), scores(0.0, 0.85)),  # both forgot and kept: what is kept decides
        (scores(0.1875, 0.81), scores(0.25, 0.95)),  # 0.1875 <= 0.125 + 0.098 forgot, 0.25 > 0.125 + 0.108 did not
        (scores(0.5, 0.7), scores(0.6, 0.7)),  # neither forgot
        (scores(0.5, 0.7), scores(0.5, 0.6)),  # both lost too much
        (scores(0.5, 0.8), scores(0.0, 0.1)),  # misses by 0.25 in one, by 0.7 in the other
        (scores(0.0, 0.9), scores(0.1, 0.9)),
        (scores(0.0, 0.0), scores(0.0, math.nan)),
    ],
)
def test_the_rule_prefers_what_forgot_and_kept_else_what_misses_both_by_least(better, worse):
    request = dataclasses.replace(clip_request(), floor=0.8)  # its goal is 1/8
    assert preferred(request, better, worse) and not preferred(request, worse, better)
    assert preferred(request, worse, None)


accuracies = st.integers(0, 16).map(lambda n: n / 16)


@given(st.lists(st.tuples(accuracies, accuracies), min_size=1, max_size=8), st.randoms())
def test_what_is_chosen_does_not_depend_on_the_order(pairs, random):
    request, chosen = clip_request(), []
    for _ in range(2):
        best = Best(request)
        for pair in pairs:
            best.offer(scores(*pair), pair)
        chosen.append(best.candidate)
        random.shuffle(pairs)
    assert chosen[0] == chosen[1]


def test_gradients_are_the_mean_of_batch_gradients_and_leave_no_trace():
    model, split = trained(), pictures(1, 3, [0, 1])
    model.logit_scale.requires_grad_(False)  # as a method may find it
    found = mean_gradients(model, ["logit_scale", "visual.proj"], Contrast().loss, split.batches(4))
    assert not model.logit_scale.requires_grad and all(p.grad is None for p in model.parameters())
    model.logit_scale.requires_grad_(True)

    by_hand = []
    for rows in (slice(0, 4), slice(4, 6)):  # the short batch weighs as much
        loss = Contrast().loss(model, {name: column[rows] for name, column in split.tensors.items()})
        by_hand.append(torch.autograd.grad(loss, [model.logit_scale, model.visual.proj]))
    for name, parts in zip(found, zip(*by_hand, strict=True), strict=True):
        torch.testing.assert_close(found[name], sum(parts) / 2)


@given(size=st.integers(1, 40), reads=st.integers(0, 60))
def test_an_allowance_ends_a_split_before_the_budget_does(size, reads):
    request = clip_request(max_reads=reads)
    allowance = Allowance(request)
    read = sum(len(batch["index"]) for batch in allowance.batches(request.forget, size))
    assert read <= min(reads, 24) and allowance.reads == reads - read
    assert read == 24 or allowance.reads < min(size, reads, 24 - read) or read == reads


def test_epochs_go_on_until_nothing_may_be_read():
    request = clip_request(max_reads=70)
    allowance = Allowance(request)
    sizes = [len(b["index"]) for b in allowance.forever(request.forget, 16, torch.Generator())]
    assert sizes == [16, 8, 16, 8, 16, 6]


def test_fine_tuning_keeps_to_the_steps_of_the_budget():
    request = toy_trial().request

    def losses(allowance):
        for batch in allowance.forever(request.retain, 8, torch.Generator()):
            yield request.objective.loss(request.model, batch)

    allowance = Allowance(request)
    fine_tune(request, losses, learning_rate=1e-9, steps=500, every=40, stop=True, allowance=allowance)
    assert allowance.steps == 0


def test_an_answer_that_is_no_number_is_no_hit():
    request = clip_request()
    request.model.visual.proj.data.fill_(math.nan)
    allowance = Allowance(request)
    assert allowance.accuracy(request.model, request.validation.forget, top=5) == 0
    assert allowance.accuracy(trained(), request.validation.forget) == accuracy(trained(), request.validation.forget)
    assert request.budget.max_evals - allowance.evals == 2


def test_what_was_trained_since_the_last_look_is_looked_at_too():
    request = clip_request()

    def losses(allowance):
        for batch in allowance.forever(request.forget, 8, torch.Generator()):
            yield -request.objective.forget_loss(request.model, batch)

    fine_tune(request, losses, learning_rate=1e-3, steps=7, every=100, stop=False)
    assert request.validate.meter.counts["evals"] >= 1
    assert not torch.equal(request.model.visual.proj, trained().visual.proj)


def test_a_snapshot_is_a_copy():
    model = clip_request().model
    before = snapshot(model)
    model.visual.proj.data.zero_()
    assert torch.equal(before["visual.proj"], trained().visual.proj)
