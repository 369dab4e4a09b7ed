"""What SLUG's parts cost beside the least that they could, within one run, at the size of ViT-B/32 and of `quick`."""

import statistics

import pytest
import torch

from slugbench.methods._common import Allowance
from slugbench.methods._memory import remembering
from slugbench.methods.slug import Concept, Edit, Search, Slug, edited, is_layer, search_step, whole_step

from .trials import big_request, embedded_request, interleaved, seconds

REQUESTS = {"vit_b_32": big_request, "embedded": embedded_request}
LOGICAL = {"vit_b_32": 8, "embedded": 128}


pytestmark = pytest.mark.usefixtures("two_threads")


def bare(request, size):
    """One forward and backward pass over the forget and the retain samples, for the layers' gradients, and no more."""
    objective, model = request.objective, request.model
    layers = [p for name, p in model.named_parameters() if is_layer(name)]
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in layers:
        parameter.requires_grad_(True)
    generator = torch.Generator().manual_seed(0)
    for split, loss in ((request.forget, objective.forget_loss), (request.retain, objective.loss)):
        for batch in split.batches(size, generator):
            loss(model, batch).backward()
        model.zero_grad()
    for parameter in model.parameters():
        parameter.requires_grad_(True)


def prepare(request, slug):
    """SLUG's preparation alone; the forget gradients of the front."""
    kept = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Search, "run", lambda search: kept.update(search.concept.gradients) or [])
        slug.edits(request)
    return kept


@pytest.mark.parametrize("size", REQUESTS)
def test_preparing_costs_one_pass_over_the_samples(benchmark, size):
    request, batch = REQUESTS[size](), LOGICAL[size]
    plain, one, turns = benchmark.pedantic(
        interleaved,
        args=(
            lambda: bare(request, batch),
            lambda: prepare(request, Slug(batch=batch)),
            lambda: prepare(request, Slug(batch=batch, towers_in_turn=True)),
        ),
    )
    print(f"\n{size}: bare {plain:.3f} s, prepare {one / plain:.2f}x, one tower at a time {turns / plain:.2f}x")
    benchmark.extra_info.update(bare_s=plain, prepare=one / plain, in_turn=turns / plain)
    assert one < 1.15 * plain
    assert turns < 1.3 * plain or size == "embedded"  # there the short second pass is all calls and no work


def plain_search(request, layer, gradient):
    """A layer's step search that validates everything, with both towers, at every step; its trace."""

    def evaluate(step):
        with edited(request.model, [Edit(layer, step, gradient)]):
            scores = request.validate(request.model)
        return scores.forget - request.goal - scores.forget_se

    rho = whole_step(request.model.get_parameter(layer), gradient)  # to the last bit: a norm of torch's rounds differently
    return search_step(evaluate, rho, steps=Slug.steps)[1]


@pytest.mark.parametrize("size", REQUESTS)
def test_searching_costs_a_fraction_of_validating_everything(benchmark, size):
    """Each layer's step search, with equal decisions, and the whole search with the choice of the layer."""
    request = REQUESTS[size]()
    gradients = prepare(request, Slug(batch=LOGICAL[size]))
    # of large models a layer a tower is enough: every layer's search costs the same, everything ten times
    compared = gradients if size == "embedded" else [first_of(gradients, tower) for tower in ("visual.", "transformer.")]

    def search(memory):
        return Search(Slug(), request, Allowance(request), Concept(None, request.forget, gradients), memory, 0)

    def turn():
        """Seconds of a plain search (median over layers), of one of ours (likewise), and of our whole search."""
        with remembering(request.model) as memory:
            whole = seconds(search(memory).run)
        with remembering(request.model) as memory:
            steps = search(memory)
            steps.learn()
            times, traces = {}, {}
            for layer in gradients:
                with memory.without(layer):
                    times[layer] = seconds(lambda layer=layer: traces.update({layer: steps.smallest(layer)[2]}))
        plain, expected = {}, {}
        for layer in compared:
            plain[layer] = seconds(
                lambda layer=layer: expected.update({layer: plain_search(request, layer, gradients[layer])})
            )
            assert traces[layer] == expected[layer]
        return statistics.median(plain.values()), statistics.median(times.values()), whole

    turns = benchmark.pedantic(lambda: [turn() for _ in range(3 if size == "embedded" else 1)])
    steps, whole = (
        statistics.median(ratios)
        for ratios in zip(*((plain / ours, plain * len(gradients) / all_) for plain, ours, all_ in turns), strict=True)
    )
    print(f"\n{size}: {len(gradients)} layers of {turns[0][0]:.2f} s; steps {steps:.0f}x, whole search {whole:.1f}x faster")
    benchmark.extra_info.update(layers=len(gradients), plain_s=turns[0][0], steps=steps, whole=whole)
    assert steps > 20 and whole > 8


def first_of(gradients, tower):
    """The first layer of a tower that is searched."""
    return next(layer for layer in gradients if layer.startswith(tower))
