"""What differences a plan can resolve, said before anything is run: 80 % power, two-sided 5 %.

Four questions, each with its usual test:

    two methods' retained accuracy on the same requests   paired: Wilcoxon's signed-rank test
    two methods' forget accuracy                          rates, on different images or on the same ones (paired)
    how many requests before a test can say anything      exact Wilcoxon with Holm over a family of comparisons
    what 0 of n images still allows                       the exact upper bound of a rate

A plan has no measurements, so the spread of paired differences is assumed (`SDS`); with a finished run at hand, give its
own. Images count as independent: those of one concept are not, so that a request resolves less than its images say.

References:
    Cohen, Statistical Power Analysis for the Behavioral Sciences, 1988 (arcsine effect size of two rates).
    Connor, Sample Size for Testing Differences in Proportions for the Paired-Sample Design, 1987 (discordant pairs).
    Hodges and Lehmann, The Efficiency of Some Nonparametric Competitors of the t-Test, 1956 (Wilcoxon's 3 / pi).
    Holm, A Simple Sequentially Rejective Multiple Test Procedure, 1979.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from .errors import UsageError
from .plan import Cell, kind_of
from .registry import REGISTRY
from .types import Size, Sized

ALPHA, POWER = 0.05, 0.8
WILCOXON = 3 / math.pi
"""Of Wilcoxon's signed-rank test relative to Student's, on normal differences: what 100 requests tell the one, 95.5 tell
the other. No test of shifts falls below 0.864 of it, and on heavy tails Wilcoxon's is the better one."""
SDS = (0.05, 0.075)
"""Assumed SD of the paired difference of two methods' retained accuracy. Measured between concepts of a small CLIP: 0.05
after a slight random edit (10 % of a layer), 0.075 after a stronger one (20 %) or from another base model."""
DISCORDANT = 0.2
"""Assumed share of images on which one of two methods names the target and the other does not."""
WANTED = 0.02
"""The difference a comparison should resolve: leaderboards are two points apart and less."""
PRIMARY = "slug"
"""The method that all others are compared with first; a family of fewer comparisons than all pairs."""


# ---------------------------------------------------------------- one comparison


def paired_difference(n: int, sd: float, *, efficiency: float = WILCOXON) -> float | None:
    """The difference of two means over n paired units that is found with a chance of 80 %, in the units of `sd`.

    Args:
        n: pairs, such as requests that both methods ran on.
        sd: of the differences, greater than 0.
        efficiency: of the test relative to Student's paired t, for which give 1.

    Returns:
        None where no difference is ever found: of fewer than 6 pairs the smallest p-value is above 5 %.
    """
    from statsmodels.stats.power import TTestPower

    if n < needed_pairs(1):
        return None
    return sd * float(TTestPower().solve_power(nobs=n * efficiency, alpha=ALPHA, power=POWER))


def needed_for(difference: float, sd: float, *, efficiency: float = WILCOXON) -> float:
    """How many pairs find a difference: the inverse of `paired_difference`, and never fewer than can be significant."""
    return max(pairs_for(difference, sd, efficiency=efficiency), needed_pairs(1))


def pairs_for(difference: float, sd: float, *, alpha: float = ALPHA, efficiency: float = WILCOXON) -> float:
    """Pairs on which the normal theory behind `paired_difference` finds a mean difference; infinite for none."""
    from statsmodels.stats.power import TTestPower

    effect = abs(difference) / sd if sd > 0 else math.inf
    if effect < 1e-3:  # more than seven million pairs: the solver no longer converges
        return math.inf
    if effect > 5:  # as does not the other end, where two are enough
        return 2
    return math.ceil(float(TTestPower().solve_power(effect_size=effect, alpha=alpha, power=POWER)) / efficiency)


def rate_difference(n: int) -> float:
    """The difference of two rates, on n images each that are not the same, around a rate of one half: the worst case."""
    from scipy.optimize import brentq
    from statsmodels.stats.power import NormalIndPower
    from statsmodels.stats.proportion import proportion_effectsize

    effect = float(NormalIndPower().solve_power(nobs1=n, alpha=ALPHA, power=POWER))
    if effect >= proportion_effectsize(1.0, 0.0):
        return 1.0  # so few images do not even tell always from never
    return float(brentq(lambda d: proportion_effectsize(0.5 + d / 2, 0.5 - d / 2) - effect, 0.0, 1.0))


def paired_rate_difference(n: int, discordant: float = DISCORDANT) -> float | None:
    """The difference of two rates on the same n images, of which a share is decided differently (McNemar's test).

    Returns:
        None where it would exceed that share: not even all of it on one side is found.
    """
    from statsmodels.stats.power import NormalIndPower

    # with ratio 0 a test of one mean: of +1, -1 and 0 with variance `discordant` where the methods are alike
    effect = float(NormalIndPower().solve_power(nobs1=n, alpha=ALPHA, power=POWER, ratio=0))
    found = effect * math.sqrt(discordant)
    return found if found <= discordant else None


def excluded_by_none(n: int) -> float:
    """The rate above which 0 hits in n images are too few to be chance: the one-sided exact 95 % bound, 1 - 0.05^(1/n)."""
    return 1.0 - ALPHA ** (1 / n)


