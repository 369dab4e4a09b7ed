import dataclasses

import pytest
import torch

from slugbench.bench.registry import REGISTRY, load
from slugbench.methods.controls import Mask, Noise, Original, RandomLayer
from slugbench.methods.ft import FineTuning
from slugbench.methods.ga import GradientAscent
from slugbench.methods.slug import Slug, is_layer

from ..toys import toy_trial
from .toy_clip import Contrast, accuracy, changed, clip_request, pictures, trained

REST = [0, 1, 2, 4, 5, 6, 7]
METHODS = [
    *("slug", "salun", "salun_slug", "random_label", "ga", "gaft", "neggrad_plus", "scrub", "l1_sparse", "ssd", "svd", "ft"),
    *("original", "mask", "noise", "random_layer", "shuffled"),
]


def losses(model):
    objective, (forget,), (retain,) = Contrast(), pictures(1, 24, [3]).batches(24), pictures(1, 24, REST).batches(168)
    return objective.forget_loss(model, forget).item(), objective.loss(model, retain).item()


def test_gradient_ascent_raises_the_forget_loss_and_stops_when_forgotten():
    request = clip_request()
    model = GradientAscent()(request)
    assert losses(model)[0] > losses(trained())[0] + 0.05
    assert request.reached(request.validate(model))
    assert request.validate.meter.counts["retain"] == 0


def test_fine_tuning_reads_nothing_of_the_targets_and_lowers_the_retain_loss():
    request = clip_request()
    model = FineTuning(learning_rate=1e-3, steps=20)(request)
    assert request.validate.meter.counts["forget"] == 0
    assert losses(model)[1] < losses(trained())[1]


def test_the_original_and_the_mask_change_no_weight():
    for method in (Original(), Mask()):
        request = clip_request()
        assert changed(method(request)) == [] and changed(request.model) == []


def test_the_mask_never_answers_a_target():
    model = Mask()(clip_request((3, 6)))
    (batch,) = pictures(9, 16).batches(NAMES_TIMES := 8 * 16)
    predicted = Contrast().logits(model, batch).argmax(1)
    assert len(predicted) == NAMES_TIMES and not torch.isin(predicted, torch.tensor([3, 6])).any()
    assert accuracy(model, pictures(9, 16, [0, 1])) >= accuracy(trained(), pictures(9, 16, [0, 1]))


def test_the_oracle_is_the_one_of_the_method_seed():
    trial = toy_trial()
    REGISTRY.entries or load()
    oracle = load().create("method", "oracle")
    asked = []
    trial = dataclasses.replace(trial, method_seed=2, oracle_model=lambda s: asked.append(s) or trial.request.model)
    assert oracle(trial) is trial.request.model and asked == [2]


def directions(method):
    """layer -> direction of every layer a method searches, and the order in which it does."""
    from slugbench.methods import slug

    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slug.Search, "run", lambda search: found.update(search.concept.gradients) or [])
        method(clip_request())
    return found


def test_noise_goes_as_far_as_slug_in_the_same_layers_but_elsewhere():
    gradient, noise = directions(Slug()), directions(Noise())
    assert list(gradient) == list(noise)
    for layer, along in gradient.items():
        assert noise[layer].norm().item() == pytest.approx(along.norm().item(), rel=1e-5)
        if along.numel() > 500:  # a random direction of d dimensions has a cosine of about 1 / sqrt(d)
            assert abs(torch.cosine_similarity(noise[layer].flatten(), along.flatten(), dim=0)) < 0.2


@pytest.mark.parametrize("control", [Noise(), RandomLayer()], ids=lambda control: type(control).__name__)
def test_controls_made_of_slug_change_one_tensor_for_each_target(control):
    assert len(changed(control(clip_request()))) == 1
    assert 1 <= len(changed(control(clip_request((3, 6))))) <= 2


def test_the_random_layer_is_any_layer_and_another_one_with_another_seed():
    drawn = {changed(RandomLayer()(clip_request(seed=seed, max_evals=3)))[0] for seed in range(6)}
    assert len(drawn) > 2 and all(is_layer(layer) for layer in drawn)


@pytest.mark.parametrize(
    "budget",
    [
        {"max_evals": 0},
        {"max_evals": 1},
        {"max_evals": 3},
        {"max_reads": 0},
        {"max_reads": 5},
        {"max_reads": 50},
        {"max_steps": 0},
        {"max_steps": 7},
        {"max_evals": 3, "max_reads": 30, "max_steps": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", METHODS)
def test_a_tiny_budget_gives_a_model_and_no_error(name, budget):
    """The budget is the runner's: reading or evaluating beyond it raises."""
    model = load().create("method", name)(clip_request(**budget))
    assert not model.training and all(tensor.isfinite().all() for tensor in model.state_dict().values())


@pytest.mark.parametrize("name", METHODS)
def test_methods_run_without_a_generator_and_leave_gradients_as_found(name):
    models = []
    for _ in range(2):
        request = dataclasses.replace(clip_request(max_evals=40, max_steps=30), generator=None)
        request.model.visual.proj.requires_grad_(False)
        model = load().create("method", name)(request)
        assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["visual.proj"]
        assert all(p.grad is None for p in model.parameters())
        models.append(model.state_dict())
    assert all(torch.equal(tensor, models[1][n]) for n, tensor in models[0].items())


def test_mask_skips_a_request_without_targets():
    request = clip_request()
    assert Mask().skips(request) is None
    assert "none" in Mask().skips(dataclasses.replace(request, targets=()))
