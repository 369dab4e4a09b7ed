import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.optimizer import register_optimizer_step_post_hook

from slugbench.bench import Scores
from slugbench.methods import _common, salun
from slugbench.methods._common import Allowance, fine_tune, mean_gradients
from slugbench.methods.random_label import RandomLabel
from slugbench.methods.salun import SalUn, forget_gradients, saliency_mask
from slugbench.methods.salun_slug import SalUnSlug

from ..toys import toy_trial
from .toy_clip import Contrast, accuracy, changed, clip_request, pictures, trained

# Not here: of the diffusion objective (its steps see different pictures, its target carries no gradient, guidance uses
# the null prompt, only the UNet is ranked), as there is no such task yet; and retraining at UA 5.2 and TA 94.3 for 10 %
# of CIFAR-10, which any comparison with the paper's numbers has to reach first, as there is no CIFAR-10 task yet.

values = st.integers(-3, 3).map(float)  # few values, so many ties


@given(st.lists(values, min_size=2, max_size=30), st.floats(0.01, 1), st.integers(1, 29))
def test_exactly_the_share_asked_for_is_salient_and_it_is_the_largest(numbers, keep, cut):
    first, second = torch.tensor(numbers[:cut]), torch.tensor(numbers[cut:])
    mask = saliency_mask({"a": first, "b": second}, keep)
    kept = torch.cat([first[mask["a"]], second[mask["b"]]]).abs()
    dropped = torch.cat([first[~mask["a"]], second[~mask["b"]]]).abs()
    assert len(kept) == int(len(numbers) * keep)
    assert not len(kept) or not len(dropped) or kept.min() >= dropped.max()


@given(st.lists(st.floats(allow_nan=False, width=32), min_size=1, max_size=30, unique_by=abs), st.floats(0.01, 1))
def test_the_mask_is_that_of_the_reference_where_nothing_ties(numbers, keep):
    gradient = torch.tensor(numbers)
    ranks = torch.argsort(torch.argsort(-gradient.abs()))  # as SalUn's code ranks
    assert torch.equal(saliency_mask({"a": gradient}, keep)["a"], ranks < int(len(numbers) * keep))


def test_saliency_is_ranked_over_all_layers_together():
    mask = saliency_mask({"loud": torch.tensor([[5.0, -4.0]]), "quiet": torch.tensor([0.1, 0.2])}, 0.5)
    assert mask["loud"].all() and mask["loud"].shape == (1, 2) and not mask["quiet"].any()


def test_layers_of_a_real_model_keep_unequal_shares():
    request = clip_request()
    mask = saliency_mask(forget_gradients(request, Allowance(request), 32), 0.5)
    shares = {name: m.float().mean().item() for name, m in mask.items()}
    assert min(shares.values()) < 0.3 and max(shares.values()) > 0.8
    assert "logit_scale" not in mask and len(mask) == len(list(trained().parameters())) - 1
    total = sum(m.numel() for m in mask.values())
    assert sum(m.sum().item() for m in mask.values()) == int(total * 0.5)  # of both towers in one ranking


def test_a_mask_takes_a_byte_a_weight_and_a_gradient_that_is_no_number_is_refused():
    mask = saliency_mask({"a": torch.ones(3, 5), "b": torch.ones(2)}, 0.5)
    assert mask["a"].dtype == torch.bool and mask["a"].untyped_storage().nbytes() == 17
    with pytest.raises(ValueError, match="not a number"):
        saliency_mask({"a": torch.tensor([1.0, torch.nan])}, 0.5)


def test_gradients_of_opposite_batches_cancel_before_their_size_is_taken():
    model = torch.nn.Linear(1, 1, bias=False)
    batches = [{"x": torch.tensor([[1.0]])}, {"x": torch.tensor([[-1.0]])}]
    found = mean_gradients(model, ["weight"], lambda m, b: m(b["x"]).sum(), batches)
    assert found["weight"].item() == 0


