"""What the requests of a board allow to say about the order of its methods, and what they do not.

Nothing here is one number to rank by: pairwise differences with tests that know their limits, who is beaten on every axis
at once, how the worst requests look, and how much of an order is owed to the weights. Sampling units are requests,
averaged over base models; a cell that did not finish, or lacks a value, has the worst value seen on the board.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from slugbench.bench.power import ALPHA, needed_pairs, pairs_for

from .glossary import number
from .statistics import MIN_REQUESTS, by_request, crossed, interval, percentile_interval, resampled_means
from .tables import READ, Board, Line, distance_per_cell, untuned
from .validity import BAD, MIN_ROWS, RULES

REFERENCE = "slug"
"""The primary family is this method against each other one."""
PRIMARY_REQUESTS = 10
"""Fewest paired requests on which the primary family is tested at all."""
ROPE = 0.01
"""Region of practical equivalence: one point of distance to the oracle either way."""
SURE = 0.95
"""Posterior probability from which on a verdict is given."""
DRAWS = 2_000
"""Of bootstraps here: a probability then has a standard error of at most 0.011."""
BYTES = ("peak_device_bytes", "peak_rss_bytes")
COST = {"t_total", *BYTES}


@dataclass(frozen=True)
class Grid:
    """A number of every method on every request and base model, without gaps."""

    methods: tuple[str, ...]
    requests: tuple[str, ...]
    values_MRB: np.ndarray
    """Methods x requests x base models; one column for all base models where they did not run the same requests."""

    def per_request(self) -> pd.DataFrame:
        """Requests x methods, base models averaged."""
        return pd.DataFrame(self.values_MRB.mean(axis=2).T, index=list(self.requests), columns=list(self.methods))


class Posterior(NamedTuple):
    """Probabilities that a method is nearer to the oracle than the reference by more than `ROPE`, about as near, farther."""

    nearer: float
    equal: float
    farther: float

    @property
    def verdict(self) -> str:
        """What it says, from `SURE` on."""
        words = {"nearer": self.nearer, "practically equal": self.equal, "farther": self.farther}
        return next((word for word, p in words.items() if p >= SURE), "undecided")


class Pair(NamedTuple):
    """The reference against one method, in distance to the oracle."""

    method: str
    difference: float
    """The method's distance less the reference's: above 0 the reference is nearer to the oracle."""
    low: float
    high: float
    p_holm: float
    rope: Posterior
    needed: float | None
    """Requests that a difference of this size asks for; null where the tests or the posterior say something already."""


class Friedman(NamedTuple):
    """Whether any of several methods differs from the others."""

    statistic: float
    """Iman and Davenport's F."""
    p: float
    mean_ranks: dict[str, float]
    """1 is best."""


class Standing(NamedTuple):
    """One method among the others."""

    method: str
    non_dominated: float | None
    """Share of bootstrap draws in which no other is as good on all axes and better on one; null for few requests."""
    dominated_by: tuple[str, ...]
    """By the means over requests."""
    volume: float
    volume_low: float | None
    volume_high: float | None
    empty_on: tuple[str, ...]
    """Axes on which it is no better than the worst control, so that its volume is 0."""
    iqm: float
    iqm_low: float | None
    iqm_high: float | None
    tail: float
    """Mean distance over the worst fifth of the requests."""
    worst: float
    worst_request: str
    ranks: tuple[int, int]
    """Between which 95 % of random weightings of the axes put it."""


class Without(NamedTuple):
    """The order by hypervolume without one axis, against the order with all."""

    axis: str
    tau: float
    turned: tuple[tuple[str, str], ...]
    """Pairs (first with all axes, first without this one) that are resolved both times, the other way round."""


