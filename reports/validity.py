"""Which cells may be compared, how the others failed, and which metrics can tell: by rules, from the table alone.

A rule whose metrics, oracle or original a cell lacks does not apply to it: comparisons with NaN are false.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from .glossary import FORGET, RETAIN, UTILITY, Kind, about, number, of_quality
from .statistics import estimate

GATE = 0.05
"""Points of the retain metric that a valid method may lie under the oracles, by the lower end of its interval."""
LOST = 0.10
"""Points under the oracles that are a loss and no noise: twice the gate, and at least `SDS` of their deviations."""
SDS = 2.0
COLLAPSED = 0.5
"""Share of utility above chance. Oracles of one request differ by 9 to 24 points here, so that points say little."""
STAYED = 0.25
"""Share of the way from the original to the oracles under which forgetting has hardly begun."""
FORGOTTEN = 0.05
"""Points above the oracles, on the original's side, that still count as forgotten: 2.4 of 48 images."""
AS_FAST = 0.95
"""Share of the original's accuracy after relearning that says nothing had been removed."""

RECOVERIES: tuple[tuple[str, float], ...] = (
    (r"relearn(_gap)?(@\d+)?", 0.25),  # forget accuracy after it: edits 0.69 to 0.81, oracles 0.20 to 0.32 in a pilot
    (r"resurge(_gap)?(@\d+)?", 0.25),
    (r"(fa|quant)_w\d+", 0.10),
)
"""Metrics of attacks (patterns of the whole name) that measure what of the target answers again, and the gap to the oracles
under the same attack from which on it has come back."""

EXPECTED: Mapping[str, str | None] = {"original": "no effect", "oracle": None, "mask": "masked", "noise": "destroyed"}
"""How each control has to come out; where it does not, the rules say little about the methods beside it."""


class Cells:
    """Cells x metrics, one index entry a cell, with the original of the same request and base model beside it."""

    def __init__(self, rows: pd.DataFrame) -> None:
        self.of = rows.drop_duplicates("cell").set_index("cell")
        known = rows[rows["metric"].notna() & rows["value"].notna()].drop_duplicates(["cell", "metric"])
        self._tables = {c: known.pivot(index="cell", columns="metric", values=c).reindex(self.of.index) for c in _FACTS}
        self.metrics = tuple(str(m) for m in self._tables["value"].columns)
        originals = self.of[self.of["method"] == "original"].drop_duplicates(["request", "base_seed"])
        place = {(q, b): cell for cell, q, b in originals[["request", "base_seed"]].itertuples(name=None)}
        self._original = [place.get(key) for key in zip(self.of["request"], self.of["base_seed"], strict=True)]

    def __call__(self, metric: str | None, fact: str = "value") -> pd.Series:
        """One column of the table for every cell; NaN where the cell has none."""
        table = self._tables[fact]
        return table[metric] if metric in table else pd.Series(np.nan, index=self.of.index)

    def gap(self, metric: str | None) -> pd.Series:
        """The value less the oracles' mean."""
        return self(metric) - self(metric, "oracle_mean")

    def original(self, metric: str | None, fact: str = "value") -> pd.Series:
        """What the untouched model has on the same request and base model."""
        return pd.Series(self(metric, fact).reindex(self._original).to_numpy(float), index=self.of.index)

    def first(self, names: Sequence[str]) -> str | None:
        """The first of these metrics that was measured."""
        return next((name for name in names if name in self.metrics), None)

    def lost(self, metric: str | None) -> pd.Series:
        """Whether a metric lies under the oracles by more than noise."""
        return self.gap(metric) < -_noise(self(metric, "oracle_sd"))


_FACTS = ("value", "oracle_mean", "oracle_sd", "chance", "ci_low", "ci_high")


def _noise(sd: pd.Series) -> pd.Series:
    return (SDS * sd.fillna(0)).clip(lower=LOST)


def _destroyed(cells: Cells) -> pd.Series:
    utility = cells.first(UTILITY)
    chance = cells(utility, "chance")
    kept = (cells(utility) - chance) / (cells(utility, "oracle_mean") - chance)
    return cells.lost(cells.first(RETAIN)) | ((kept < COLLAPSED) & cells.lost(utility))


def _no_effect(cells: Cells) -> pd.Series:
    forget = cells.first(FORGET)
    original, oracle = cells.original(forget), cells(forget, "oracle_mean")
    way = (original - cells(forget)) / (original - oracle)
    apart = np.maximum(cells(forget, "ci_low"), cells.original(forget, "ci_low"))
    return (way < STAYED) | (apart <= np.minimum(cells(forget, "ci_high"), cells.original(forget, "ci_high")))


def _masked(cells: Cells) -> pd.Series:
    untouched = cells("bytes_delta") == 0
    for metric in _recoveries(cells):
        if "gap" not in metric:
            untouched |= cells(metric) >= AS_FAST * cells.original(metric)
    null = cells("ks_d", "oracle_mean") + SDS * cells("ks_d", "oracle_sd").fillna(0)
    return _forgotten(cells) & untouched & ~(cells("ks_d") <= null)


