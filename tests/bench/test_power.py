"""The numbers of a power table made by hand, and a simulation: what a plan says it can resolve, it resolves."""

import numpy as np
import pytest
from scipy.stats import wilcoxon

from slugbench.bench import power
from slugbench.bench.cli import main
from slugbench.bench.plan import expand, load_suite
from slugbench.bench.registry import REGISTRY, load

from ..toys import run_python

BOTH_TAILS = 1.95996 + 0.84162
"""Normal quantiles of 2.5 % and of 80 %: with them every number here can be had on paper."""


@pytest.mark.parametrize(("images", "points"), [(50, 28), (100, 20), (142, 17), (480, 9)])
def test_rates_on_different_images_resolve_what_the_table_says(images, points):
    assert round(100 * power.rate_difference(images)) == points
    # on paper, without the arcsine: z sqrt(2 p q / n); up to 1.5 % more, since the sine bends
    on_paper = BOTH_TAILS * np.sqrt(2 * 0.25 / images)
    assert 0.985 * on_paper < power.rate_difference(images) < on_paper


@pytest.mark.parametrize(("images", "points"), [(50, 18), (480, 5.7)])
def test_rates_on_the_same_images_resolve_what_the_table_says(images, points):
    found = 100 * power.paired_rate_difference(images, 0.2)
    assert found == pytest.approx(points, abs=0.5 if points == 18 else 0.05)  # as rounded in the table
    assert found == pytest.approx(100 * BOTH_TAILS * np.sqrt(0.2 / images), rel=1e-3)


@pytest.mark.parametrize(("sd", "points"), [(0.075, 2.8), (0.05, 1.9)])
def test_fifty_six_identities_resolve_what_the_table_says(sd, points):
    # the table is of a z test; Student's quantiles at 55 degrees of freedom are 2 % wider, Wilcoxon's test 2.3 % more
    assert 100 * power.paired_difference(56, sd, efficiency=1) == pytest.approx(points, rel=0.025)
    assert 100 * power.paired_difference(56, sd) == pytest.approx(points, rel=0.05)


@pytest.mark.parametrize(("difference", "sd", "units"), [(0.02, 0.075, 111), (0.01, 0.075, 442), (0.02, 0.05, 50)])
def test_how_many_are_needed_is_what_the_table_says(difference, sd, units):
    # Student's needs two more than the z test of the table, Wilcoxon's 3 / pi of that
    assert units < power.needed_for(difference, sd, efficiency=1) <= units + 2
    assert power.needed_for(difference, sd) == pytest.approx((units + 2) * np.pi / 3, abs=2)


def test_a_difference_and_how_many_it_needs_are_inverse():
    for n in (12, 60, 400):
        found = power.paired_difference(n, 0.05)
        assert power.needed_for(found * 1.0001, 0.05) == n  # a hair more, or rounding up makes it the next


def test_wilcoxon_finds_the_difference_in_four_of_five_simulated_plans():
    rng = np.random.default_rng(0)
    for n in (12, 56):
        differences = rng.normal(power.paired_difference(n, 0.075), 0.075, (1000, n))
        found = np.mean([wilcoxon(x).pvalue < 0.05 for x in differences])
        assert found == pytest.approx(0.8, abs=0.04)  # 3 standard errors of 1,000 plans


@pytest.mark.parametrize(("comparisons", "least"), [(1, 6), (10, 9), (28, 11)])
def test_the_fewest_requests_are_where_the_exact_test_first_reaches_holms_level(comparisons, least):
    """10 pairs of 5 methods, 28 of 8."""
    p = {n: wilcoxon(np.arange(1, n + 1), method="exact").pvalue for n in (least - 1, least)}
    assert p[least] <= 0.05 / comparisons < p[least - 1]
    assert power.needed_pairs(comparisons) == least


def test_too_few_resolve_nothing_at_all():
    assert power.paired_difference(5, 0.075) is None
    assert power.paired_rate_difference(12, 0.05) is None
    assert power.rate_difference(1) == 1.0
    assert power.needed_for(0.5, 0.05) == 6  # ten SD: found on any two, but never significant


@pytest.mark.parametrize(("images", "percent"), [(10, 25.9), (48, 6.0), (100, 3.0), (576, 0.5)])
def test_none_of_a_few_images_excludes_little(images, percent):
    assert 100 * power.excluded_by_none(images) == pytest.approx(percent, abs=0.06)


def test_a_plan_says_what_it_cannot_resolve(capsys):
    assert main(["plan", "standard"]) == 0
    said = capsys.readouterr().out
    assert "identities, single: 12 requests, 12 methods to compare" in said
    assert (
        "paired by request: 4.6 or 6.9 points; underpowered: 54 to 118 requests are needed for a difference of 2 points"
        in said
    )
    assert "slug against 11 others: can be significant (from 9 requests on)" in said
    assert (
        "identities, joint: 2 requests" in said
        and "underpowered: 9 requests are needed for any difference to be significant" in said
    )
    assert "of one request, paired by its 56 kept concepts: 2 or 2.9 points" in said
    assert "digits, samples: 6 requests" in said
    assert "forget accuracy, from all 576 images: 8.2 points, paired by image 5.2 points; 0 of 576 still allows 0.5%" in said


def test_controls_are_not_compared_and_every_set_of_parameters_is():
    load()
    suite = load_suite("quick").model_copy(update={"methods": ["slug", "ga", "ga:steps=3", "original", "mask"]})
    found = power.comparisons(expand(suite, device="cpu"))
    assert [(c.task, c.kind, c.requests) for c in found] == [
        ("identities", "joint", 2),
        ("identities", "single", 2),
        ("digits", "single", 2),
        ("canvas", "single", 2),
    ]
    assert all(c.methods == ("ga", "ga", "slug") for c in found)
    assert found[0].families == {"slug against 2 others": 2, "all 3 pairs": 3}


@pytest.mark.parametrize(
    ("name", "requests"), {"identities": ("joint-0", "hugo-alder"), "digits": ("class-3", "random-3")}.items()
)
def test_tasks_say_how_much_they_ask_as_they_will(name, requests):
    load()
    task = REGISTRY.create("task", name)
    for request in requests:
        asked = task.build(request, 0).questions
        wanted = {
            s: (int((asked["split"] == s).sum()), len(np.unique(asked["unit"][asked["split"] == s])))
            for s in set(asked["split"])
        }
        assert {split: tuple(size) for split, size in task.sizes(request).items()} == wanted


def test_planning_a_shipped_suite_imports_no_torch():
    code = "import sys; from slugbench.bench.cli import main; main(['plan', 'quick']); print('torch' in sys.modules)"
    assert run_python(code).splitlines()[-1] == "False"
