"""Makes docs/calibration.md: what the evaluation promises, tried on models for which the answer is known.

    python docs/calibration.py runs/standard --out docs/calibration.md

Training the oracles that do not ship takes half a minute each, once: they are kept in the cache. On one core about half
an hour in all.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd

from slugbench.bench import Value
from slugbench.bench.cell import judge
from slugbench.bench.frame import merge, read_run
from slugbench.bench.intervals import clopper_pearson
from slugbench.bench.intervals import interval as cell_interval
from slugbench.bench.registry import load
from slugbench.bench.types import needs_model
from slugbench.reports import glossary, tables
from slugbench.reports.markdown import table
from slugbench.reports.statistics import MIN_REQUESTS, by_request, interval, unlike_oracles

REQUEST, N_ORACLES, REFERENCES = "joint-0", 40, 8
SIMULATIONS = 5000
COVERED = (0.93, 0.97)
CERTAIN = 0.99
"""Confidence of the intervals over requests that catch a control: each is looked at by every metric."""


# ---------------------------------------------------------------- another oracle in a method's place


def null(n_oracles: int) -> pd.DataFrame:
    """Every value of every oracle in a method's place, beside eight others drawn at random: `metric`, `unlike`."""
    registry = load(kinds=("task", "metric"))
    trial = registry.create("task", "identities").build(REQUEST, 0)
    metrics = {name: registry.create("metric", name) for name in registry.names("metric")}
    metrics = {name: metric for name, metric in metrics.items() if not needs_model(metric)}
    answers = [trial.answer(trial.oracle_model(s)) for s in range(n_oracles)]
    rng, found = np.random.default_rng(0), []
    for s in range(n_oracles):
        others = rng.choice([o for o in range(n_oracles) if o != s], REFERENCES, replace=False)
        alone = dataclasses.replace(trial, oracles=tuple(answers[o] for o in others))
        keys = {name: {} for name in metrics}
        rows = judge(alone, answers[s], metrics, keys=keys, model=None, cost=None, own=None)
        for row in (row for values in rows.values() for row in values):
            if glossary.of_quality(row["metric"]) and row["value"] is not None and row["oracle_sd"] is not None:
                filled = {name: np.nan if value is None else value for name, value in row.items()}
                unlike = unlike_oracles(SimpleNamespace(**filled), REFERENCES)
                found.append({"metric": row["metric"], "unlike": unlike})
    return pd.DataFrame(found)


def null_table(found: pd.DataFrame) -> pd.DataFrame:
    """A line a metric: how many of the oracles were called unlike the others, with the exact 95 % interval."""
    lines = []
    for metric, part in found.groupby("metric"):
        k, n = int(part["unlike"].sum()), len(part)
        low, high = clopper_pearson(k, n)
        lines.append({"metric": metric, "oracles": n, "called unlike": f"{k / n:.3f}", "95 %": f"{low:.3f} to {high:.3f}"})
    mean = f"{found['unlike'].mean():.3f}"  # metrics of one oracle depend on each other: no interval
    return pd.DataFrame([*lines, {"metric": "mean of all", "oracles": len(found), "called unlike": mean, "95 %": ""}])


def simulated_null() -> pd.DataFrame:
    """How often a value from the oracles' own distribution is called unlike them, by the number of oracles."""
    rng, lines = np.random.default_rng(0), []
    for n in (2, 3, 5, 8):
        for better in ("oracle", "higher"):
            draws = rng.normal(size=(SIMULATIONS, n + 1))
            called = sum(_called(own, others, better) for own, *others in draws)
            low, high = clopper_pearson(called, SIMULATIONS)
            sides = "two-sided" if better == "oracle" else "one-sided"
            share = f"{called / SIMULATIONS:.3f} ({low:.3f} to {high:.3f})"
            lines.append({"simulated": f"{n} oracles, {sides}", "called unlike": share})
    return pd.DataFrame(lines)


def _called(own: float, others: list[float], better: str) -> bool:
    row = {"value": own, "better": better, "oracle_mean": np.mean(others), "oracle_sd": np.std(others, ddof=1)}
    return unlike_oracles(SimpleNamespace(**row, ci_low=np.nan, ci_high=np.nan), len(others))


# ---------------------------------------------------------------- intervals


def coverage() -> pd.DataFrame:
    """How often intervals hold the truth, over requests and base models and within a cell."""
    rng, lines = np.random.default_rng(0), []
    for n_requests, n_seeds in ((6, 1), (12, 1), (12, 3), (14, 3), (12, 5)):
        for name, spread in SPREADS.items():
            if n_seeds == 1 and spread["seeds"]:
                continue
            held = sum(_holds(interval(_table(rng, n_requests, n_seeds, **spread))) for _ in range(SIMULATIONS))
            lines.append(_line(f"{n_requests} requests x {n_seeds} base models, {name}", held, SIMULATIONS))
    for n_units in (8, 16, 56):
        held = 0
        for _ in range(SIMULATIONS):
            x = rng.normal(size=n_units)[:, None] + rng.normal(size=(n_units, 20))
            arrays = {"x": x.ravel(), "unit": np.repeat(np.arange(n_units), 20)}
            value = Value("v", float(x.mean()), arrays=arrays, n_units=n_units)
            held += _holds(cell_interval(value))
        lines.append(_line(f"one cell, {n_units} concepts of 20 images that vary together", held, SIMULATIONS))
    return pd.DataFrame(lines)


