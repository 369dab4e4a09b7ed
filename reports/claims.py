"""What the methods' papers claim, held against a run: each claim a difference with its interval, and a verdict; and the
numbers that these differences are of.

A claim holds if the whole 95 % interval lies on its side, does not hold if the whole interval lies on the other side,
and is not resolved otherwise. The papers' numbers come from other models and data: what is asked here is whether what
they say of methods is so of them on this suite, too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from slugbench.bench import report
from slugbench.bench.frame import normalised

from . import facts, tables
from .glossary import number
from .markdown import escaped, part_of, table
from .statistics import MIN_REQUESTS, by_request, interval
from .tables import Board
from .tuning import choices

GAP = "gap to the oracle"
"""Mean of the distances of forget accuracy, retain accuracy and membership AUC to the oracles' (SalUn's average gap)."""
GAPS = ("fa@1", "ra@1", "mia_sample")
TIMES = "time ratio"
"""Natural logarithm of t_total, so that a difference is a ratio."""


class Claim(NamedTuple):
    """`metric` of `left` less that of `right` is `side` `margin`, on joint or on single requests."""

    source: str
    says: str
    joint: bool
    metric: str
    left: str
    right: str
    """A method, `original`, `oracle`, or nothing: then the value itself is meant."""
    side: Literal["below", "above"]
    margin: float = 0.0


SLUG, SALUN, SVD = "SLUG (Cai et al. 2025)", "SalUn (Fan et al. 2024)", "Deep Unlearning (Kodge et al. 2024)"
FORGETS = 0.05
"""Points of forget accuracy above the oracle that still count as forgotten: 2.4 of 48 pictures."""

CLAIMS = (
    Claim(SLUG, "SLUG forgets one identity as well as retraining would", False, "fa@1", "slug", "oracle", "below", FORGETS),
    Claim(SLUG, "SLUG forgets several identities at once", True, "fa@1", "slug", "oracle", "below", FORGETS),
    # 61.38 -> 58.32 on CelebA, 60.12 -> 59.96 on ImageNet
    Claim(SLUG, "SLUG loses at most 3.1 points of other identities", False, "ra@1", "slug", "original", "above", -0.031),
    Claim(SLUG, "the same for eight identities at once", True, "ra@1", "slug", "original", "above", -0.031),
    Claim(SLUG, "SLUG loses at most 0.2 points of an unrelated task", False, "util@1", "slug", "original", "above", -0.002),
    *(
        Claim(SLUG, f"SLUG keeps more of other identities than {name}", False, "ra@1", "slug", name, "above")
        for name in ("ga", "gaft", "salun_slug", "ssd")
    ),
    *(
        Claim(SLUG, f"SLUG takes less time than {name}", False, TIMES, "slug", name, "below")
        for name in ("ga", "gaft", "salun", "salun_slug", "ssd", "ft")
    ),
    Claim(SLUG, "its layers keep more than one drawn at random", False, "ra@1", "slug", "random_layer", "above"),
    Claim(SLUG, "the same for eight identities at once", True, "ra@1", "slug", "random_layer", "above"),
    Claim(SLUG, "its direction keeps more than a random one", False, "ra@1", "slug", "noise", "above"),
    Claim(
        SLUG, "gradient ascent loses more than 20 points of other identities", False, "ra@1", "ga", "original", "below", -0.2
    ),
    Claim(SLUG, "fine-tuning leaves more than half of the forget accuracy", False, "fa@1", "ft", "", "above", 0.5),
    *(
        Claim(SALUN, f"SalUn comes closer to retraining than {name}", joint, GAP, "salun", name, "below")
        for joint in (False, True)
        for name in ("random_label", "ft", "ga", "l1_sparse")
    ),
    Claim(SVD, "SVD leaves less than 1 % of forget accuracy", False, "fa@1", "svd", "", "below", 0.01),
    Claim(SVD, "SVD loses at most 1.5 points of the rest", False, "ra@1", "svd", "original", "above", -0.015),
    Claim(SVD, "SVD takes less time than gradient ascent", False, TIMES, "svd", "ga", "below"),
    Claim(SVD, "SVD comes closer to retraining than SCRUB", False, GAP, "svd", "scrub", "below"),
    Claim(
        "ViT unlearning benchmark (2026)",
        "NegGrad+ beats SalUn on transformers",
        False,
        GAP,
        "neggrad_plus",
        "salun",
        "below",
    ),
    Claim("ViT unlearning benchmark (2026)", "fine-tuning beats SalUn on transformers", False, GAP, "ft", "salun", "below"),
)


@report("claims")
@dataclass(frozen=True)
class Claims:
    """What holds of the papers' claims on the suite's people: differences with intervals, verdicts, and the numbers."""

    def __call__(self, frame: pd.DataFrame, runs: Sequence[Mapping[str, Any]], out: Path) -> list[Path]:
        """Write `methods.md` and `claims.csv`."""
        out = Path(out)
        out.mkdir(parents=True, exist_ok=True)
        frame = normalised(frame)
        found = verdicts(frame, runs)
        (out / "methods.md").write_text(document(found, frame, runs), encoding="utf-8")
        found.to_csv(out / "claims.csv", index=False)
        return [out / "methods.md", out / "claims.csv"]


def verdicts(frame: pd.DataFrame, runs: Sequence[Mapping[str, Any]], claims: Sequence[Claim] = CLAIMS) -> pd.DataFrame:
    """One row a claim and parameter setting of its left method for which the table has the cells.

    Columns source, says, requests (joint or single), metric, left, right, difference, low, high, n_requests,
    n_base_seeds, n_missing (of their product), side and margin (what is claimed of the difference), verdict.
    """
    rows = tables.labelled(frame, tables.control_names(runs), choices(runs))
    rows = rows[rows["metric"].notna() & (rows["pool"] == "test") & ~rows["task"].isin(classifiers(rows))]
    rows = pd.concat([rows, _gaps(rows), _times(rows)], ignore_index=True)
    columns = ["source", "says", "requests", "metric", "left", "right", "difference", "low", "high"]
    columns += ["n_requests", "n_base_seeds", "n_missing", "side", "margin", "verdict"]
    return pd.DataFrame([line for claim in claims for line in _lines(claim, rows)], columns=columns)


def classifiers(rows: pd.DataFrame) -> set[str]:
    """The tasks whose models are classifiers: the claims are about CLIP."""
    return set(rows[rows["metric"] == "acc_forget"]["task"])


SAME = ["task", "task_params", "device", "threads"]
"""What both sides of a difference must share."""


def _lines(claim: Claim, rows: pd.DataFrame) -> list[tuple[Any, ...]]:
    part = rows[(rows["metric"] == claim.metric) & (rows["joint"] == claim.joint)]
    found = []
    for _, alike in part.groupby(SAME, sort=True):
        for setting in ("default", "tuned") if (alike["tuned"] | alike["kept"]).any() else ("default",):
            mine = _in_setting(alike[alike["method"] == claim.left], setting)
            for label, one in mine.groupby("label", sort=True):
                for other, grid in _others(claim, alike, one, str(label), setting):
                    found.append(_line(claim, f"{label}", other, by_request(one), grid))
    return list(dict.fromkeys(found))  # a pair that tuning left as it was has one line


def _in_setting(part: pd.DataFrame, setting: str) -> pd.DataFrame:
    """A method's rows with its defaults or as tuned; defaults that tuning kept are both, and so is what has no tuning."""
    chosen = part[part["tuned"] | part["kept"]] if setting == "tuned" else part[~part["tuned"]]
    return chosen if len(chosen) else part