@dataclass(frozen=True)
class Order:
    """All that can be said about a board's order."""

    grid: Grid
    status: Mapping[str, str]
    """Of each method: whether it is valid, and its failure classes."""
    axes: tuple[str, ...]
    reference: str | None
    primary: str
    """What the primary family says, or why it says nothing."""
    pairs: tuple[Pair, ...]
    friedman: Friedman | None
    p_values: pd.DataFrame | None
    """Methods x methods, Holm over all pairs; null where that many pairs cannot be resolved."""
    cliques: tuple[tuple[str, ...], ...]
    """Methods next to each other in mean rank that no pair of tests tells apart."""
    all_pairs: str
    standings: tuple[Standing, ...]
    without: tuple[Without, ...]
    tau: tuple[float, float, float] | None
    """Kendall's tau of random weightings to the board's order: 2.5 %, median, 97.5 %; null for fewer than two methods."""


@lru_cache(maxsize=32)  # by identity: several reports lay out the same boards
def order(board: Board) -> Order | None:
    """All of it; nothing where no method of the board has a distance to the oracle."""
    lines = [line for line in (*board.ranked, *board.unranked) if _ran(board, line)]
    if not board.axes or not lines:
        return None
    distance = _grid(board, [x.method for x in lines], lambda part: distance_per_cell(part, board.axes))
    if distance is None:
        return None
    tested = contestants(distance.methods)
    reference = reference_of(tested)
    pairs = primary_family(distance, reference, tested) if reference else ()
    table = distance.per_request()[list(tested)]
    p_values = all_pairs(table)
    enough = p_values is not None or len(table) >= PRIMARY_REQUESTS
    friedman = iman_davenport(table) if len(tested) > 2 and enough else None
    losses, axes = _losses(board, distance.methods)
    by_axes = _normalised(board, losses, axes)
    return Order(
        grid=distance,
        status={line.method: line.status for line in lines},
        axes=axes,
        reference=reference,
        primary=_primary_sentence(reference, pairs, len(table), len(tested)),
        pairs=pairs,
        friedman=friedman,
        p_values=p_values,
        cliques=cliques(friedman.mean_ranks, p_values) if friedman and p_values is not None else (),
        all_pairs=_all_pairs_sentence(len(table), len(tested)),
        standings=_standings(distance, losses, by_axes, axes),
        without=_without(distance.methods, by_axes, axes),
        tau=_agreement(by_axes, [distance.methods.index(x.method) for x in board.ranked if x.method in distance.methods]),
    )


def contestants(methods: Sequence[str]) -> tuple[str, ...]:
    """The methods to be tested against each other: of one that was tuned, the tuned variant alone."""
    tuned = {untuned(m) for m in methods if untuned(m) != m}
    return tuple(m for m in methods if m not in tuned)


def reference_of(methods: Sequence[str]) -> str | None:
    """The reference's label: of several variants the plainest one by name, never the one that came out best."""
    variants = [m for m in methods if untuned(m).split("(")[0] == REFERENCE]
    return min(variants, key=lambda m: (untuned(m) != REFERENCE, m), default=None)


# ---------------------------------------------------------------- tests


def wilcoxon(differences_R: np.ndarray) -> float:
    """Two-sided p-value of Wilcoxon's signed-rank test, exact also where differences tie; 1 where all are 0.

    Exact up to 16 differences with ties and up to 50 without; beyond, the normal approximation.
    """
    from scipy import stats

    size = np.round(np.abs(differences_R[differences_R != 0]), 12)  # 0.3 - 0.2 and 0.2 - 0.1 tie
    if not len(size):
        return 1.0
    signed = np.sign(differences_R[differences_R != 0]) * size
    method: Literal["exact", "asymptotic"] | stats.PermutationMethod = "exact" if len(size) <= 50 else "asymptotic"
    if len(np.unique(size)) < len(size):
        method = stats.PermutationMethod(n_resamples=2 ** len(size)) if len(size) <= 16 else "asymptotic"
    return float(stats.wilcoxon(signed, method=method).pvalue)


