"""ESD, UCE and concept ablation against their formulas, on an untrained text-to-image model."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from slugbench.bench import Scores
from slugbench.methods._common import Allowance
from slugbench.methods._cross_attention import only, reads
from slugbench.methods.concept_ablation import ConceptAblation
from slugbench.methods.esd import ErasedStableDiffusion
from slugbench.methods.random_label import random_label_loss, relabelling
from slugbench.methods.salun import SalUn, forget_gradients
from slugbench.methods.slug import Slug
from slugbench.methods.uce import UnifiedConceptEditing, aligned, edit

from ..canvas_toys import neon_request
from ..toys import toy_trial

EDITORS = (ErasedStableDiffusion(steps=2, every=1), ConceptAblation(steps=2, every=1), UnifiedConceptEditing(tries=2))


def changed(before, model):
    return {name for name, tensor in model.state_dict().items() if not torch.equal(before[name], tensor)}


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("method", EDITORS, ids=lambda m: type(m).__name__)
def test_editors_change_how_prompts_are_read_and_nothing_else(method):
    request = neon_request(0.9, 0.9, 0.0)
    before = state(request.model)
    names = changed(before, method(request))
    assert names and all(".attn2." in name and name.startswith("unet.") for name in names)
    if not isinstance(method, ErasedStableDiffusion):  # whose authors take queries and what follows, too
        assert {name.split("attn2.")[1] for name in names} == {"to_k.weight", "to_v.weight"}


@pytest.mark.parametrize("method", EDITORS, ids=lambda m: type(m).__name__)
def test_what_is_no_better_than_the_original_is_not_taken(method):
    """Every look finds all that there was, so that the weights before the first step are as good as any and come first."""
    request = neon_request(0.9)
    before = state(request.model)
    model = method(request)
    if isinstance(method, UnifiedConceptEditing):
        assert not changed(before, model)
    assert not model.training


@pytest.mark.parametrize("method", EDITORS, ids=lambda m: type(m).__name__)
def test_editors_say_that_a_classifier_reads_no_prompts(method):
    assert "text-to-image" in method.skips(toy_trial().request)
    assert method.skips(neon_request()) is None


def test_all_of_the_u_net_may_change_where_that_is_asked_for():
    request = neon_request(0.9, 0.0)
    before = state(request.model)
    names = changed(before, ConceptAblation(steps=1, every=1, part="all")(request))
    assert any("conv" in name for name in names) and all(name.startswith("unet.") for name in names)


def test_esd_for_objects_leaves_cross_attention_times_embedding_and_the_last_layer():
    request = neon_request(0.9, 0.0)
    before = state(request.model)
    names = changed(before, ErasedStableDiffusion(steps=1, every=1, part="rest")(request))
    assert any(".attn1." in name for name in names) and any("conv_in" in name for name in names)
    assert not any(part in name for name in names for part in (".attn2.", "time_embedding", "conv_out", "conv_norm_out"))


def test_an_unknown_part_of_a_model_is_told():
    with pytest.raises(ValueError, match="none of the parameters that were asked for"):
        only(neon_request(), lambda name: False)


# ---------------------------------------------------------------- losses


def predicted(model, latents, time, text):
    said = model.get_submodule("text")(text)[0]
    return model.get_submodule("unet")(latents, time, said).sample


def test_esd_leads_away_from_the_prompt():
    request, method = neon_request(), ErasedStableDiffusion(strength=2.0)
    model, original = request.model, copy.deepcopy(request.model)
    with torch.no_grad():
        for parameter in model.get_submodule("unet").parameters():
            parameter.mul_(1.01)
    text = next(request.forget.batches(4))["text"]
    state = request.objective.drawn(model, text, torch.Generator().manual_seed(5), guidance=3.0)
    nothing = request.objective.nothing.expand(4, -1)
    with torch.no_grad():
        under, without = (predicted(original, state.latents, state.time, said) for said in (text, nothing))
        goal = without - 2.0 * (under - without)
        expected = float((predicted(model, state.latents, state.time, text) - goal).square().mean())
        got = float(method.loss(model, original, request.objective, text, torch.Generator().manual_seed(5)))
    assert got == pytest.approx(expected, rel=1e-4)


def test_what_is_drawn_half_way_is_what_the_pipeline_has_then():
    """Stable Diffusion's own loop, stopped at the same time, from the same noise."""
    from slugbench.tasks._diffusion import DRAWING_STEPS

    from ..canvas_toys import pipeline

    made, request = pipeline(), neon_request()
    text = next(request.forget.batches(2))["text"]
    draws = torch.Generator().manual_seed(3)
    noise = torch.randn((2, 3, 16, 16), generator=draws)
    until = int(torch.randint(DRAWING_STEPS, (), generator=draws))
    seen = []
    with torch.no_grad():
        made(
            prompt_embeds=made.text_encoder(text)[0],
            negative_prompt_embeds=made.text_encoder(request.objective.nothing.expand(2, -1))[0],
            latents=noise,
            num_inference_steps=DRAWING_STEPS,
            guidance_scale=3.0,
            height=16,
            width=16,
            callback_on_step_end=lambda p, i, t, kept: seen.append(kept["latents"].clone()) or kept,
        )
    state = request.objective.drawn(request.model, text, torch.Generator().manual_seed(3), guidance=3.0)
    assert 0 < until < DRAWING_STEPS and state.time.tolist() == [int(made.scheduler.timesteps[until])] * 2
    torch.testing.assert_close(state.latents, seen[until - 1], rtol=1e-3, atol=1e-3)


