import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slugbench.methods._common import Allowance, mean_gradients
from slugbench.methods.salun import SalUn, random_label_loss, saliency_mask

from ..toys import toy_trial
from .toy_clip import Contrast, accuracy, changed, clip_request, pictures, trained

values = st.integers(-3, 3).map(float)  # few values, so many ties


@given(st.lists(values, min_size=2, max_size=30), st.floats(0.01, 1), st.integers(1, 29))
def test_exactly_the_share_asked_for_is_salient_and_it_is_the_largest(numbers, keep, cut):
    first, second = torch.tensor(numbers[:cut]), torch.tensor(numbers[cut:])
    mask = saliency_mask({"a": first, "b": second}, keep)
    kept = torch.cat([first[mask["a"]], second[mask["b"]]]).abs()
    dropped = torch.cat([first[~mask["a"]], second[~mask["b"]]]).abs()
    assert len(kept) == int(len(numbers) * keep)
    assert not len(kept) or not len(dropped) or kept.min() >= dropped.max()


def test_saliency_is_ranked_over_all_layers_together():
    mask = saliency_mask({"loud": torch.tensor([[5.0, -4.0]]), "quiet": torch.tensor([0.1, 0.2])}, 0.5)
    assert mask["loud"].all() and mask["loud"].shape == (1, 2) and not mask["quiet"].any()


def test_gradients_of_opposite_batches_cancel_before_their_size_is_taken():
    model = torch.nn.Linear(1, 1, bias=False)
    batches = [{"x": torch.tensor([[1.0]])}, {"x": torch.tensor([[-1.0]])}]
    found = mean_gradients(model, ["weight"], lambda m, b: m(b["x"]).sum(), batches)
    assert found["weight"].item() == 0


def test_the_mask_is_that_of_the_forget_gradient_and_what_it_leaves_out_keeps_its_bits():
    request = clip_request()
    names = [name for name, _ in trained().named_parameters()]
    batches = Allowance(clip_request()).batches(request.forget, 32)
    mask = saliency_mask(mean_gradients(trained(), names, Contrast().forget_loss, batches), 0.3)
    before = {name: p.detach().clone() for name, p in request.model.named_parameters()}
    model = SalUn(keep=0.3)(request)
    for name, after in model.named_parameters():
        assert torch.equal(after[~mask[name]], before[name][~mask[name]]), name
        assert not mask[name].any() or not torch.equal(after, before[name]), name


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_no_optimiser_moves_what_is_masked(decay, monkeypatch):
    from slugbench.methods import _common

    monkeypatch.setattr(
        _common, "_optimizer", lambda _, p, rate, __: torch.optim.SGD(p, lr=rate, momentum=0.9, weight_decay=decay)
    )
    request = toy_trial().request
    before = {name: p.detach().clone() for name, p in request.model.named_parameters()}
    model = SalUn(keep=0.25)(request)
    same = sum((p == before[name]).sum().item() for name, p in model.named_parameters())
    total = sum(p.numel() for p in model.parameters())
    assert same >= total - int(total * 0.25) and same < total


def test_the_target_is_forgotten_and_the_rest_is_kept():
    model = SalUn()(clip_request())
    assert accuracy(model, pictures(9, 48, [3])) < 0.5
    assert accuracy(model, pictures(9, 48, [0, 1, 2, 4, 5, 6, 7])) > 0.7
    assert "logit_scale" not in changed(model)  # 1 - cos does not depend on it, so no mask holds it


def test_no_picture_keeps_its_label():
    request, seen = clip_request(), []
    relabel = request.objective.relabel

    def note(batch, generator):
        seen.append((batch["label"], relabel(batch, generator)["label"]))
        return relabel(batch, generator)

    request.objective.relabel = note
    SalUn(steps=4, every=2)(request)
    assert all((true != drawn).all() for true, drawn in seen)
    assert not torch.equal(seen[0][1], seen[1][1])  # drawn anew at every step


def test_on_clip_random_labels_are_learned_by_the_zero_shot_classifier():
    request = clip_request()
    (batch,) = request.forget.batches(24)
    wrong = request.objective.relabel(batch, torch.Generator().manual_seed(0))
    log_p = request.objective.logits(request.model, batch).log_softmax(1)
    by_hand = -log_p[torch.arange(24), wrong["label"]].mean()
    torch.testing.assert_close(random_label_loss(request, wrong), by_hand)


@pytest.mark.parametrize("keep", [0, -0.5, 1.5])
def test_a_share_that_is_none_is_refused(keep):
    with pytest.raises(ValueError, match="above 0, at most 1"):
        SalUn(keep=keep)
