import copy
import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from slugbench.bench import Cost, Outcome
from slugbench.metrics.robustness import (
    Prompting,
    Quantised,
    Relearning,
    Resurgence,
    Undoing,
    best_words,
    prototype,
    rounded,
)

from ..toys import toy_trial


def outcome(model=None, request_id="single"):
    trial = toy_trial(request_id)
    model = trial.request.model if model is None else model
    return Outcome(trial, trial.answer(model), trial.oracles, model, Cost())


def hidden(offset=-20.0):
    """The toy model that never says `blob2`, by one number in the bias alone."""
    model = toy_trial().request.model
    model.output.bias.data[2] += offset
    return model


def by_name(values):
    return {v.name: v.value for v in values}


def test_what_was_hidden_by_one_number_is_relearned_at_once_and_what_was_never_learned_is_not():
    attack, never = Relearning(learning_rate=0.1, steps=20), toy_trial().oracle_model(0)
    found = {name: by_name(attack(outcome(model))) for name, model in (("hidden", hidden(-5.0)), ("never", never))}
    assert found["hidden"]["relearn@5"] > found["never"]["relearn@5"] + 0.2
    assert found["hidden"]["relearn@5+20"] > 0.8


def test_the_original_has_nothing_to_learn():
    found = by_name(Relearning(learning_rate=1e-6)(outcome()))
    assert found["relearn@1"] == pytest.approx(found["relearn@5"]) and found["relearn@5"] > 0.9


def test_the_area_is_that_of_the_curve():
    """Trapezia between looks at steps 0, 2, 4, 8, 14 and 20 of 20."""
    attack, judged = Relearning(learning_rate=0.1, steps=20), outcome(hidden(-5.0))
    curve, unit = attack.curve(judged, 5)
    y = {step: x.mean() for step, x in curve.items()}
    area = sum((b - a) * (y[a] + y[b]) / 2 for a, b in ((0, 2), (2, 4), (4, 8), (8, 14), (14, 20))) / 20
    assert list(curve) == [0, 2, 4, 8, 14, 20] and set(unit) == {2}
    assert by_name(attack(judged))["relearn@5"] == pytest.approx(area)


@pytest.mark.parametrize("attack", [Relearning(steps=5), Resurgence(), Quantised(), Undoing()])
def test_attacks_repeat_themselves_and_leave_the_model_alone(attack):
    judged = outcome(hidden())
    before = copy.deepcopy(judged.model.state_dict())
    first, second = by_name(attack(judged)), by_name(attack(judged))
    assert first == second and first
    assert all(tensor.equal(before[name]) for name, tensor in judged.model.state_dict().items())
    assert not judged.model.training


@pytest.mark.parametrize("attack", [Relearning(), Resurgence(), Quantised(), Undoing(), Prompting()])
def test_attacks_need_weights_and_something_to_bring_back(attack):
    trial = toy_trial()
    assert attack(Outcome(trial, trial.original, trial.oracles, cost=Cost())) == []
    assert attack(outcome(request_id="samples")) == []


def test_weights_are_taken_without_the_filter_around_them():
    """As an attacker would load them: by their names, into the model as it is built."""
    judged = outcome()
    filtered = judged.model
    filtered.register_forward_hook(lambda module, inputs, logits: logits.index_fill(-1, torch.tensor([2]), -1e4))
    judged = dataclasses.replace(judged, model=filtered)
    assert (judged.trial.answer(filtered)["rank"][judged.trial.questions["split"] == "forget"] > 0).all()
    assert by_name(Quantised()(judged))["fa_w8"] > 0.9


@pytest.mark.parametrize("bits", [4, 8])
def test_rounding_leaves_few_levels_and_half_a_step_of_error(bits):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Linear(5, 6))
    coarse = rounded(copy.deepcopy(model), bits)
    for name in ("0.weight", "1.weight"):
        fine, made = (m.get_parameter(name).detach().flatten(1) for m in (model, coarse))
        for row, levels in zip(fine, made, strict=True):
            assert len(levels.unique()) <= 2**bits - 1
            assert (row - levels).abs().max() <= row.abs().max() / (2 ** (bits - 1) - 1) / 2 * 1.0001
    assert coarse[0].bias.equal(model[0].bias)


def test_going_back_half_the_way_is_the_mean_of_the_two():
    judged = outcome(hidden(-8.0))
    found = by_name(Undoing()(judged))
    length = sum(float(tensor.square().sum()) for tensor in toy_trial().request.model.state_dict().values())
    halfway = outcome(hidden(-4.0))
    expected = (halfway.answers["rank"][halfway.trial.questions["split"] == "forget"] == 0).mean()
    assert found["undo@50"] == pytest.approx(expected)
    assert found["edit_l2"] == pytest.approx(8 / length**0.5, rel=1e-5)
    assert found["edit_tensors"] == 1 and found["drift"] == pytest.approx(0, abs=1e-6)  # features are before the bias


class Words:
    """`Prompts` of two words out of four, whose vectors add up; the image is along the third and fourth."""

    vectors = torch.eye(4)

    def start(self, label):
        return torch.tensor([0, 1])

    def places(self, label):
        return (1, 0)

    def words(self):
        return range(4)

    def embed(self, model, tokens_KT):
        return torch.nn.functional.normalize(self.vectors[tokens_KT].sum(1), dim=1)

    def margins(self, model, label, text_KD, rows):
        image = torch.tensor([[0.0, 0.0, 0.6, 0.8]]).repeat(len(rows), 1)
        return (text_KD @ image.T - 0.9).numpy()


def test_the_search_finds_the_words_that_say_what_the_picture_shows():
    trial = SimpleNamespace(prompts=Words())
    text = best_words(trial, torch.nn.Linear(1, 1), 0, np.arange(3), sweeps=3)
    best = max(  # brute force over all pairs
        Words().margins(None, 0, Words().embed(None, torch.tensor([[i, j]])), [0])[0, 0] for i in range(4) for j in range(4)
    )
    assert Words().margins(None, 0, text, [0])[0, 0] == pytest.approx(best)


def test_a_prototype_is_the_direction_of_the_mean():
    features = np.array([[1.0, 0.0], [0.0, 1.0]], dtype=np.float32)
    np.testing.assert_allclose(prototype(features, torch.nn.Linear(1, 1)), [[0.5**0.5, 0.5**0.5]], rtol=1e-6)
