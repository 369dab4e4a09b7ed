"""How much SLUG's preparation holds at the size of ViT-B/32, where a quarter of the text tower is no layer."""

import dataclasses

import pytest
import torch

from slugbench.bench import TensorSplit
from slugbench.methods.slug import Search, Slug, is_layer

from ..benchmarks.trials import big_request
from .live_memory import LiveMemory

BATCH = 4


def peak(work):
    memory = LiveMemory()
    with memory:
        work()
    return memory.peak


def activations(request, towers):
    """What one physical batch's forward pass through some towers leaves for its backward pass."""
    for name, parameter in request.model.named_parameters():
        parameter.requires_grad_(is_layer(name))
    (batch,) = request.retain.batches(BATCH)
    held = peak(lambda: [request.objective.encode(request.model, batch, tower) for tower in towers])
    for parameter in request.model.parameters():
        parameter.requires_grad_(True)
    return held


def request_for_two():
    """Two targets, with a batch of pictures each."""
    request = big_request(forget=2 * BATCH, retain=BATCH, kept_forget=1, kept_retain=1)
    members = {"a": torch.arange(BATCH), "b": torch.arange(BATCH, 2 * BATCH)}
    return dataclasses.replace(request, targets=("a", "b"), forget=TensorSplit(request.forget.tensors, members))


def prepare(request, **parameters):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Search, "run", lambda search: [])
        Slug(batch=BATCH, **parameters).edits(request)


@pytest.mark.slow
@pytest.mark.parametrize(("in_turn", "limit"), [(False, 1.75), (True, 1.25)])
def test_preparing_holds_two_sets_of_the_layers_gradients_or_two_of_a_tower_at_a_time(in_turn, limit):
    request = request_for_two()
    weights = sum(parameter.numel() * parameter.element_size() for parameter in request.model.parameters())
    held = max(activations(request, towers) for towers in ([["vision"], ["text"]] if in_turn else [["vision", "text"]]))
    beyond = peak(lambda: prepare(request, towers_in_turn=in_turn)) - held
    print(f"beyond model and activations: {beyond / weights:.2f} times the parameters")
    assert beyond < limit * weights
    assert all(p.grad is None for p in request.model.parameters()) and torch.is_grad_enabled()