SPREADS = {
    "requests differ": {"requests": 1.0, "seeds": 0.0},
    "requests differ and are skewed": {"requests": 1.0, "seeds": 0.3, "skewed": True},
    "requests differ more than base models": {"requests": 1.0, "seeds": 0.5},
    "base models differ as much as requests": {"requests": 1.0, "seeds": 1.0},
    "base models differ more": {"requests": 0.3, "seeds": 1.0},
}


def _table(rng: np.random.Generator, r: int, b: int, *, requests: float, seeds: float, skewed: bool = False) -> np.ndarray:
    """(r, b) values of mean 0."""
    of_requests = rng.exponential(size=(r, 1)) - 1 if skewed else rng.normal(size=(r, 1))
    return requests * of_requests + seeds * rng.normal(size=(1, b)) + 0.3 * rng.normal(size=(r, b))


def _holds(bounds: tuple[float, float] | None) -> bool:
    return bounds is not None and bounds[0] <= 0 <= bounds[1]


def _line(what: str, held: int, n: int) -> dict[str, str]:
    low, high = clopper_pearson(held, n)
    touched = "not excluded" if low <= COVERED[1] and high >= COVERED[0] else "no"
    within = "yes" if COVERED[0] <= held / n <= COVERED[1] else touched
    return {"simulated": what, "held the truth": f"{held / n:.3f} ({low:.3f} to {high:.3f})", "0.93 to 0.97": within}


# ---------------------------------------------------------------- controls and metrics, on a finished run


def caught(board: tables.Board) -> Iterator[dict[str, str]]:
    """For each control, and for an oracle in its place, the metrics that catch it: in single cells, and over requests."""
    n_oracles, grey = board.n_oracles(), {audit.metric for audit in board.audits if audit.grey}
    for line in board.controls:
        rows = board.rows[(board.rows["label"] == line.method) & board.rows["value"].notna()]
        kinds = rows["metric"].map(lambda metric: glossary.about(metric).kind)
        rows = rows[~kinds.isin(["cost", "detail", "features"]) & ~rows["metric"].isin(grey)]
        if rows.empty:  # every request skips it
            continue
        unlike = pd.Series([unlike_oracles(row, n_oracles.get(row.cell, 0)) for row in rows.itertuples()], index=rows.index)
        share = unlike.groupby(rows["metric"]).mean()
        in_cells = [str(metric) for metric in share.index[share > 0.5]]
        over_requests = [str(metric) for metric, part in rows.groupby("metric") if _worse(part)]
        yield {
            "board": board.title,
            "control": line.method,
            "metrics": str(len({*in_cells, *over_requests})),
            "most cells unlike": ", ".join(in_cells) or "none",
            "worse over requests": ", ".join(over_requests) or "none",
        }


def _worse(rows: pd.DataFrame) -> bool:
    """Whether the interval of a metric's mean distance to the oracles lies on the wrong side of 0."""
    gaps = by_request(rows.assign(value=rows["value"] - rows["oracle_mean"]).dropna(subset="value"))
    if len(gaps) < MIN_REQUESTS or gaps.isna().to_numpy().any():
        return False
    low, high = interval(gaps.to_numpy(), CERTAIN)
    return {"higher": high < 0, "lower": low > 0}.get(rows["better"].iloc[0], high < 0 or low > 0)


def audited(board: tables.Board) -> Iterator[dict[str, str]]:
    """For each metric how well it tells oracles from known bad models."""
    for audit in board.audits:
        auc = "not audited" if audit.auc is None else f"{audit.auc:.2f}{' (grey)' * audit.grey}"
        yield {"board": board.title, "metric": audit.metric, "AUC": auc}


# ---------------------------------------------------------------- the document


def document(run: Path, n_oracles: int) -> str:
    """The file's text."""
    frame, runs = merge([read_run(run)])
    boards = tables.boards(frame, runs)
    parts = [
        "# Calibration",
        f"Made by `python docs/calibration.py RUN --oracles {n_oracles}` on a finished run of the suite `standard`.",
        "## The null: another oracle in a method's place",
        f"{n_oracles} models retrained without the eight people of {REQUEST}. Each in turn stands in a method's place "
        f"beside {REFERENCES} of the others, and each of its values is called unlike theirs (≠R) or not, by the rule of "
        "`reports.statistics.unlike_oracles`, whose rate of false alarms is meant to be at most 0.05.",
        table(null_table(null(n_oracles)), numbers_from=1),
        f"The same rule on {SIMULATIONS:,} draws from one normal distribution, for as many oracles as the suites have:",
        table(simulated_null(), numbers_from=1),
        "## Intervals",
        f"{SIMULATIONS:,} simulations a line; 95 % intervals, and in parentheses how far the simulation itself can be off.",
        table(coverage(), numbers_from=1),
        "## Controls",
        "The metrics that catch a control: by which most of its cells are unlike the oracles (≠R), or by which it is worse "
        f"than they are on average over at least {MIN_REQUESTS} requests, at {CERTAIN:.0%}, since many look at each. "
        "Metrics that the audit below greys out, and those of features, which are never ranked on, catch nobody. "
        "An oracle in a control's place says how often that is for nothing.",
        table(pd.DataFrame([line for board in boards for line in caught(board)])),
        "## Metric audit",
        "The AUC with which a metric tells oracles from the known bad models that its kind is there to find; not audited "
        "are metrics with fewer than three cells on a side.",
        table(pd.DataFrame([line for board in boards for line in audited(board)]), numbers_from=2),
    ]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Write the document."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--out", type=Path, default=Path("docs/calibration.md"))
    parser.add_argument("--oracles", type=int, default=N_ORACLES)
    arguments = parser.parse_args()
    arguments.out.write_text(document(arguments.run, arguments.oracles), encoding="utf-8")


if __name__ == "__main__":
    main()
