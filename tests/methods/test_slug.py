import math

import open_clip
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slugbench.methods.slug import Slug, fronts, is_layer, layer_scores, pareto_front, search_step

from ..toys import toy_trial
from .toy_clip import Contrast, accuracy, changed, clip_request, pictures, trained


def test_one_tensor_changes_and_the_target_is_forgotten():
    request = clip_request()
    model = Slug()(request)
    assert len(changed(model)) == 1 and is_layer(changed(model)[0])
    assert accuracy(model, pictures(9, 48, [3])) < 0.5 < 0.8 < accuracy(trained(), pictures(9, 48, [3]))
    assert accuracy(model, pictures(9, 48, [0, 1, 2, 4, 5, 6, 7])) > 0.7


def test_one_tensor_changes_on_a_classifier_and_for_several_targets():
    for trial in (toy_trial("single"), toy_trial("joint")):
        request = trial.request
        before = {name: tensor.clone() for name, tensor in request.model.state_dict().items()}
        after = Slug()(request).state_dict()
        assert sum(not torch.equal(tensor, after[name]) for name, tensor in before.items()) == 1


def test_the_edit_is_along_the_forget_gradient_upwards():
    """So the cosine of pictures and captions of the target falls."""
    model, split = Slug()(clip_request()), pictures(1, 24, [3])
    (layer,) = changed(model)
    (batch,) = split.batches(len(split))
    objective = Contrast()
    assert objective.forget_loss(model, batch) > objective.forget_loss(trained(), batch)
    ascent = torch.autograd.grad(objective.forget_loss(trained(), batch), trained().get_parameter(layer))[0]
    edit = (model.get_parameter(layer) - trained().get_parameter(layer)).detach()
    assert torch.cosine_similarity(edit.flatten(), ascent.flatten(), dim=0) > 0.9999


def test_everything_is_read_once():
    request = clip_request()
    Slug()(request)
    counts = request.validate.meter.counts
    assert (counts["forget"], counts["retain"]) == (24, 168)


def test_scores_are_those_of_the_paper_on_a_case_by_hand():
    params = {
        "visual.a": torch.tensor([[3.0, 4.0]]),
        "b": torch.tensor([0.0, 2.0]),
        "scalar": torch.tensor(1.0),
        "still": torch.ones(2),
    }
    forget = {
        "visual.a": torch.tensor([[0.0, 1.0]]),
        "b": torch.tensor([1.0, 0.0]),
        "scalar": torch.tensor(1.0),
        "still": torch.zeros(2),
    }
    retain = {
        "visual.a": torch.tensor([[-3.0, -4.0]]),
        "b": torch.tensor([0.0, 5.0]),
        "scalar": torch.tensor(1.0),
        "still": torch.ones(2),
    }
    scores = layer_scores(params, forget, retain).set_index("layer")
    assert list(scores.index) == ["visual.a", "b"] and list(scores["tower"]) == ["vision", "text"]
    # ||(0, 1)|| / ||(3, 4)|| = 1/5; cos((0, 1), (-3, -4)) = -4/5, taken without its sign
    assert scores.loc["visual.a", ["importance", "alignment", "forget_norm", "param_norm"]].tolist() == pytest.approx(
        [0.2, 0.8, 1.0, 5.0]
    )
    assert scores.loc["b", ["importance", "alignment"]].tolist() == pytest.approx([0.5, 0.0])


def test_scores_do_not_change_with_the_scale_of_the_gradients():
    model = trained()
    names = [name for name, _ in model.named_parameters() if is_layer(name)]
    params = {name: model.get_parameter(name).detach() for name in names}
    draw = torch.Generator().manual_seed(0)
    forget, retain = ({n: torch.randn(p.shape, generator=draw) for n, p in params.items()} for _ in range(2))
    scores = layer_scores(params, forget, retain)
    scaled = layer_scores(params, {n: 1e-3 * g for n, g in forget.items()}, {n: 50 * g for n, g in retain.items()})
    assert scaled["alignment"].tolist() == pytest.approx(scores["alignment"].tolist(), rel=1e-4)
    assert fronts(scaled) == fronts(scores)