def normed(request):
    """The request with a network that holds batch norms, and so buffers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [torch.nn.Flatten(), torch.nn.Linear(16, 12), torch.nn.BatchNorm1d(12), torch.nn.ReLU()]
        model = torch.nn.Sequential(*layers, torch.nn.Linear(12, 8)).eval()
    return dataclasses.replace(request, model=model)


def state(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def test_the_mask_pass_moves_neither_weights_nor_statistics_and_steps_no_optimiser():
    request, steps = normed(toy_trial().request), []
    before = state(request.model)
    hook = register_optimizer_step_post_hook(lambda *_: steps.append(1))
    forget_gradients(request, Allowance(request), 10)
    hook.remove()
    assert not steps and not request.model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in request.model.state_dict().items())
    SalUn()(request)  # while learning moves the statistics, as in the paper's code
    assert not torch.equal(request.model.state_dict()["2.running_mean"], before["2.running_mean"])


def test_the_mask_is_that_of_the_forget_gradient_and_what_it_leaves_out_keeps_its_bits():
    request = clip_request()
    names = [name for name, _ in trained().named_parameters() if name != "logit_scale"]
    batches = Allowance(clip_request()).batches(request.forget, 32)
    mask = saliency_mask(mean_gradients(trained(), names, Contrast().forget_loss, batches), 0.3)
    before = state(request.model)
    model = SalUn(keep=0.3)(request)
    for name, after in model.named_parameters():
        if name == "logit_scale":
            continue
        assert torch.equal(after[~mask[name]], before[name][~mask[name]]), name
        assert not mask[name].any() or not torch.equal(after, before[name]), name


# what SLUG's and SalUn's codes use, with a weight decay of which every step tells
OPTIMISERS = {
    "sgd": lambda p, rate: torch.optim.SGD(p, lr=rate, momentum=0.9, weight_decay=0.1),
    "adam": lambda p, rate: torch.optim.Adam(p, lr=rate, weight_decay=0.1),
    "adamw": lambda p, rate: torch.optim.AdamW(p, lr=rate, weight_decay=0.1),
}


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("method", [SalUn(keep=0.25), SalUnSlug(keep=0.25)], ids=["salun", "salun_slug"])
@pytest.mark.parametrize("make", [clip_request, lambda: normed(toy_trial().request)], ids=["clip", "classifier"])
def test_no_optimiser_moves_what_is_masked(make, method, optimiser, monkeypatch):
    monkeypatch.setattr(_common, "_optimizer", lambda _, p, rate, __: OPTIMISERS[optimiser](p, rate))
    request = make()
    before = state(request.model)
    model = method(request)
    same = sum((p == before[name]).sum().item() for name, p in model.named_parameters())
    total = sum(p.numel() for p in model.parameters())
    assert total - int(total * 0.25) <= same < total


@pytest.mark.parametrize(("rate", "factor"), [(0.013, 0.892), (0.1, 0.415)])
def test_legacy_shrinks_masked_weights_by_what_the_code_did(rate, factor):
    """1,760 steps of SGD with momentum .9 and weight decay 5e-4; (1 - 5e-4 lr / .1)^1760 in the limit of small lr."""
    request = normed(toy_trial().request)
    budget = dataclasses.replace(request.budget, max_steps=1760, max_reads=10**6)
    request = dataclasses.replace(request, budget=budget, validate=lambda model, retain=True: Scores(0.0, 1.0, 0.0))
    mask = saliency_mask(forget_gradients(request, Allowance(request), 32), 0.1)
    before = state(request.model)
    model = SalUn(legacy=True, keep=0.1, learning_rate=rate, steps=1760, every=1760)(request)
    for name in ("1.weight", "4.weight"):
        ratio = model.state_dict()[name][~mask[name]] / before[name][~mask[name]]
        torch.testing.assert_close(ratio, torch.full_like(ratio, factor), rtol=2e-3, atol=0)
    assert not model.get_parameter("1.weight")._backward_hooks  # nothing is left on the model


@pytest.mark.parametrize("masks", [{}, {"visual.proj": torch.ones(32, 16, dtype=torch.bool)}, {"module.logit_scale": True}])
def test_a_parameter_without_a_mask_is_an_error_and_not_trained_in_full(masks):
    with pytest.raises(ValueError, match=r"no mask for .*logit_scale"):
        fine_tune(clip_request(), lambda _: iter(()), learning_rate=1.0, steps=1, every=1, stop=False, masks=masks)


@pytest.mark.parametrize("labels", ["strict", "uniform"])
@pytest.mark.parametrize("schedule", ["mixed", "two_phase", "joint"])
@pytest.mark.parametrize("make", [clip_request, lambda: normed(toy_trial().request)], ids=["clip", "classifier"])
def test_without_a_mask_it_is_random_labelling_bit_for_bit(make, schedule, labels):
    fields = {"schedule": schedule, "labels": labels, "steps": 14, "weight_decay": 0.01}
    ours, plain, half = SalUn(keep=1, **fields)(make()), RandomLabel(**fields)(make()), SalUn(**fields)(make())
    assert all(torch.equal(tensor, plain.state_dict()[name]) for name, tensor in ours.state_dict().items())
    assert not all(torch.equal(tensor, plain.state_dict()[name]) for name, tensor in half.state_dict().items())


def test_top_weights_forget_at_least_as_well_as_random_and_as_bottom_ones(monkeypatch):
    """A tenth of the weights, five steps, no choice by validation: .39, .89 and .90 of the pictures are still known."""

    def flipped(gradients, keep):
        largest = saliency_mask(gradients, 1 - keep)
        return {name: ~mask for name, mask in largest.items()}

    def shuffled(gradients, keep):
        generator = torch.Generator().manual_seed(0)
        return saliency_mask({name: torch.rand(g.shape, generator=generator) for name, g in gradients.items()}, keep)

    left = {}
    for which, mask in {"top": saliency_mask, "random": shuffled, "bottom": flipped}.items():
        monkeypatch.setattr(salun, "saliency_mask", mask)
        models = [SalUn(keep=0.1, steps=5, every=5)(clip_request((name,))) for name in (1, 3, 5)]
        left[which] = sum(accuracy(m, pictures(9, 48, [name])) for m, name in zip(models, (1, 3, 5), strict=True)) / 3
    assert left["top"] <= left["random"] <= left["bottom"] and left["top"] < left["bottom"]


@pytest.mark.parametrize("method", [SalUn(), SalUnSlug()], ids=["salun", "salun_slug"])
def test_the_target_is_forgotten_and_the_rest_is_kept(method):
    model = method(clip_request())
    assert accuracy(model, pictures(9, 48, [3])) < 0.5
    assert accuracy(model, pictures(9, 48, [0, 1, 2, 4, 5, 6, 7])) > 0.7


def test_the_temperature_of_a_clip_never_changes():
    assert "logit_scale" not in changed(SalUn(keep=1, weight_decay=0.1)(clip_request()))
    assert "logit_scale" not in changed(RandomLabel(weight_decay=0.1)(clip_request()))


def test_slugs_comparison_ascends_forgetting_and_then_fine_tunes():
    request, asked = clip_request(), []
    forget_loss, loss = request.objective.forget_loss, request.objective.loss
    request.objective.forget_loss = lambda m, b: asked.append("forget") or forget_loss(m, b)
    request.objective.loss = lambda m, b: asked.append("retain") or loss(m, b)
    SalUnSlug(epochs=2, batch=12, retain_batch=100)(request)
    assert asked == ["forget"] * 2 + ["forget", "forget", "retain", "retain"] * 2  # the mask's pass, then two epochs


@pytest.mark.parametrize("method", [SalUn, SalUnSlug])
@pytest.mark.parametrize("keep", [0, -0.5, 1.5])
def test_a_share_that_is_none_is_refused(keep, method):
    with pytest.raises(ValueError, match="above 0, at most 1"):
        method(keep=keep)
