import copy
import math

import numpy as np
import open_clip
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slugbench.bench import UsageError
from slugbench.methods._common import mean_gradients
from slugbench.methods.slug import (
    Edit,
    Search,
    Slug,
    deepest,
    edited,
    fronts,
    full_batches,
    inner_product,
    is_layer,
    layer_scores,
    layers_by_tower,
    load_edits,
    pareto_front,
    running_sums,
    save_edits,
    search_step,
    search_step_uncanvas,
    whole_layer,
)

from ..toys import toy_trial
from .toy_clip import Contrast, accuracy, changed, clip_request, pictures, trained


def test_one_tensor_changes_and_the_target_is_forgotten():
    request = clip_request()
    model = Slug()(request)
    assert len(changed(model)) == 1 and is_layer(changed(model)[0])
    assert accuracy(model, pictures(9, 48, [3])) < 0.5 < 0.8 < accuracy(trained(), pictures(9, 48, [3]))
    assert accuracy(model, pictures(9, 48, [0, 1, 2, 4, 5, 6, 7])) > 0.7


def test_one_tensor_changes_on_a_classifier():
    request = toy_trial("single").request
    before = {name: tensor.clone() for name, tensor in request.model.state_dict().items()}
    after = Slug()(request).state_dict()
    assert sum(not torch.equal(tensor, after[name]) for name, tensor in before.items()) == 1


def test_several_targets_get_an_edit_each_as_if_alone_and_the_edits_add_up():
    both, request = Slug().edits(clip_request((3, 6))), clip_request((3, 6))
    model = Slug()(request)
    assert len(both) == 2 and set(changed(model)) == {edit.layer for edit in both}
    for layer in changed(model):  # worked out in another order: float addition
        summed = trained().get_parameter(layer) + sum(edit.step * edit.gradient for edit in both if edit.layer == layer)
        torch.testing.assert_close(model.get_parameter(layer), summed)
    # each edit's gradient is that of its own target at the original weights, whatever the other one is
    (batch,) = pictures(1, 24, [3]).batches(24)
    expected = torch.autograd.grad(Contrast().forget_loss(trained(), batch), trained().get_parameter(both[0].layer))[0]
    torch.testing.assert_close(both[0].gradient, expected)
    assert accuracy(model, pictures(9, 48, [3, 6])) < 0.5 < accuracy(model, pictures(9, 48, [0, 1, 2, 4, 5, 7]))


def test_together_means_one_edit_for_all_targets():
    assert len(changed(Slug(together=True)(clip_request((3, 6))))) == 1


def test_edits_are_undone_to_the_bit_and_leave_a_model_as_it_came():
    request = clip_request((3, 6))
    edits = Slug().edits(request)
    assert changed(request.model) == []
    with edited(request.model, [*edits, edits[0]]):
        assert changed(request.model)
    assert changed(request.model) == [] and not any("forward" in vars(m) for m in request.model.modules())


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


def test_edits_in_a_file_make_the_same_model_of_the_original(tmp_path):
    edits = Slug().edits(clip_request((3, 6)))
    save_edits(edits, tmp_path / "edits.safetensors")
    made, again = clip_request((3, 6)).model, clip_request((3, 6)).model
    for model, found in ((made, edits), (again, load_edits(tmp_path / "edits.safetensors"))):
        for edit in found:
            edit.apply(model)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in made.state_dict().items())
    weights = sum(edit.gradient.numel() * 4 for edit in edits)
    assert weights < (tmp_path / "edits.safetensors").stat().st_size < weights + 1000


def cosine_of_pairs(model):
    (batch,) = pictures(1, 24, [3]).batches(24)
    with torch.no_grad():
        return 1 - Contrast().forget_loss(model, batch).item()