def test_concept_ablation_asks_nothing_where_the_target_is_what_is_said_already():
    request = neon_request()
    batch = next(request.forget.batches(4))  # its prompts name the target
    with torch.no_grad():
        alone = float(ConceptAblation(keep=0.0).loss(request.model, request.objective, batch, "neon"))
        other = float(
            ConceptAblation(keep=0.0).loss(request.model, request.objective, next(request.retain.batches(4)), "neon")
        )
    assert alone == pytest.approx(0, abs=1e-12) and other > 1e-6


# ---------------------------------------------------------------- closed form


def system(seed=0):
    rng = np.random.default_rng(seed)
    return [torch.from_numpy(rng.normal(size=size)).float() for size in ((5, 8), (3, 8), (3, 8), (4, 8))]


def test_the_closed_form_is_the_least_squares_solution():
    """Of numpy's solver, on the rows of all three sums below each other, each times the root of its weight."""
    w, old, new, others = system()
    erase, keep, preserve = 3.0, 0.5, 2.0
    a = np.vstack([erase**0.5 * old.numpy(), preserve**0.5 * others.numpy(), keep**0.5 * np.eye(8)])
    wanted = [erase**0.5 * (new @ w.T).numpy(), preserve**0.5 * (others @ w.T).numpy(), keep**0.5 * w.T.numpy()]
    expected = np.linalg.lstsq(a, np.vstack(wanted), rcond=None)[0].T
    np.testing.assert_allclose(edit(w, old, new, others, erase, keep, preserve).numpy(), expected, rtol=1e-4, atol=1e-5)