def iman_davenport(table_RM: pd.DataFrame) -> Friedman:
    """Friedman's test in Iman and Davenport's form, for requests x methods, lower better.

        F = (n - 1) chi2 / (n (k - 1) - chi2), with k - 1 and (k - 1)(n - 1) degrees of freedom

    References:
        Iman, Davenport, Approximations of the critical region of the Friedman statistic, 1980. Demsar, Statistical
        comparisons of classifiers over multiple data sets, 2006.
    """
    from scipy import stats

    n, k = table_RM.shape
    ranks = table_RM.rank(axis=1).mean()
    tied = (table_RM.nunique(axis=1) == 1).all()  # then scipy divides by nothing
    chi2 = 0.0 if tied else float(stats.friedmanchisquare(*table_RM.to_numpy().T).statistic)
    rest = n * (k - 1) - chi2
    f = (n - 1) * chi2 / rest if rest > 1e-9 else math.inf
    return Friedman(f, float(stats.f.sf(f, k - 1, (k - 1) * (n - 1))), {str(m): float(r) for m, r in ranks.items()})


def holm(p_values: Sequence[float]) -> np.ndarray:
    """The p-values after Holm's correction for one family."""
    from statsmodels.stats.multitest import multipletests

    return np.asarray(multipletests(list(p_values), method="holm")[1])


def all_pairs(table_RM: pd.DataFrame) -> pd.DataFrame | None:
    """Wilcoxon for every pair of methods after Holm, 1 on the diagonal; nothing if no pair could pass."""
    methods = list(table_RM.columns)
    upper = np.triu_indices(len(methods), 1)
    if len(methods) < 2 or len(table_RM) < needed_pairs(len(upper[0])):
        return None
    values = table_RM.to_numpy()
    found = np.ones((len(methods), len(methods)))
    found[upper] = holm([wilcoxon(values[:, i] - values[:, j]) for i, j in zip(*upper, strict=True)])
    return pd.DataFrame(np.minimum(found, found.T), index=methods, columns=methods)


def cliques(mean_ranks: Mapping[str, float], p_values: pd.DataFrame) -> tuple[tuple[str, ...], ...]:
    """The longest runs of methods in mean rank of which no two are told apart: the bars of a critical-difference diagram."""
    methods = sorted(mean_ranks, key=lambda m: mean_ranks[m])
    same = p_values.loc[methods, methods].to_numpy() >= ALPHA
    ends = [next((j for j in range(len(methods), i, -1) if same[i:j, i:j].all()), i + 1) for i in range(len(methods))]
    return tuple(tuple(methods[i:end]) for i, end in enumerate(ends) if end - i > 1 and (i == 0 or end > ends[i - 1]))


def rope(differences_R: np.ndarray, width: float = ROPE, *, draws: int = 20_000, seed: int = 0) -> Posterior:
    """The Bayesian signed-rank test: probabilities that the median difference is under -width, within, and above width.

    Weights of the differences, and of a prior pseudo-observation of 0 at strength 0.5, are Dirichlet; each draw asks how
    much weight the Walsh averages (d_i + d_j) / 2 have on each side, and its vote goes to the largest share.

    References:
        Benavoli, Mangili, Corani, Zaffalon, Ruggeri, A Bayesian Wilcoxon signed-rank test based on the Dirichlet process,
        2014.
    """
    values = np.concatenate([[0.0], differences_R])
    averages = (values[:, None] + values[None, :]) / 2
    weights = np.random.default_rng(seed).dirichlet([0.5, *np.ones(len(differences_R))], draws)
    below, above = (np.sum((weights @ side) * weights, axis=1) for side in (averages < -width, averages > width))
    votes = np.argmax([below, 1 - below - above, above], axis=0)
    under, within, over = np.bincount(votes, minlength=3) / draws
    return Posterior(float(under), float(within), float(over))