def test_a_small_step_lowers_the_cosine_of_forget_pairs_in_every_layer():
    """And the Hugging Face path's sign raises it."""
    request, before = clip_request(), cosine_of_pairs(trained())
    names = [name for name, _ in trained().named_parameters() if is_layer(name)]
    found = mean_gradients(trained(), names, Contrast().forget_loss, request.forget.batches(24))
    for layer, gradient in found.items():
        step = 1e-3 * (trained().get_parameter(layer).norm() / gradient.norm()).item()
        with edited(request.model, [Edit(layer, step, gradient)]):
            assert cosine_of_pairs(request.model) < before, layer
        with edited(request.model, [Edit(layer, step, -gradient)]):
            assert cosine_of_pairs(request.model) > before, layer


def test_everything_is_read_once():
    request = clip_request()
    Slug()(request)
    counts = request.validate.meter.counts
    assert (counts["forget"], counts["retain"]) == (24, 168)
    assert counts["evals"] > 20  # every step tried is counted


def prepared(slug, request=None):
    """Scores and kept gradients of a preparation alone, and the scores' retain gradients."""
    seen, kept = [], {}

    def choose(scores):
        seen.append(scores.set_index("layer"))
        return fronts(scores)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Search, "run", lambda search: kept.update(search.concept.gradients) or [])
        slug.edits(request or clip_request(), choose=choose)
    return pd.concat(seen).sort_index(), kept


def test_gradients_do_not_depend_on_how_many_samples_run_at_a_time_nor_on_turns():
    scores, kept = prepared(Slug(batch=32))
    for other in (Slug(batch=32, physical=7), Slug(batch=32, physical=100), Slug(batch=32, towers_in_turn=True)):
        again, kept_again = prepared(other)
        # float32 sums in another order
        pd.testing.assert_frame_equal(again, scores, rtol=1e-4, atol=1e-6)
        assert list(kept_again) == list(kept)
        for layer, gradient in kept.items():
            torch.testing.assert_close(kept_again[layer], gradient, rtol=1e-4, atol=1e-6)


def test_gradients_are_those_of_a_plain_loop_over_logical_batches():
    request, layer = clip_request(), "transformer.resblocks.0.mlp.c_proj.weight"
    scores, _ = prepared(Slug(batch=40, physical=100), clip_request())
    parts = []
    for batch in request.retain.batches(40, torch.Generator().manual_seed(0)):
        model = copy.deepcopy(trained())
        Contrast().loss(model, batch).backward()
        parts.append(model.get_parameter(layer).grad.flatten())
    assert len(parts) == 5  # 168 in batches of 40, the last one of 8 weighing as much
    (batch,) = request.forget.batches(24)
    model = copy.deepcopy(trained())
    Contrast().forget_loss(model, batch).backward()
    forget = model.get_parameter(layer).grad.flatten().numpy()
    retain = torch.stack(parts).mean(0).numpy()
    expected = abs(np.dot(forget, retain) / np.linalg.norm(forget) / np.linalg.norm(retain))
    assert scores.loc[layer, "alignment"] == pytest.approx(expected, rel=1e-4)


def test_the_openclip_variant_fills_the_last_batch_up():
    batches = [{"index": torch.arange(4)}, {"index": torch.arange(4, 6)}]
    assert [b["index"].tolist() for b in full_batches(batches, 4)] == [[0, 1, 2, 3], [4, 5, 0, 1]]
    assert [b["index"].tolist() for b in full_batches(batches[1:], 8)] == [[4, 5, 4, 5, 4, 5, 4, 5]]


def test_running_sums_weigh_the_first_batch_most_and_leak():
    model = torch.nn.Linear(1, 1, bias=False)
    batches = [{"x": torch.tensor([[float(x)]])} for x in (1, 10, 100)]  # each is its own gradient
    total, left = running_sums(model, ["weight"], lambda m, b: m(b["x"]).sum(), batches)
    assert total["weight"].item() == pytest.approx((3 * 1 + 2 * 10 + 100) / 3) and left["weight"].item() == 111
    leaky, _ = running_sums(model, ["weight"], lambda m, b: m(b["x"]).sum(), batches[:2], left)
    assert leaky["weight"].item() == pytest.approx(111 + (2 * 1 + 10) / 2) and model.weight.grad is None