def _others(
    claim: Claim, part: pd.DataFrame, mine: pd.DataFrame, label: str, setting: str
) -> list[tuple[str, pd.DataFrame | None]]:
    """What a method is compared with: nothing, its own oracles, or another method in the same setting."""
    if not claim.right:
        return [("", None)]
    if claim.right == "oracle":
        return [("oracle", by_request(mine.assign(value=mine["oracle_mean"])))]
    right = _in_setting(part[part["method"] == claim.right], setting)
    theirs = {str(name): group for name, group in right.groupby("label", sort=True)}
    like = [name for name in theirs if name.removeprefix(claim.right) == label.removeprefix(claim.left)]
    return [(name, by_request(theirs[name])) for name in like or list(theirs)]


def _line(claim: Claim, left: str, right: str, mine: pd.DataFrame, theirs: pd.DataFrame | None) -> tuple[Any, ...]:
    both = mine if theirs is None else mine - theirs.reindex_like(mine)
    if theirs is not None:  # what only the other side has is missing here
        both = both.reindex(index=both.index.union(theirs.index), columns=both.columns.union(theirs.columns))
    n_missing, known = int(both.isna().to_numpy().sum()), both.dropna()
    whole = not n_missing and len(known) >= MIN_REQUESTS
    low, high = interval(known.to_numpy()) if whole else (math.nan, math.nan)  # which compare as false
    inside = high < claim.margin if claim.side == "below" else low > claim.margin
    outside = low > claim.margin if claim.side == "below" else high < claim.margin
    verdict = "holds" if inside else "does not hold" if outside else "not resolved"
    return (
        claim.source, claim.says, "joint" if claim.joint else "single", claim.metric, left, right,
        float(known.to_numpy().mean()) if known.size else math.nan, low, high, *both.shape, n_missing,
        claim.side, claim.margin, verdict,
    )  # fmt: skip