def _over_generalised(cells: Cells) -> pd.Series:
    beside = cells.gap("near_gap") > _noise(cells("near_gap", "oracle_sd"))
    return (cells.lost("ra_near@1") | beside) & ~cells.lost("ra_far@1")


def _recoverable(cells: Cells) -> pd.Series:
    back = pd.Series(False, index=cells.of.index)
    for metric, limit in _recoveries(cells).items():
        rest = cells(metric) if "gap" in metric else cells.gap(metric)
        back |= rest > limit
    return back & _forgotten(cells)


def _forgotten(cells: Cells) -> pd.Series:
    forget = cells.first(FORGET)
    side = np.sign(cells.original(forget) - cells(forget, "oracle_mean"))
    return side * cells.gap(forget) <= FORGOTTEN


def _recoveries(cells: Cells) -> dict[str, float]:
    return {m: limit for m in cells.metrics for pattern, limit in RECOVERIES if re.fullmatch(pattern, m)}


class Rule(NamedTuple):
    """A failure class and when a finished cell is in it."""

    failure: str
    says: str
    source: str
    applies: Callable[[Cells], pd.Series]


RULES: tuple[Rule, ...] = (
    Rule(
        "destroyed",
        f"Retain accuracy more than {100 * LOST:g} points (and {SDS:g} of their deviations) under the oracles, or more than "
        f"{100 * (1 - COLLAPSED):g} % of the other task above chance lost.",
        "SALMUBench (2026): destruction, the first of its failure modes; the limits are ours",
        _destroyed,
    ),
    Rule(
        "no effect",
        f"Forget metric less than {100 * STAYED:g} % of the way from the original to the oracles, or their intervals meet.",
        "SALMUBench (2026): no effect; the limit is ours",
        _no_effect,
    ),
    Rule(
        "masked",
        f"Forgotten (at most {100 * FORGOTTEN:g} points above the oracles) with no weight changed, or relearned to "
        f"{100 * AS_FAST:g} % of the original; and not inside the oracle-oracle null of ks_d.",
        "the control mask; for relearning Hu et al., Unlearning or obfuscating? (2025)",
        _masked,
    ),
    Rule(
        "over-generalised",
        f"Neighbours more than {100 * LOST:g} points under the oracles, or that much more than the rest, which is kept.",
        "SALMUBench (2026): over-generalised forgetting; EraseBench (2025): neighbours",
        _over_generalised,
    ),
    Rule(
        "recoverable",
        "Forgotten, but relearning or quantisation brings back more than it does in the oracles under the same attack.",
        "Zhang et al., Catastrophic failure of LLM unlearning via quantization (2025); TOFU's relearning (2024)",
        _recoverable,
    ),
)
"""The first that applies is the cell's class. Points are hundredths of a share; the limits hold for every task."""