def primary_family(grid: Grid, reference: str, tested: Sequence[str]) -> tuple[Pair, ...]:
    """The reference against each other method, exact Wilcoxon tests after Holm; nothing on too few requests."""
    others = [m for m in tested if m != reference]
    if not others or len(grid.requests) < max(PRIMARY_REQUESTS, needed_pairs(len(others))):
        return ()
    of = dict(zip(grid.methods, grid.values_MRB, strict=True))
    tables = [of[m] - of[reference] for m in others]
    corrected = holm([wilcoxon(d.mean(axis=1)) for d in tables])
    return tuple(_pair(m, d, float(p), len(others)) for m, d, p in zip(others, tables, corrected, strict=True))


def _pair(method: str, differences_RB: np.ndarray, p: float, comparisons: int) -> Pair:
    per_request = differences_RB.mean(axis=1)
    posterior = rope(per_request)
    needed = None
    if p >= ALPHA and posterior.verdict == "undecided":
        # at least a difference that matters: an observed one near 0 would ask for any number
        difference = max(abs(float(per_request.mean())), ROPE)
        asked = pairs_for(difference, float(per_request.std(ddof=1)), alpha=ALPHA / comparisons)
        needed = max(asked, needed_pairs(comparisons))
    return Pair(method, float(per_request.mean()), *interval(differences_RB), p, posterior, needed)


# ---------------------------------------------------------------- all axes at once


def dominated(points_DMK: np.ndarray) -> np.ndarray:
    """Whether method m is dominated by method o, in every draw (D, M, O): nowhere worse (higher), somewhere better."""
    found = np.empty((*points_DMK.shape[:2], points_DMK.shape[1]), dtype=bool)
    for o in range(points_DMK.shape[1]):  # one at a time: all at once takes draws x methods^2 x axes of memory
        other = points_DMK[:, o : o + 1]
        found[:, :, o] = (other <= points_DMK).all(axis=2) & (other < points_DMK).any(axis=2)
    return found


def volumes(gains_MKX: np.ndarray) -> np.ndarray:
    """Hypervolume (M, ...) of single points with gains in [0, 1] on K axes, reference 0: of one point it is its box."""
    return gains_MKX.prod(axis=1)