def test_the_hugging_face_path_strengthens_the_target_and_edits_whole_layers():
    request = clip_request()
    edits = Slug(variant="hf").edits(request)
    assert {edit.layer.split(".")[0] for edit in edits} == {"transformer"} and changed(request.model) == []
    small = [edit._replace(step=edit.step * 1e-2) for edit in edits]
    before = cosine_of_pairs(trained())
    with edited(request.model, small):
        assert cosine_of_pairs(request.model) > before


def test_the_deepest_layer_of_a_front_is_chosen_and_edited_whole():
    names = [f"encoder.layers.{n}.{part}.weight" for n in range(3) for part in ("self_attn.q_proj", "self_attn.k_proj")]
    names += [f"encoder.layers.{n}.self_attn.{part}.weight" for n in range(3) for part in ("v_proj", "out_proj")]
    assert deepest([names[0], names[2], names[3], "projection"], names) == names[2]  # of block 1 the first
    assert deepest([names[0], "projection"], names) == "encoder.layers.2.self_attn.out_proj.weight"  # never block 0
    assert whole_layer(names[2], names) == [names[2], names[3], "encoder.layers.1.self_attn.v_proj.weight"]
    assert whole_layer("a.1.mlp.c_proj.weight", ["a.1.mlp.c_fc.weight"]) == ["a.1.mlp.c_proj.weight", "a.1.mlp.c_fc.weight"]
    assert whole_layer("a.1.out_proj.weight", names) == ["a.1.out_proj.weight"]


def test_a_group_is_edited_together_by_one_step_relative_to_the_layer_of_the_front():
    up, down, norm = (f"transformer.resblocks.0.{part}.weight" for part in ("mlp.c_fc", "mlp.c_proj", "ln_1"))
    alone = {edit.layer: edit for edit in Slug(steps=1).edits(clip_request(), choose=lambda scores: [down])}
    request, searched = clip_request(), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Search, "run", lambda search: searched.extend(search.concept.gradients) or [])
        Slug(groups=True).edits(request, choose=lambda scores: [down, up, norm])
    assert searched == [down, norm]  # the group once
    found = Slug(groups=True, steps=1).edits(request, choose=lambda scores: [down, up])
    assert [edit.layer for edit in found] == [down, up] and changed(request.model) == []
    assert found[0].step == found[1].step == alone[down].step
    assert torch.equal(found[0].gradient, alone[down].gradient)
    assert changed(Slug(groups=True, steps=1).unlearn(request, choose=lambda scores: [down])) == [up, down]


def scripted(forgets_at, loses_at):
    """An evaluation that forgets from a step on, and loses what is retained from a step on; and the steps asked."""
    asked = []

    def evaluate(step):
        asked.append(step)
        return float(step < forgets_at), 0.9 if step < loses_at else 0.3

    return evaluate, asked


def test_the_uncanvas_search_follows_its_script():
    evaluate, asked = scripted(forgets_at=1.0, loses_at=1.5)
    # .4 fails: low, to the middle of (.4, 4) = 2.2 forgets but loses: high; 1.3 forgets and keeps: end
    assert search_step_uncanvas(evaluate, 1.0, retained=0.905) == pytest.approx(1.3)
    assert asked == pytest.approx([0.4, 2.2, 1.3])


def test_the_uncanvas_search_repeats_a_point_when_it_neither_forgets_nor_keeps():
    evaluate, asked = scripted(forgets_at=9.0, loses_at=0.1)
    assert search_step_uncanvas(evaluate, 1.0, retained=0.9) == pytest.approx(0.4)
    assert asked == pytest.approx([0.4] * 11)


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