def needed_pairs(comparisons: int) -> int:
    """The fewest pairs of which the exact two-sided Wilcoxon test can be significant as one of so many comparisons.

    With all n differences of one sign p = 2 / 2^n, and Holm's first step asks for p <= 0.05 / comparisons.
    """
    return math.ceil(1 + math.log2(comparisons / ALPHA))


# ---------------------------------------------------------------- a plan


class Comparison(NamedTuple):
    """The requests of one kind of one task, which comparisons of methods have in common."""

    task: str
    kind: str
    """See `plan.kind_of`."""
    requests: int
    images: tuple[int, ...]
    """Of each request, those that forget accuracy is measured on; () where the task cannot say yet."""
    kept: tuple[int, ...]
    """Of each request, the concepts that retained accuracy is averaged over; () likewise."""
    methods: tuple[str, ...]
    """Those to be ranked, one entry for each set of parameters; no controls."""

    @property
    def families(self) -> dict[str, int]:
        """What is compared, and how many comparisons that is: each other method with `PRIMARY`, and each with each."""
        k = len(self.methods)
        sizes = {f"{PRIMARY} against {k - 1} others": k - 1} if PRIMARY in self.methods else {}
        sizes |= {f"all {k * (k - 1) // 2} pairs": k * (k - 1) // 2}
        return {name: size for name, size in sizes.items() if size}


def comparisons(cells: Sequence[Cell]) -> list[Comparison]:
    """The comparisons of a plan, in its order."""
    groups: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.task, str(cell.task_params), kind_of(cell.targets)), []).append(cell)
    return [_comparison(kind, own) for (_, _, kind), own in groups.items()]


def _comparison(kind: str, cells: Sequence[Cell]) -> Comparison:
    task = REGISTRY.create("task", cells[0].task, cells[0].task_params)
    requests = list(dict.fromkeys(cell.request for cell in cells))
    sizes = _sizes(task, requests) if isinstance(task, Sized) else []
    images, kept = tuple(size["forget"].images for size in sizes), tuple(size["retain"].units for size in sizes)
    ranked = {(cell.method, str(cell.method_params)) for cell in cells if not REGISTRY.get("method", cell.method).control}
    return Comparison(cells[0].task, kind, len(requests), images, kept, tuple(sorted(method for method, _ in ranked)))


def _sizes(task: Sized, requests: Sequence[str]) -> list[Mapping[str, Size]]:
    """Those of each request; [] where the task cannot say, for want of its data."""
    try:
        return [task.sizes(request) for request in requests]
    except UsageError:
        return []


def sentences(found: Comparison, sds: Sequence[float] = SDS) -> list[str]:
    """What a comparison resolves, a line each, differences in points (hundredths of an accuracy)."""
    n = found.requests
    lines = [f"{found.task}, {found.kind}: {_several(n, 'request')}, {_several(len(found.methods), 'method')} to compare"]
    lines.append(f"  retained accuracy, paired by request: {_means(n, sds, 'requests')}")
    if found.images:
        least, total = min(found.images), sum(found.images)
        lines.append(
            f"  of one request, paired by its {min(found.kept)} kept concepts: {_means(min(found.kept), sds, 'concepts')}"
        )
        lines.append(f"  forget accuracy, from {least} images of one request: {_rates(least)}")
        lines += [f"  forget accuracy, from all {total} images: {_rates(total)}"] if n > 1 else []
    for family, size in found.families.items():
        needed = needed_pairs(size)
        verdict = f"can be significant (from {needed} requests on)"
        if n < needed:
            verdict = f"underpowered: {needed} requests are needed for any difference to be significant"
        lines.append(f"  exact Wilcoxon with Holm, {family}: {verdict}")
    return lines


def assumptions(sds: Sequence[float] = SDS) -> list[str]:
    """What `sentences` takes for granted."""
    spread = " or ".join(_points(sd) for sd in sds)
    return [
        f"{POWER:.0%} power, two-sided {ALPHA:.0%}, for one comparison; nothing is measured yet, so these are assumed:",
        f"differences of two methods have an SD of {spread} points from request to request and concept to concept,",
        f"{DISCORDANT:.0%} of images are decided differently by two methods, and images are independent",
    ]


def _means(n: int, sds: Sequence[float], what: str) -> str:
    found = dict.fromkeys(paired_difference(n, sd) for sd in sds)
    said = " or ".join("no difference" if d is None else _points(d) for d in found) + " points" * (None not in found)
    needed = [k for k in (needed_for(WANTED, sd) for sd in sds) if k > n]
    if not needed:
        return said
    wanted = " to ".join(map(str, dict.fromkeys(needed)))
    return f"{said}; underpowered: {wanted} {what} are needed for a difference of {_points(WANTED)} points"


def _rates(n: int) -> str:
    paired = paired_rate_difference(n)
    same = "none" if paired is None else f"{_points(paired)} points"
    allowed = f"0 of {n} still allows {excluded_by_none(n):.1%}"
    return f"{_points(rate_difference(n))} points, paired by image {same}; {allowed}"


def _several(n: int, what: str) -> str:
    return f"{n} {what}{'s' * (n != 1)}"


def _points(share: float) -> str:
    return f"{100 * share:.1f}".removesuffix(".0")
