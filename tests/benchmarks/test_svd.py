"""What a layer's projection costs by its Gram matrix, against decomposing all of its inputs as the authors do, and what
a grid of alphas costs, against one pair after another. Rivals are timed in turns within one run and on two threads.
"""

import os
import statistics
import time
from itertools import product

import pytest
import torch

from slugbench.methods.svd import (
    ALPHA_FORGET,
    ALPHA_RETAIN,
    accumulate,
    project_weight,
    projection,
    projections,
    stacked_rests,
)

D, ALPHA = 2304, 100.0
"""A 3 x 3 convolution of 256 channels."""
CHUNK = 2048
"""Inputs that a batch brings."""
LONG = "SLUGBENCH_LONG_BENCHMARKS"


pytestmark = pytest.mark.usefixtures("two_threads")


def inputs(n):
    """(n, D) float32 whose power falls over five decades, in no direction of the axes."""
    generator = torch.Generator().manual_seed(0)
    basis, _ = torch.linalg.qr(torch.randn(D, D, generator=generator))
    return (torch.randn(n, D, generator=generator) * torch.logspace(0, -2.5, D)) @ basis


def by_gram(x_ND):
    total = torch.zeros(D, D, dtype=torch.float64)
    for chunk in x_ND.split(CHUNK):
        accumulate(total, chunk)
    return projection(total.triu() + total.triu(1).T, ALPHA)


def by_svd(x_DN):
    """As the authors' code: float32, and the right singular vectors come along."""
    u, s, _ = torch.linalg.svd(x_DN, full_matrices=False)
    r = s.square() / s.square().sum()
    return (u * (ALPHA * r / ((ALPHA - 1) * r + 1))) @ u.T


long = pytest.mark.skipif(LONG not in os.environ, reason=f"the decomposition takes minutes; set ${LONG} to run it")


@pytest.mark.slow
@pytest.mark.parametrize(("n", "least"), [(10_000, 3.5), pytest.param(30_000, 6.0, marks=long)])
def test_gram_matrices_are_several_times_faster_than_stored_inputs(benchmark, n, least):
    x, seconds = inputs(n), {by_gram: [], by_svd: []}

    def timed(function, given):
        started = time.perf_counter()
        m = function(given)
        seconds[function].append(time.perf_counter() - started)
        return m

    by_gram(x[:CHUNK])  # the libraries' first call
    benchmark.pedantic(timed, args=(by_gram, x), rounds=2)
    reference = timed(by_svd, x.T.contiguous())  # once: a minute for 10,000 inputs
    ours = timed(by_gram, x)
    ratio = seconds[by_svd][0] / statistics.median(seconds[by_gram])
    benchmark.extra_info.update(svd_s=seconds[by_svd][0], gram_s=statistics.median(seconds[by_gram]), ratio=ratio)
    print(f"\nn = {n}: svd {seconds[by_svd][0]:.1f} s, gram {statistics.median(seconds[by_gram]):.2f} s, ratio {ratio:.1f}")
    torch.testing.assert_close(ours, reference.double(), atol=2e-6, rtol=0)  # float32 svd: 4e-7 of error were measured
    assert ratio >= least


def test_a_grid_costs_a_third_of_its_pairs(benchmark):
    """25 pairs of alphas for one layer, 64 x 576; each pair for itself forms two projections."""
    x = inputs(4000)[:, :1152].double()
    retain, forget = (part.T @ part for part in (x[:, :576], x[:, 576:]))
    weight, seconds = torch.randn(64, 576, generator=torch.Generator().manual_seed(1)), {"grid": [], "pairs": []}

    def turn():
        started = time.perf_counter()
        rests = {"w": stacked_rests(weight, retain, ALPHA_RETAIN)}
        together = [found["w"] for found in projections({"w": weight}, rests, {"w": forget.clone()}, ALPHA_FORGET)]
        seconds["grid"].append(time.perf_counter() - started)
        started = time.perf_counter()
        apart = [
            project_weight(weight, m_forget=projection(forget, f), m_retain=projection(retain, r))
            for f, r in product(ALPHA_FORGET, ALPHA_RETAIN)
        ]
        seconds["pairs"].append(time.perf_counter() - started)
        return together, apart

    together, apart = benchmark.pedantic(turn, rounds=3)
    grid, pairs = (statistics.median(taken) for taken in seconds.values())
    benchmark.extra_info.update(grid_s=grid, pairs_s=pairs, ratio=pairs / grid)
    print(f"\ngrid {grid:.2f} s, pairs {pairs:.2f} s, ratio {pairs / grid:.1f}")
    torch.testing.assert_close(torch.stack(together), torch.stack(apart), atol=1e-5, rtol=0)
    assert pairs / grid >= 3