def test_tiny_gradients_are_not_taken_for_none_and_bad_ones_are_named():
    tiny = torch.full((3,), 1e-24)
    assert inner_product(tiny, tiny) == pytest.approx(3e-48)
    one = {"a": torch.ones(3)}
    assert layer_scores(one, {"a": tiny}, one)["importance"].item() == pytest.approx(1e-24)
    with pytest.raises(ValueError, match="a gradient of a is not a finite number"):
        layer_scores(one, {"a": torch.tensor([1.0, math.nan, 0.0])}, one)


def test_turns_are_refused_where_the_budget_has_no_second_reading():
    with pytest.raises(UsageError, match="reads 384 samples; the budget allows 200"):
        Slug(towers_in_turn=True)(clip_request(max_reads=200))


def test_the_uncanvas_search_without_an_evaluation_edits_nothing():
    assert search_step_uncanvas(lambda step: None, 1.0, retained=0.9) is None
    assert changed(Slug(variant="hf")(clip_request(max_evals=1))) == []


def test_inner_products_of_large_tensors_are_exact_enough():
    draw = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 700, 1000, generator=draw)
    a += 100  # a large mean, where float32 sums drift
    assert inner_product(a, b) == pytest.approx((a.double() * b.double()).sum().item(), rel=1e-4, abs=1)
    assert inner_product(a, a) == pytest.approx(a.double().square().sum().item(), rel=1e-6)
    assert inner_product(torch.tensor(3.0), torch.tensor(4.0)) == 12


def test_alignment_keeps_its_sign_where_asked():
    one = {"a": torch.tensor([1.0, 0.0])}
    scores = layer_scores(one, one, {"a": torch.tensor([-2.0, 0.0])}, signed=True)
    assert scores["alignment"].item() == pytest.approx(-1.0)


@pytest.mark.slow
def test_vit_b_32_has_76_vision_and_74_text_layers():
    config = open_clip.get_model_config("ViT-B-32")
    with torch.device("meta"):
        model = open_clip.model.CLIP(**config)
    layers = [name for name, _ in model.named_parameters() if is_layer(name)]
    assert sum(name.startswith("visual.") for name in layers) == 76
    assert len(layers) == 76 + 74


def test_the_hugging_face_filter_drops_norms_and_takes_the_image_projection_for_text():
    from transformers import CLIPConfig, CLIPModel

    with torch.device("meta"):
        names = [name for name, _ in CLIPModel(CLIPConfig()).named_parameters()]
    vision = [name for name in names if name.startswith(("vision", "visual"))]
    towers = {"vision": vision, "text": [name for name in names if name not in vision]}
    plain, hf = layers_by_tower(towers), layers_by_tower(towers, hf=True)
    assert "visual_projection.weight" in plain["vision"] and "visual_projection.weight" in hf["text"]
    assert not any("norm" in name for tower in hf.values() for name in tower)
    # 12 blocks of q, k, v, out, fc1, fc2; patches are an embedding; the two projections
    assert len(hf["text"]) == 12 * 6 + 2 and len(hf["vision"]) == 12 * 6


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


def test_the_reference_rule_stops_at_no_target_among_the_first_five():
    request = clip_request()
    model = Slug(stop="reference")(request)
    (batch,) = request.validation.forget.batches(99)
    with torch.no_grad():
        logits = Contrast().logits(model, batch)
    assert not (logits.topk(5).indices == 3).any()


def test_the_openclip_variant_takes_the_lowest_forget_accuracy_of_all_steps_tried():
    request, seen = clip_request(), []
    validate = request.validate.validate
    object.__setattr__(request.validate, "validate", lambda m, retain=True: _note(seen, validate, m, retain))
    model = Slug(variant="openclip")(request)
    edits = seen[2:]  # the first two are of the original, for the memory
    assert len(edits) % 10 == 0
    found = validate(model)
    assert (found.forget, -found.retain) == min((s.forget, -s.retain) for s in edits)


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