def _gaps(rows: pd.DataFrame) -> pd.DataFrame:
    """A row a cell with the metric `GAP`, of as many of `GAPS` as are known for it."""
    part = rows[rows["metric"].isin(GAPS)]
    gap = (part["value"].astype(float) - part["oracle_mean"].astype(float)).abs()
    mean = gap.groupby(part["cell"]).mean()
    first = part.drop_duplicates("cell")
    return first.assign(metric=GAP, value=first["cell"].map(mean))


def _times(rows: pd.DataFrame) -> pd.DataFrame:
    part = rows[(rows["metric"] == "t_total") & (rows["value"].astype(float) > 0)]
    return part.assign(metric=TIMES, value=np.log(part["value"].astype(float)))


# ---------------------------------------------------------------- the document


def document(found: pd.DataFrame, frame: pd.DataFrame, runs: Sequence[Mapping[str, Any]]) -> str:
    """The file's text."""
    counts = ", ".join(f"{verdict} {n}" for verdict, n in found["verdict"].value_counts().sort_index().items())
    parts = [
        f"# What holds of the papers' claims on the suite {escaped(facts.suites(frame, runs))}",
        "Each claim as a difference between two methods (or a method and the oracles, or the original) on the same requests "
        "and base models, with the 95 % interval over requests and base models. `holds`: the whole interval lies on the "
        "claim's side; `does not hold`: on the other side; `not resolved`: it says neither, there are too few requests for "
        f"an interval, or cells are missing. These are {found['low'].notna().sum()} intervals of 95 % each, not corrected "
        "for their number. `mean oracle` is the mean of all retrained models of a request, not one in a method's place. "
        f"`{GAP}` is the mean absolute distance of {', '.join(GAPS)} to it, of those that are known for a cell (membership "
        "is not where the original itself cannot be attacked); boards have another distance, which forgives what is kept "
        "too well. Ratios are of seconds, search included.",
        f"In all: {counts or 'none'}.",
    ]
    for source, part in found.groupby("source", sort=False):
        parts += [f"## {escaped(str(source))}", table(_shown(part))]
    if found.empty:
        parts.append("The table has none of the cells that these claims are about.")
    for board in tables.boards(frame, runs):
        if board.pool == "test" and board.task not in classifiers(frame):
            parts += numbers(board)
    command = "\n".join(facts.commands(frame, runs))
    parts += ["## Reproduce and cite", f"```\n{command}\n```", escaped(facts.citation(frame, runs))]
    return "\n\n".join(parts) + "\n"


SHOWN = ("fa@1", "ra_near@1", "ra_far@1", "util@1", "mia_sample", "ks_d")
COSTS = ("t_total", "t_search", "n_forget_read", "n_retain_read", "n_evals", "peak_rss_bytes", "bytes_delta")


def numbers(board: Board) -> list[str]:
    """A board's forget accuracy, retain accuracy near and far, distance to the oracles, and costs."""
    how = escaped(f"{board.extent}. Methods by their distance to the oracle, then controls. {board.few}")
    return [
        f"## {escaped(board.title)}: the numbers",
        *part_of(board, how, SHOWN),
        *part_of(board, "Costs: median over cells (lowest..highest).", COSTS),
    ]


def _shown(part: pd.DataFrame) -> pd.DataFrame:
    lines = [
        {
            "claim": row["says"],
            "requests": f"{row['n_requests']} {row['requests']} x {row['n_base_seeds']}",
            "difference": f"{row['metric']}: {row['left']}{_less(row)}",
            "claimed": f"{row['side']} {number(float(np.exp(row['margin'])) if row['metric'] == TIMES else row['margin'])}",
            "value (95 %)": _numbers(row),
            "verdict": row["verdict"],
        }
        for row in part.to_dict("records")
    ]
    return pd.DataFrame(lines)


def _less(row: Mapping[Any, Any]) -> str:
    if not row["right"]:
        return ""
    sign = "/" if row["metric"] == TIMES else "-"
    return f" {sign} {'mean oracle' if row['right'] == 'oracle' else row['right']}"


def _numbers(row: Mapping[Any, Any]) -> str:
    values = [float(row[name]) for name in ("difference", "low", "high")]
    if row["metric"] == TIMES:
        values = [float(np.exp(value)) for value in values]
    value, low, high = (number(value) for value in values)
    if not np.isnan(values[1]):
        return f"{value} ({low} to {high})"
    return (
        f"{value} ({row['n_missing']} cells missing)" if row["n_missing"] else f"{value} (too few requests for an interval)"
    )