def _losses(board: Board, methods: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """What each method loses on each axis (M, K, R, B), and the axes."""
    grey = {audit.metric for audit in board.audits if audit.grey}
    relearn = sorted(c.name for c in board.columns if re.fullmatch(r"relearn(_gap)?(@\d+)?", c.name))[-1:]
    peak = [m for m in BYTES if (c := board.column(m)) and _any_value(board, c.name)][:1]
    wanted = [m for m in (*board.axes[:2], "near_gap", *relearn, "t_total", *peak) if m not in grey]
    grids = {m: _grid(board, methods, lambda part, m=m: loss_per_cell(part, m)) for m in dict.fromkeys(wanted)}  # type: ignore[misc]
    found = {m: grid.values_MRB for m, grid in grids.items() if grid is not None}
    return np.stack(list(found.values()), axis=1), tuple(found)


def _any_value(board: Board, metric: str) -> bool:
    return bool(board.rows.loc[board.rows["metric"] == metric, "value"].notna().any())


def loss_per_cell(part: pd.DataFrame, metric: str) -> pd.DataFrame:
    """A metric's rows with `value` the loss: distance to the oracle, or what is missing to it (less than 0 beyond it)."""
    rows = part[(part["metric"] == metric) & part["value"].notna()]
    value, oracle = rows["value"].to_numpy(float), rows["oracle_mean"].to_numpy(float)
    oracle = np.where(np.isnan(oracle), 0.0, oracle)
    better = rows["better"].to_numpy()
    signed = np.where(better == "higher", oracle - value, value - (0.0 if metric in COST else oracle))
    return rows.assign(value=np.where(better == "oracle", np.abs(signed), signed))


def _normalised(board: Board, losses_MKRB: np.ndarray, axes: Sequence[str]) -> np.ndarray:
    """Gains in [0, 1] (M, K, 1 + D): by the means first, then by each bootstrap draw (none for few requests).

    1 is the oracle, for costs no time and the original's memory; 0 is the worst control, for costs a tenth beyond the
    dearest method, since controls cost next to nothing.
    """
    few = losses_MKRB.shape[2] < MIN_REQUESTS
    gains = []
    for k, axis in enumerate(axes):
        grid = losses_MKRB[:, k]
        means = grid.mean(axis=(1, 2))[:, None]
        points = means if few else np.hstack([means, resampled_means(grid, DRAWS)])
        best, worst = _scale(board, axis, means)
        gains.append(np.clip((worst - points) / (worst - best), 0, 1) if worst > best else np.ones_like(points))
    return np.stack(gains, axis=1)


def _scale(board: Board, axis: str, means: np.ndarray) -> tuple[float, float]:
    controls = {}
    for line in board.controls:
        cells = loss_per_cell(board.rows[board.rows["label"] == line.method], axis)
        if len(cells):
            controls[line.method] = float(by_request(cells).mean(axis=1).mean())
    if axis in COST:
        best = controls.get("original", float(means.min())) if axis in BYTES else 0.0
        return best, best + 1.1 * (float(means.max()) - best)
    return 0.0, max((v for m, v in controls.items() if m != "oracle"), default=float(means.max()))


def _standings(grid: Grid, losses: np.ndarray, gains: np.ndarray, axes: Sequence[str]) -> tuple[Standing, ...]:
    few = len(grid.requests) < MIN_REQUESTS
    draws = [] if few else [resampled_means(losses[:, k], DRAWS) for k in range(len(axes))]
    free = None if few else 1 - dominated(np.stack(draws, axis=2).transpose(1, 0, 2)).any(axis=2).mean(axis=0)
    beaten = dominated(losses.mean(axis=(2, 3))[None])[0]
    volume, ranks = volumes(gains), weighted_ranks(gains[:, :, 0])
    per_request, middle = grid.per_request(), iqm(grid.values_MRB)
    found = []
    for i, method in enumerate(grid.methods):
        mine = per_request[method].sort_values(ascending=False)
        low, high = (None, None) if few else percentile_interval(volume[i, 1:], len(grid.requests))
        found.append(Standing(
            method, None if free is None else float(free[i]), tuple(np.array(grid.methods)[beaten[i]].tolist()),
            float(volume[i, 0]), low, high, tuple(a for a, g in zip(axes, gains[i, :, 0], strict=True) if g == 0),
            *middle[i], cvar(mine.to_numpy()), float(mine.iloc[0]), str(mine.index[0]), ranks[i],
        ))  # fmt: skip
    return tuple(found)


def cvar(values_R: np.ndarray, share: float = 0.2) -> float:
    """Mean of the worst (highest) share of the requests, at least one: what a mean or an IQM smooths away."""
    return float(np.sort(values_R)[-math.ceil(share * len(values_R)) :].mean())


def iqm(values_MRB: np.ndarray, *, draws: int = DRAWS, seed: int = 0) -> list[tuple[float, float | None, float | None]]:
    """Interquartile means over requests and base models, with bootstrap intervals that draw both anew.

    References:
        Agarwal et al., Deep reinforcement learning at the edge of the statistical precipice, 2021, who draw runs within
        fixed tasks; here requests are drawn too, since others would be asked for.
    """
    from scipy.stats import trim_mean

    m, r, b = values_MRB.shape
    middle = trim_mean(values_MRB.reshape(m, -1), 0.25, axis=1)
    if r < MIN_REQUESTS:
        return [(float(v), None, None) for v in middle]
    generator = np.random.default_rng(seed)
    requests, seeds = generator.integers(r, size=(draws, r, 1)), generator.integers(b, size=(draws, 1, b))
    resampled = [trim_mean(values[requests, seeds].reshape(draws, -1), 0.25, axis=1) for values in values_MRB]
    return [(float(v), *percentile_interval(d, r)) for v, d in zip(middle, resampled, strict=True)]


def weighted_ranks(gains_MK: np.ndarray, *, draws: int = DRAWS, seed: int = 0) -> list[tuple[int, int]]:
    """Between which ranks each method lies under 95 % of random weightings of the axes, uniform over all weightings."""
    from scipy.stats import rankdata

    scores = -_weightings(gains_MK.shape[1], draws, seed) @ gains_MK.T
    best, worst = rankdata(scores, "min", axis=1), rankdata(scores, "max", axis=1)
    low = np.quantile(best, 0.025, axis=0, method="lower")
    high = np.quantile(worst, 0.975, axis=0, method="higher")
    return [(int(a), int(b)) for a, b in zip(low, high, strict=True)]


def _weightings(axes: int, draws: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(axes), draws)


def kendall(scores_DM: np.ndarray, places_M: np.ndarray) -> np.ndarray:
    """Kendall's tau-a (D,) of each row of scores to one order without ties."""
    i, j = np.triu_indices(len(places_M), 1)
    return np.mean(np.sign(scores_DM[:, i] - scores_DM[:, j]) * np.sign(places_M[i] - places_M[j]), axis=1)


def _agreement(gains: np.ndarray, shown: Sequence[int]) -> tuple[float, float, float] | None:
    if len(shown) < 2:
        return None
    scores = -_weightings(gains.shape[1], DRAWS, 0) @ gains[list(shown), :, 0].T
    low, middle, high = np.quantile(kendall(scores, np.arange(len(shown))), [0.025, 0.5, 0.975])
    return float(low), float(middle), float(high)


def _without(methods: Sequence[str], gains: np.ndarray, axes: Sequence[str]) -> tuple[Without, ...]:
    """Leave each axis out of the hypervolume; nothing where there is none to spare or nothing to order."""
    from scipy.stats import kendalltau

    if len(axes) < 2 or len(methods) < 2:
        return ()
    full = volumes(gains)
    found = []
    for k, axis in enumerate(axes):
        rest = volumes(np.delete(gains, k, axis=1))
        turned = np.argwhere(_ahead(full) & _ahead(rest).T)
        tau = float(kendalltau(full[:, 0], rest[:, 0]).statistic)
        found.append(Without(axis, tau, tuple((methods[i], methods[j]) for i, j in turned)))
    return tuple(found)


def _ahead(volume_MX: np.ndarray) -> np.ndarray:
    """Whether method i has more than method j in at least 97.5 % of the draws (M, M); never without draws."""
    draws = volume_MX[:, 1:]
    if not draws.shape[1]:
        return np.zeros((len(draws),) * 2, dtype=bool)
    return np.stack([(mine > draws).mean(axis=1) >= 0.975 for mine in draws])


# ---------------------------------------------------------------- cells


def _ran(board: Board, line: Line) -> bool:
    """Whether a method was of this board at all: it finished, or failed otherwise than by declaring that it cannot."""
    return bool((board.rows.loc[board.rows["label"] == line.method, "status"] != "skipped").any())


def _grid(board: Board, methods: Sequence[str], cells: Callable[[pd.DataFrame], pd.DataFrame]) -> Grid | None:
    """`cells` of each method on every request and base model that the board has; the board's worst value in the gaps."""
    found = cells(board.rows[READ]).set_index("cell")["value"].dropna()
    if found.empty:
        return None
    worst = float(found.max())
    every = board.rows[READ].drop_duplicates("cell")
    # cell by cell, since the other method seeds of a failed cell may have finished
    every = every.assign(value=every["cell"].map(found).astype(float).fillna(worst))
    asked = by_request(every)
    tables = {str(label): by_request(part) for label, part in every.groupby("label")}
    aligned = [tables[m].reindex(index=asked.index, columns=asked.columns).fillna(worst) for m in methods]
    values = np.stack([table.where(asked.notna()).to_numpy() for table in aligned])
    return Grid(tuple(methods), tuple(map(str, asked.index)), crossed(values))


# ---------------------------------------------------------------- in words


def _primary_sentence(reference: str | None, pairs: Sequence[Pair], n: int, k: int) -> str:
    if reference is None:
        return f"There is no {REFERENCE} on this board, so the primary family is empty."
    if k < 2:
        return f"There is no other method to compare {reference} with."
    least = max(PRIMARY_REQUESTS, needed_pairs(k - 1))
    if n < least:
        return f"Not resolvable: n = {n}, {least} are needed to compare {reference} with {_counted(k - 1, 'method')}."
    nearer, farther = ([p.method for p in pairs if p.p_holm < ALPHA and side * p.difference > 0] for side in (1, -1))
    said = [f"nearer to the oracle than {', '.join(nearer)}"] * bool(nearer)
    said += [f"farther than {', '.join(farther)}"] * bool(farther)
    rest = _counted(len(pairs) - len(nearer) - len(farther), "other" if said else "method")
    said += [f"not told apart from {rest}"] * (not rest.startswith("0"))
    return f"{reference} is {'; '.join(said)} (n = {n}, exact Wilcoxon tests after Holm, 5 %)."


def _all_pairs_sentence(n: int, k: int) -> str:
    if k < 2:
        return ""
    pairs = k * (k - 1) // 2
    least = needed_pairs(pairs)
    if n < least:
        return f"All {pairs} pairs at once: not resolvable, n = {n}, {least} are needed."
    return f"All {pairs} pairs at once, Wilcoxon tests after Holm, n = {n}."


def _counted(n: int, word: str) -> str:
    return f"{n} {word}{'' if n == 1 else 's'}"


def family_table(found: Order) -> pd.DataFrame:
    """The primary family as text."""
    records = [
        {
            "method": p.method,
            "status": found.status[p.method],
            f"distance less {found.reference}'s": f"{p.difference:+.3f} [{p.low:+.3f}, {p.high:+.3f}]",
            "p (Holm)": f"{p.p_holm:.3f}" if p.p_holm >= 0.001 else "< 0.001",
            "nearer / equal / farther": " / ".join(f"{v:.2f}" for v in p.rope),
            "verdict": _verdict(p),
        }
        for p in found.pairs
    ]
    return pd.DataFrame(records)


def _verdict(p: Pair) -> str:
    if p.needed is None:
        return p.rope.verdict if p.rope.verdict != "undecided" else "farther" if p.difference > 0 else "nearer"
    return f"underpowered: needs n = {p.needed:,.0f}"


def standings_table(found: Order) -> pd.DataFrame:
    """Non-domination, hypervolume, ranks under random weights, IQM and tail of every method, as text."""
    records = []
    for s in found.standings:
        volume = _value(s.volume, s.volume_low, s.volume_high)
        records.append({
            "method": s.method,
            "status": found.status[s.method],
            "beaten by": _some(s.dominated_by),
            "P(not beaten)": "—" if s.non_dominated is None else f"{s.non_dominated:.2f}",
            "hypervolume": volume + (f" (nothing on {', '.join(s.empty_on)})" if s.empty_on else ""),
            "rank": f"{s.ranks[0]}" if s.ranks[0] == s.ranks[1] else f"{s.ranks[0]}-{s.ranks[1]}",
            "IQM": _value(s.iqm, s.iqm_low, s.iqm_high),
            "worst 20 %": number(s.tail),
            "worst request": f"{number(s.worst)} {s.worst_request}",
        })  # fmt: skip
    return pd.DataFrame(records)


def audit_table(board: Board) -> pd.DataFrame:
    """How well each metric tells oracles from known bad models, as text."""
    records = []
    for audit in board.audits:
        apart = {f"oracle or {bad}": number(audit.against.get(bad)) for bad in BAD}
        said = "not audited" if audit.auc is None else "grey: not ranked on" if audit.grey else "tells"
        records.append({"metric": audit.metric, "verdict": said, "AUC": number(audit.auc)} | apart)
    return pd.DataFrame(records)


def rules_table() -> pd.DataFrame:
    """The failure classes: the first rule that applies to a finished cell is its class."""
    return pd.DataFrame([{"class": r.failure, "when": r.says, "source": r.source} for r in RULES])


def audit_sentence(board: Board) -> str:
    """Which metrics were audited, and which failed."""
    audited = [audit for audit in board.audits if audit.auc is not None]
    grey = [f"{audit.metric} (AUC {number(audit.auc)})" for audit in audited if audit.grey]
    if not audited:
        return f"Metrics are not audited: fewer than {MIN_ROWS} cells of oracles or of known bad models."
    said = (
        f"grey, shown but not ranked on: {', '.join(grey)}"
        if grey
        else f"all {len(audited)} tell oracles from known bad ones"
    )
    return f"Metric audit: {said}."


def validity_sentence(board: Board) -> str:
    """Who may be compared, who fails somewhere, and who misses the gate."""
    groups: dict[str, list[str]] = {"Valid": [], "Kept enough, but": [], "Not valid": []}
    for line in (*board.ranked, *board.unranked):
        classes = line.status.removesuffix("not valid").removesuffix(", ")
        kind = "Not valid" if line.valid is False else "Valid" if line.status == "valid" else "Kept enough, but"
        if line.status != "—":
            groups[kind].append(line.method + (f" ({classes})" if classes and kind != "Valid" else ""))
    said = [f"{kind}: {', '.join(names)}." for kind, names in groups.items() if names]
    return " ".join([*said, *board.surprises])


def reasons(board: Board) -> list[str]:
    """Why methods are not valid, a sentence each."""
    return [f"{x.method}: {x.why}." for x in board.lines if x.why]


def _some(names: Sequence[str], most: int = 3) -> str:
    """The first names, and how many more."""
    rest = [f"{len(names) - most} more"] if len(names) > most else []
    return ", ".join([*names[:most], *rest]) or "none"


def _value(value: float, low: float | None, high: float | None) -> str:
    return number(value) if low is None or high is None else f"{number(value)} [{number(low)}, {number(high)}]"


def remarks(found: Order) -> list[str]:
    """What the tables do not show, in sentences: Friedman's test, cliques, weights, and axes that turn the order."""
    said = []
    if found.friedman is not None:
        f = found.friedman
        p = "< 0.001" if f.p < 0.001 else f"= {f.p:.3f}"
        said.append(f"Friedman's test in Iman and Davenport's form: F = {f.statistic:.2f}, p {p}.")
    if found.all_pairs:
        bars = "; ".join(", ".join(c) for c in found.cliques)
        said.append(found.all_pairs + (f" Not told apart: {bars}." if bars else ""))
    if found.tau is not None:
        low, middle, high = found.tau
        said.append(
            f"Under random weights of {', '.join(found.axes)} the order agrees with the one shown with a Kendall tau of "
            f"{middle:.2f} ({low:.2f} to {high:.2f})."
        )
    for without in found.without:
        if without.turned:
            pairs = _some([f"{b} before {a}" for a, b in without.turned])
            said.append(f"Without {without.axis} the order by hypervolume turns: {pairs}.")
    if found.without:
        each = ", ".join(f"{w.axis} {'—' if math.isnan(w.tau) else f'{w.tau:.2f}'}" for w in found.without)
        said.append(f"Kendall tau of the order by hypervolume to that without an axis: {each}.")
    if found.without and not any(w.turned for w in found.without) and len(found.grid.requests) >= MIN_REQUESTS:
        said.append("No axis turns a resolved pair of the order by hypervolume when it is left out.")
    return said
