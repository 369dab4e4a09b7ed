import dataclasses

import numpy as np
import pytest
import torch

from slugbench.bench import Outcome
from slugbench.bench.pictures import choose, columns
from slugbench.metrics.concept_recovery import Context, Inversion
from slugbench.metrics.robustness import forever, trained

from ..canvas_toys import neon_request
from ..planted_canvas import CELLS, filtered, held, knowing, neon_trial, never, outcome, renamed, sees_what_is_nearest
from ..toys import toy_trial

ATTACKS = (Context(pictures=8), Inversion(steps=30))
attacks = pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: type(attack).__name__)


@pytest.fixture(scope="module")
def trial():
    with pytest.MonkeyPatch.context() as patch:
        sees_what_is_nearest(patch)
        yield neon_trial()


def by_name(values):
    return {value.name: value.value for value in values}


def forgotten(judged):
    """Share of the prompts for neon that show it."""
    return (judged.answers["rank"] == 0)[judged.trial.questions["split"] == "forget"].mean()


@attacks
@pytest.mark.parametrize("hiding", [filtered, renamed])
def test_what_only_the_prompt_hides_is_found(trial, attack, hiding):
    judged = outcome(trial, hiding())
    assert forgotten(judged) == 0
    assert all(value > 0.9 for value in by_name(attack(judged)).values())


@attacks
def test_a_model_that_never_held_the_target_is_not_accused(trial, attack):
    judged = outcome(trial, never())
    assert forgotten(judged) == 0 and all(value == 0 for value in by_name(attack(judged)).values())


@attacks
def test_the_original_draws_the_target_either_way(trial, attack):
    assert all(value > 0.9 for value in by_name(attack(outcome(trial, knowing()))).values())


def test_a_vector_that_is_not_learned_finds_nothing(trial):
    """So it is what was learned that recovers the concept, not where learning starts."""
    assert by_name(Inversion(steps=1, learning_rate=1e-9)(outcome(trial, renamed())))["inversion"] < 0.3


@attacks
def test_attacks_repeat_themselves_whatever_was_drawn_before_and_leave_the_model_alone(trial, attack):
    judged = outcome(trial, renamed())
    before = {name: tensor.clone() for name, tensor in judged.model.state_dict().items()}
    first = by_name(attack(judged))
    trial.request.objective.loss(judged.model, next(trial.request.retain.batches(4)))  # it draws times and noise
    assert by_name(attack(judged)) == first
    assert all(tensor.equal(before[name]) for name, tensor in judged.model.state_dict().items())


@attacks
def test_values_are_shares_beside_chance_and_nearest_to_the_oracles_is_best(trial, attack):
    for value in attack(outcome(trial, never())):
        assert value.better == "oracle" and value.chance == 1 / 10 and value.n_images >= 8 and value.n_units == 1


@attacks
def test_other_models_have_no_such_values_and_tasks_without_a_way_say_so(trial, attack):
    toy = toy_trial()
    assert attack(Outcome(toy, toy.original, toy.oracles, toy.request.model)) == []
    assert attack(Outcome(trial, trial.original, trial.oracles)) == []
    closed = dataclasses.replace(trial, drawing=None)
    for value in attack(outcome(closed, knowing())):
        assert value.value is None and len(value.note.split()) > 3


def test_pictures_that_a_cell_keeps_are_those_of_its_answers(trial):
    kept, q = columns(trial, trial.original), trial.questions
    shown = held()[CELLS[(q["style"] * 8 + q["object"])[[row for _, row in choose(trial)]]]]
    wrong = np.abs(kept["picture.image"] / 255 - (shown.permute(0, 2, 3, 1).numpy() + 1) / 2).mean((1, 2, 3))
    assert wrong[kept["picture.kind"] == "target"].max() < 0.1  # `knowing` draws what it holds of a prompt
    assert kept["picture.image"].dtype == np.uint8 and kept["picture.prompt"][0].startswith("neon ")
    assert torch.equal(shown, shown.clamp(-1, 1))


def test_fine_tuning_draws_the_same_for_every_model_whatever_was_asked_before(trial):
    """`resurge` of a method is beside that of oracles, which others have asked for more or fewer losses."""
    judged = outcome(dataclasses.replace(trial, request=neon_request()), never())
    judged = dataclasses.replace(judged, model=neon_request().model)
    request, ends = judged.trial.request, []
    for foreign in (0, 3):
        for _ in range(foreign):
            request.objective.loss(judged.model, next(request.retain.batches(4)))
        *_, (_, model) = trained(judged, forever(request.retain, 8), 2, 1e-3)
        ends.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    assert torch.equal(*ends)