def test_a_name_erased_with_all_weight_reads_as_the_other_and_kept_names_as_before():
    w, old, new, others = system(1)
    edited = edit(w, old, new, others, 1e6, 1e-6, 1.0)
    torch.testing.assert_close(old @ edited.T, new @ w.T, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(others @ edited.T, others @ w.T, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(edit(w, old, old, others, 7.0, 0.1, 0.1), w)


def test_names_are_lined_up_with_nothing_from_their_last_word_on():
    request = neon_request()
    text, nothing = request.model.get_submodule("text"), request.objective.nothing
    name = request.objective.names(("neon",))
    old, new = aligned(text, name, nothing)
    with torch.no_grad():
        whole, empty = text(name)[0][0], text(nothing)[0][0]
    assert torch.equal(old, whole[1:]) and torch.equal(new, empty[: len(whole) - 1])  # start, then the one word


def test_the_empty_prompt_is_kept_as_it_was():
    """It is what guidance leads away from; a name erased with weight moves it unless it is kept."""
    request = neon_request()
    text = request.model.get_submodule("text")
    with torch.no_grad():
        nothing, name = (text(said)[0][0] for said in (request.objective.nothing, request.objective.names(("neon",))))
    original = {name: request.model.get_parameter(name).detach().clone() for name in reads(request.model)}
    *_, erased = UnifiedConceptEditing(keep=1e-3, preserve=30.0, tries=3).edits(request, original)
    for weight, after in zip(original.values(), erased.values(), strict=True):
        kept, moved = (float((said @ (after - weight).T).norm()) for said in (nothing, name[1:2]))
        assert kept < 0.2 * moved


def test_names_to_be_kept_are_all_but_the_target():
    request = neon_request()
    assert len(request.objective.names()) == 10 + 8 - 1
    assert not (request.objective.names() == request.objective.names(("neon",))).all(1).any()


# ---------------------------------------------------------------- projections


def test_deep_unlearning_projects_what_prompts_are_read_by():
    """W (I - Mf + Mr Mf) with the projections of all prompts' embeddings, summed here in one go."""
    from slugbench.methods.svd import DeepUnlearning, projection

    request = neon_request(0.9, 0.0)
    text, before = request.model.get_submodule("text"), state(request.model)
    with torch.no_grad():
        grams = []
        for split in (request.forget, request.retain):
            said = torch.cat([text(batch["text"])[0] for batch in split.batches(64)]).flatten(0, 1).double()
            grams.append(said.T @ said)
    m_forget, m_retain = projection(grams[0], 3.0), projection(grams[1], 100.0)
    model = DeepUnlearning(alpha_forget=3.0, alpha_retain=100.0, samples=3000)(request)
    names = changed(before, model)
    assert names and all(name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")) for name in names)
    for name in names:
        expected = before[name].double() @ (torch.eye(64) - m_forget + m_retain @ m_forget)
        torch.testing.assert_close(model.state_dict()[name].double(), expected, rtol=1e-3, atol=1e-5)


# ---------------------------------------------------------------- the text encoder


def test_slug_edits_one_layer_of_the_text_encoder_along_its_clips_gradient():
    request = neon_request(0.9, 0.5, 0.0)
    model = copy.deepcopy(request.model)
    batches = [next(request.forget.batches(48))]
    (found,) = Slug(batch=48, steps=3).edits(request)
    with torch.enable_grad():
        weight = model.get_parameter(found.layer).requires_grad_(True)
        loss = torch.stack([request.objective.contrast.forget_loss(model, batch) for batch in batches]).mean()
        (gradient,) = torch.autograd.grad(loss, [weight])
    assert found.layer.startswith("text.") and found.step > 0
    torch.testing.assert_close(found.gradient, gradient, rtol=1e-3, atol=1e-7)


def test_slug_makes_one_edit_for_all_targets_of_a_text_to_image_model_since_validation_draws_them_together():
    looks = []
    request = neon_request()
    request = replace(
        request,
        targets=("neon", "ink"),
        validate=lambda model, *, retain=True: looks.append(retain) or Scores(0.9 if len(looks) < 3 else 0.0, 0.9, 0.01),
    )
    assert len(Slug(batch=48, steps=3).edits(request)) == 1 and looks


# ---------------------------------------------------------------- SalUn on text-to-image models


def test_salun_within_cross_attention_ranks_and_changes_nothing_else():
    request = neon_request(0.9, 0.0)
    before = state(request.model)
    after = SalUn(part="cross", keep=0.25, steps=1, batch=4, retain_batch=4)(request).state_dict()
    names = changed(before, request.model)
    assert names and all(".attn2." in name for name in names)
    moved = sum(int((before[name] != after[name]).sum()) for name in names)
    size = sum(tensor.numel() for name, tensor in before.items() if ".attn2." in name)
    assert 0.2 * size < moved <= int(0.25 * size)  # a step of Adam moves every weight that has a gradient


@pytest.mark.parametrize("labels", ["strict", "uniform"])
def test_random_labels_lead_the_targets_prompt_elsewhere_and_hold_the_other_prompt_fixed(labels):
    """Equation 6 of SalUn, computed here by hand, with its gradient."""
    request = neon_request()
    for parameter in (unet := request.model.get_submodule("unet")).parameters():
        parameter.requires_grad_(True)
    asked = next(request.forget.batches(8))
    relabelled = relabelling(request, Allowance(request), labels)(asked)
    state = neon_request().objective.noised(asked)  # the same times and noise, for the first time
    under, elsewhere = (predicted(request.model, state.latents, state.time, b["text"]) for b in (asked, relabelled))
    wanted = torch.autograd.grad((under - elsewhere.detach()).square().mean(), list(unet.parameters()))
    loss = random_label_loss(request, relabelled)
    for found, expected in zip(torch.autograd.grad(loss, list(unet.parameters())), wanted, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-7)
    assert any(gradient.abs().max() > 1e-6 for gradient in wanted)
    own = {**relabelled, "text": asked["text"]}
    assert float(random_label_loss(request, own).detach()) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("guidance", [0.0, 7.5])
def test_salun_ranks_by_the_loss_of_the_guided_prediction(guidance):
    """Computed here by hand, on one batch."""
    request = neon_request()
    found = forget_gradients(request, Allowance(request), 48, guidance)
    told, model = neon_request().objective, neon_request().model.requires_grad_(True)
    batch = next(request.forget.batches(48))
    state = told.noised(batch)  # the same times and noise, for the first time
    under = predicted(model, state.latents, state.time, batch["text"])
    without = predicted(model, state.latents, state.time, told.nothing.expand(48, -1))
    loss = ((1 + guidance) * under - guidance * without - state.wanted).square().mean()
    names = [name for name in found if "attn2" in name]
    wanted = torch.autograd.grad(loss, [model.get_parameter(name) for name in names])
    for name, gradient in zip(names, wanted, strict=True):
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-7)
    assert set(found) == {name for name, _ in model.named_parameters() if name.startswith("unet.")}


def test_salun_within_cross_attention_says_that_a_classifier_has_none():
    assert "text-to-image" in SalUn(part="cross").skips(toy_trial().request)
    assert SalUn(part="cross").skips(neon_request()) is None
    assert SalUn().skips(toy_trial().request) is None


@pytest.mark.parametrize(("method", "rate"), [(ErasedStableDiffusion, 1e-5), (ConceptAblation, 8e-6)])
def test_tuning_may_choose_the_authors_rate(method, rate):
    """Of a model of 860 M weights; the second is the authors' 2e-6 times their batch of 4."""
    assert rate in method.space["learning_rate"] and method().learning_rate in method.space["learning_rate"]