def classified(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of one board with `failure` filled in by `RULES` for finished cells that carry none."""
    cells = Cells(rows)
    found = pd.Series(None, index=cells.of.index, dtype=object)
    for rule in RULES:
        found = found.where(found.notna() | ~rule.applies(cells).fillna(False), rule.failure)
    found = found.where(cells.of["status"].eq("ok"), None)
    given = rows["failure"].astype(object)
    filled = given.where(given.notna(), rows["cell"].map(found))
    return rows.assign(failure=filled.where(filled.notna(), None))


class Validity(NamedTuple):
    """Whether a method may be compared, and in a few words why not."""

    valid: bool | None
    """Null where no metric on what is kept has an oracle, or where there are too few requests to say."""
    why: str


def validity(part: pd.DataFrame, n_cells: int, originals: pd.DataFrame | None = None) -> Validity:
    """The gate, for the rows of one method on one board that was asked for `n_cells` cells.

    Valid: every cell finished and has the retain metric, and the lower end of the interval of its difference to the
    oracles is at least -`GATE`. Where there are too few requests for an interval, the lowest end of any cell's own stands
    in for it; below -`GATE` it leaves the question open, unless the difference itself lies there.

    Base models know unequally much before anything is forgotten, and oracles are of none of them. That is no method's
    doing: where the board has the `originals`' rows, the interval is that of the differences to the original of the same
    request and base model, moved by the mean difference of these originals to the oracles.
    """
    cells = part.drop_duplicates("cell")
    n_ok = int(cells["status"].eq("ok").sum())
    if n_ok < n_cells:
        return Validity(False, f"{n_cells - n_ok} of {n_cells} cells did not finish")
    rows = part[part["metric"].isin(RETAIN) & part["oracle_mean"].notna()]
    metric = next((m for m in RETAIN if (rows["metric"] == m).any()), None)
    if metric is None:
        return Validity(None, "no oracle says what should be kept")
    mine = rows[(rows["metric"] == metric) & rows["value"].notna()]
    if len(mine) < n_cells:
        return Validity(False, f"{metric} is missing on {n_cells - len(mine)} of {n_cells} cells")
    before = _before(mine, metric, originals)
    given = estimate(mine.assign(value=before - mine["oracle_mean"], ci_low=np.nan, ci_high=np.nan)).value or 0.0
    found = estimate(mine.assign(**{c: mine[c] - before for c in ("value", "ci_low", "ci_high")}))
    assert found.value is not None  # there are cells, and each has a value
    gap, low = found.value + given, (found.value if found.low is None else found.low) + given
    if low >= -GATE:
        return Validity(True, "")
    if gap < -GATE:
        return Validity(False, f"{metric} lies {number(-gap)} under the oracles")
    few = found.spread != "interval"
    where = f"{metric} may lie {number(-low)} under the oracles, {GATE:g} are allowed"
    return Validity(None if few else False, f"{where}; too few requests to say" if few else where)


def _before(mine: pd.DataFrame, metric: str, originals: pd.DataFrame | None) -> pd.Series:
    """What the original of the same request and base model has; if that is not known of all, what the oracles have."""
    if originals is not None:
        known = originals[(originals["metric"] == metric) & originals["value"].notna()]
        of = known.groupby(["request", "base_seed"])["value"].mean().to_dict()
        found = [of.get(key, np.nan) for key in zip(mine["request"], mine["base_seed"], strict=True)]
        if not np.isnan(found).any():
            return pd.Series(found, index=mine.index)
    return mine["oracle_mean"]


def surprises(rows: pd.DataFrame) -> list[str]:
    """A sentence for each control whose commonest class over finished cells is not the one it has to come out as."""
    cells = rows[rows["status"] == "ok"].drop_duplicates("cell")
    found = []
    for control, wanted in EXPECTED.items():
        counts = cells.loc[cells["method"] == control, "failure"].fillna("none").value_counts()
        if len(counts) and (got := str(counts.index[0])) != (wanted or "none"):
            found.append(f"The control {control} should come out as {wanted or 'none'} and came out as {got}.")
    return found


# ---------------------------------------------------------------- metrics

AUDITED = 0.8
"""Least AUC of a metric that may order methods (OpenUnlearning's meta-evaluation judges metrics so)."""
MIN_ROWS = 3
BAD: tuple[str, ...] = ("original", "noise", "mask")
"""Known bad: it knows everything still, it knows nothing any more, it only hides what it knows."""
JUDGED_BY: Mapping[Kind, tuple[str, ...]] = {
    "forget": ("original",), "privacy": ("original",), "retain": ("noise",), "distance": BAD,
}  # fmt: skip
"""The known bad that a kind of metric is there to find: retain accuracy is no worse for an untouched model than for an
oracle, nor is forget accuracy for a mask, which is why neither is ranked on alone. Other kinds have to find one of them."""


class Audit(NamedTuple):
    """How well a metric tells oracles from the known bad."""

    metric: str
    auc: float | None
    """Against what metrics of its kind are there to find; null if there are fewer than three rows on a side."""
    against: Mapping[str, float]
    """The AUC against each of `BAD` that has enough rows."""

    @property
    def grey(self) -> bool:
        """Whether it is shown, but not ranked on."""
        return self.auc is not None and self.auc < AUDITED


def audits(rows: pd.DataFrame) -> list[Audit]:
    """The audit of every metric on one board that says how good a model is, over its single cells."""
    known = rows[rows["metric"].notna() & rows["value"].notna()]
    parts = [(str(metric), part) for metric, part in known.groupby("metric")]
    return [_audit(metric, part) for metric, part in parts if of_quality(metric)]


def _audit(metric: str, part: pd.DataFrame) -> Audit:
    badness = {method: _badness(part[part["method"] == method]) for method in ("oracle", *BAD)}
    good = badness.pop("oracle")
    bad = {method: values for method, values in badness.items() if len(values) >= MIN_ROWS}
    if len(good) < MIN_ROWS or not bad:
        return Audit(metric, None, {})
    against = {method: auc(good, values) for method, values in bad.items()}
    wanted = JUDGED_BY.get(about(metric).kind)
    if wanted is None:
        return Audit(metric, max(against.values()), against)
    meant = [values for method, values in bad.items() if method in wanted]
    return Audit(metric, auc(good, np.concatenate(meant)) if meant else None, against)


def _badness(part: pd.DataFrame) -> np.ndarray:
    """Higher is worse, in the direction that the metric declares; NaN left out."""
    value, oracle, better = (part[c].to_numpy() for c in ("value", "oracle_mean", "better"))
    value, oracle = value.astype(float), oracle.astype(float)
    worse = np.where(better == "higher", -value, np.where(better == "lower", value, np.abs(value - oracle)))
    return worse[~np.isnan(worse)]


def auc(good: np.ndarray, bad: np.ndarray) -> float:
    """The probability that a known bad one scores worse (higher) than a known good one, ties counting half."""
    from scipy.stats import mannwhitneyu

    return float(mannwhitneyu(bad, good).statistic) / (len(good) * len(bad))