@pytest.mark.slow
def test_vit_b_32_has_76_vision_and_74_text_layers():
    config = open_clip.get_model_config("ViT-B-32")
    with torch.device("meta"):
        model = open_clip.model.CLIP(**config)
    layers = [name for name, _ in model.named_parameters() if is_layer(name)]
    assert sum(name.startswith("visual.") for name in layers) == 76
    assert len(layers) == 76 + 74


numbers = st.floats(0, 1) | st.sampled_from([0.25, 0.5])  # with ties


@given(st.lists(st.tuples(numbers, numbers), max_size=12))
def test_the_front_is_what_nothing_beats_in_both(layers):
    importance, alignment = [i for i, _ in layers], [a for _, a in layers]
    unbeaten = [n for n, (i, a) in enumerate(layers) if not any(j > i and b < a for j, b in layers)]
    assert pareto_front(importance, alignment) == unbeaten


def test_each_tower_has_a_front_of_its_own():
    params = {"visual.a": torch.ones(1, 1), "b": torch.ones(1, 1)}
    forget = {"visual.a": torch.full((1, 1), 2.0), "b": torch.ones(1, 1)}
    assert fronts(layer_scores(params, forget, {n: torch.zeros(1, 1) for n in params})) == ["visual.a", "b"]


def test_the_search_starts_at_a_tenth_doubles_and_then_bisects():
    step, trace = search_step(lambda step: 1.0 if step < 0.5 else 0.0, rho=1.0, steps=7)
    # fails .1 .2 .4, succeeds .8; then the middle of [.4, .8], of [.4, .6], of [.4, .5]
    assert [s for s, _ in trace] == pytest.approx([0.1, 0.2, 0.4, 0.8, 0.6, 0.5, 0.45])
    assert step == pytest.approx(0.5)


@given(threshold=st.floats(1e-3, 20), rho=st.floats(1e-3, 1e3), steps=st.integers(1, 15))
def test_the_search_brackets_the_smallest_step_that_succeeds(threshold, rho, steps):
    step, trace = search_step(lambda s: float(s < threshold * rho), rho, steps=steps)
    assert len(trace) == steps and trace[0][0] == rho / 10
    failed = max([s for s, value in trace if value > 0], default=0.0)
    succeeded = [s for s, value in trace if value <= 0]
    assert step == min(succeeded, default=None)
    if step is not None:
        assert failed < threshold * rho <= step
        halved = steps - next(n for n, (_, value) in enumerate(trace) if value <= 0) - 1
        widest = max(trace[0][0], max(succeeded) / 2)
        assert step - failed <= widest * 2.0**-halved * (1 + 1e-9)


def test_the_search_says_when_no_step_succeeds():
    step, trace = search_step(lambda _: 1.0, rho=10.0, steps=4)
    assert step is None and [s for s, _ in trace] == [1.0, 2.0, 4.0, 8.0]


def test_every_layer_tried_is_put_back_bit_for_bit(monkeypatch):
    from slugbench.methods import slug

    seen = []

    def search(request, allowance, best, layer, direction, *, steps):
        whole(request, allowance, best, layer, direction, steps=steps)
        seen.append(changed(request.model))

    whole = slug.search_layer
    monkeypatch.setattr(slug, "search_layer", search)
    Slug()(clip_request())
    assert len(seen) > 1 and not any(seen)


def test_the_step_written_is_the_step_that_was_validated():
    request = clip_request()
    offered = []
    validate = request.validate.validate
    object.__setattr__(request.validate, "validate", lambda m, retain=True: _note(offered, validate, m, retain))
    model = Slug()(request)
    reached = [s for s in offered if not math.isnan(s.retain) and request.reached(s)]
    now = validate(model)
    assert request.reached(now) and now.retain == max(s.retain for s in reached)


def _note(offered, validate, model, retain):
    offered.append(validate(model, retain=retain))
    return offered[-1]
