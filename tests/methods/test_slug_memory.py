"""How much SLUG's preparation holds at the size of ViT-B/32, where a quarter of the text tower is no layer."""

import pytest
import torch

from slugbench.methods.slug import Search, Slug, is_layer

from ..benchmarks.trials import big_request
from .live_memory import LiveMemory

BATCH = 4


def peak(work):
    memory = LiveMemory()
    with memory:
        work()
    return memory.peak


def activations(request):
    """What one physical batch's forward pass leaves for its backward pass."""
    for name, parameter in request.model.named_parameters():
        parameter.requires_grad_(is_layer(name))
    (batch,) = request.forget.batches(BATCH)
    held = peak(lambda: request.objective.loss(request.model, batch))
    for parameter in request.model.parameters():
        parameter.requires_grad_(True)
    return held


def prepare(request, **parameters):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Search, "run", lambda search: None)
        Slug(batch=BATCH, **parameters).edits(request)


@pytest.mark.slow
@pytest.mark.parametrize(("in_turn", "limit"), [(False, 1.75), (True, 1.25)])
def test_preparing_holds_two_sets_of_the_layers_gradients_or_two_of_a_tower_at_a_time(in_turn, limit):
    request = big_request(forget=BATCH, retain=2 * BATCH, kept_forget=1, kept_retain=1)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in request.model.parameters())
    beyond = peak(lambda: prepare(request, towers_in_turn=in_turn)) - activations(request)
    print(f"beyond model and activations: {beyond / weights:.2f} times the parameters")
    assert beyond < limit * weights
    assert all(p.grad is None for p in request.model.parameters()) and torch.is_grad_enabled()
