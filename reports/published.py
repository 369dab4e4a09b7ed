"""What papers print, beside what is measured here: the numbers of `published.csv`, and what the table calls them.

A number stands beside a line of the same task, method and metric; how far the two are apart is said only where the run
evaluates as the paper did. Fictitious people, scans of digits and small canvases are in no paper.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

import pandas as pd

from .glossary import number, signed
from .tables import IMPORTED, Board, Column

GIVEN = "(?!None$).+"
"""Any value, but one there has to be."""
OBJECTS = (
    *("Architectures", "Bears", "Birds", "Butterfly", "Cats", "Dogs", "Fishes", "Flame", "Flowers", "Frogs", "Horses"),
    *("Human", "Jellyfish", "Rabbits", "Sandwiches", "Sea", "Statues", "Towers", "Trees", "Waterfalls"),
)
"""UnlearnCanvas's; all of its other requests are styles."""


@dataclass(frozen=True)
class Experiment:
    """A benchmark of the file as a task here runs it. What is told from others by a pattern has to match as a whole."""

    benchmark: str
    task: str
    over: str
    """What the published numbers are means over, in words."""
    requests: str
    """Pattern of the requests whose boards it has to do with."""
    params: Mapping[str, str]
    """By parameter of the task, the pattern of the values with which it evaluates as was published."""
    methods: Mapping[str, str]
    """The file's method -> the table's."""
    metrics: Mapping[str, str]
    """The file's metric -> the table's, or `1 - ` it."""
    among: str = ".*"
    """Pattern of the requests that were published."""

    def differs(self, board: Board) -> str:
        """In what a board is not as was published, in words; nothing where it is."""
        params = json.loads(board.rows["task_params"].iloc[0])
        other = [key for key, wanted in self.params.items() if not re.fullmatch(wanted, str(params.get(key)))]
        found = [f"{key}={params.get(key)}" for key in other]
        if any(not re.fullmatch(self.among, request) for request in set(board.rows["request"])):
            found.append("other requests")
        return ", ".join(found)


_SAME = ("original", "ft", "ga", "gaft", "salun_slug", "ssd", "slug")
_SALUN = ("ft", "random_label", "ga", "l1_sparse", "salun")
_CANVAS = ("esd", "fmn", "uce", "salun", "seot", "spm", "ediff", "shs", "slug")
_RELEASED = {
    **{"styles": "51", "objects": "20", "images": "20", "seeds": "5", "steps": "100", "guidance": r"9\.0", "side": "512"},
    "architecture": r"vit_large_patch16_224\.augreg_in21k",
}
EXPERIMENTS = (
    Experiment(
        "clip-celeba",
        "celeba",
        "5 people",
        requests=".*",
        params={
            **{"protocol": "published", "model": "ViT-B-32", "pretrained": "laion400m_e32", "quickgelu": "None|False"},
            **{"forget_data": GIVEN, "retain_data": GIVEN, "imagenet": GIVEN},
        },
        methods={name: name for name in _SAME},
        metrics={
            **{"fa@1": "fa@1", "fa@5": "fa@5", "imagenet@1": "util@1", "imagenet@5": "util@5"},
            **{"celeba100@1": "ta@1", "celeba100@5": "ta@5"},
            "mia_lr_acc": "mia_cc3m",  # its non-members are another collection's, which the table's own column are not
        },
        among="Elon_Musk|Jeff_Bezos|Mark_Zuckerberg|Taylor_Swift|Kim_Kardashian",
    ),
    *(
        Experiment(
            "unlearncanvas",
            "unlearncanvas",
            over,
            requests=requests,
            params=_RELEASED,
            methods={**{name: name for name in _CANVAS}, "ca": "concept_ablation"},
            metrics={f"{domain}_{name}": name for name in ("ua", "ira", "cra")},
        )
        for domain, over, requests in (
            ("style", "50 styles, SLUG's over 51", f"(?!({'|'.join(OBJECTS)})$).*"),
            ("object", "20 objects", "|".join(OBJECTS)),
        )
    ),
    Experiment(
        "cifar10-random10",
        "cifar10",
        "10 trials",
        requests=r"random-10-\d+",
        params={"protocol": "published", "model": "resnet18", "recipe": "salun"},
        methods={**{name: name for name in _SALUN}, "retrain": "oracle"},
        # of samples the table's accuracies are of the forgotten themselves and of all test images
        metrics={"ua": "1 - acc_forget", "ta": "acc_retain", "mia_svc_eff": "mia_svc_eff"},
    ),
    Experiment(
        "cifar10-class",
        "cifar10",
        "10 classes",
        requests=r"class-\d+",
        params={"protocol": "published", "model": "resnet18", "recipe": "svd"},
        methods={
            **{name: name for name in ("original", "neggrad_plus", "scrub", "ssd", "svd")},
            **{"retrain": "oracle", "neggrad": "ga"},
        },
        metrics={"acc_retain": "acc_retain", "acc_forget": "acc_forget"},
    ),
)
"""Which columns of which boards the file's numbers belong to."""

_FOREIGN = "measured on the papers' hardware, by code that is not released"
_ABSENT = "there is no such method here"
UNMAPPED: Mapping[tuple[str, str], str] = {
    **{("unlearncanvas", cost): _FOREIGN for cost in ("t_total", "peak_device", "storage")},
    ("unlearncanvas", "fid"): "its Inception is fed other values than in any other tool, so no other number compares",
    **{("cifar10-random10", name): _ABSENT for name in ("influence", "boundary_expand", "boundary_shrink")},
    ("cifar10-random10", "ra"): "no metric here is of the retained training images",
    ("cifar10-random10", "avg_gap"): "a mean over four columns of which one is not measured here",
    ("cifar10-class", "unsir"): _ABSENT,
    ("cifar10-class", "mia_class_suppression"): "no metric here is that attack",
    ("imagenet-class", "acc_retain_drop"): "an upper bound, no value",
    ("imagenet-class", "acc_forget_max"): "an upper bound, no value",
    ("vlm-identity", "fa_before"): "there is no task of vision-language models",
    ("vlm-identity", "fa_after"): "there is no task of vision-language models",
}
"""By benchmark, and method or metric, why numbers of the file stand on no board."""


class Published(NamedTuple):
    """One number of the file by the table's names; shares in [0, 1]."""

    benchmark: str
    method: str
    metric: str
    value: float
    source: str
    confidence: str
    """`high`: read where its authors put it; `medium`: second-hand."""
    protocol: str


class Beside(NamedTuple):
    """A published number beside a line's own."""

    published: Published
    difference: float | None
    """The line's less the published one; None where the run evaluates otherwise, or has no value."""


# ---------------------------------------------------------------- the file


@cache
def records() -> tuple[Mapping[str, str], ...]:
    """The file's lines, as they stand there."""
    text = resources.files(__package__).joinpath("published.csv").read_text(encoding="utf-8")
    return tuple(csv.DictReader(text.splitlines()))


def places(record: Mapping[str, str]) -> list[tuple[Experiment, Published]]:
    """Where a line of the file belongs; nowhere if it is in `UNMAPPED`."""
    found = []
    for experiment in EXPERIMENTS:
        method, metric = experiment.methods.get(record["method"]), experiment.metrics.get(record["metric"])
        if experiment.benchmark == record["benchmark"] and method is not None and metric is not None:
            value = float(record["value"]) / (100 if record["unit"] == "%" else 1)
            of = metric.removeprefix("1 - ")
            facts = (record[key] for key in ("source", "confidence", "protocol"))
            value = value if of == metric else 1 - value
            found.append((experiment, Published(experiment.benchmark, method, of, value, *facts)))
    return found


def reason(record: Mapping[str, str]) -> str | None:
    """Why a line of the file belongs nowhere; None if nobody said."""
    keys = [(record["benchmark"], record[column]) for column in ("method", "metric")]
    return next((UNMAPPED[key] for key in keys if key in UNMAPPED), None)


# ---------------------------------------------------------------- beside a board


def experiment_of(board: Board) -> Experiment | None:
    """The published experiment that a board's requests belong to."""
    requests = set(board.rows["request"])
    for experiment in EXPERIMENTS if not board.joint else ():
        if board.task == experiment.task and all(re.fullmatch(experiment.requests, request) for request in requests):
            return experiment
    return None


def beside(board: Board) -> dict[tuple[str, str], Beside]:
    """The published numbers of a board's lines, by (the line's name, metric)."""
    experiment = experiment_of(board)
    if experiment is None:
        return {}
    known = {(p.method, p.metric): p for record in records() for of, p in places(record) if of is experiment}
    same = not experiment.differs(board)
    found = {}
    for line in board.lines:
        method = str(board.rows.loc[board.rows["label"] == line.method, "method"].iloc[0])
        for metric, entry in line.entries.items():
            # images made elsewhere come under any name, such as `ESD`
            published = known.get((method.removesuffix(IMPORTED).casefold(), metric))
            if published is not None:
                own = entry.estimate.value
                found[line.method, metric] = Beside(published, own - published.value if same and own is not None else None)
    return found


def columns(board: Board) -> list[Column]:
    """The board's columns of which anything is published."""
    metrics = {metric for _, metric in beside(board)}
    return [column for column in board.columns if column.name in metrics]


def text(found: Beside | None, metric: str) -> str:
    """`0.600`, with the difference where there is one: `0.600 (+0.012)`; empty where nothing is published."""
    if found is None:
        return ""
    apart = "" if found.difference is None else f" ({signed(found.difference)})"
    return number(found.published.value, metric) + apart


def table(board: Board) -> pd.DataFrame:
    """Methods x metrics as text, and how sure the numbers are; empty where nothing is published."""
    known, shown = beside(board), columns(board)
    lines = []
    for line in board.lines:
        mine = {column.name: known[line.method, column.name] for column in shown if (line.method, column.name) in known}
        if mine:
            sure = " and ".join(sorted({each.published.confidence for each in mine.values()}))
            numbers = {column.name: text(mine.get(column.name), column.name) for column in shown}
            lines.append({"method": line.method, "confidence": sure, **numbers})
    return pd.DataFrame(lines)


def sentence(board: Board) -> str:
    """By what protocol the published numbers came about, and whether this is it; empty where there are none."""
    known, experiment = beside(board), experiment_of(board)
    if not known or experiment is None:
        return ""
    protocols = "; ".join(dict.fromkeys(each.published.protocol for each in known.values()))
    n = board.rows["request"].nunique()
    here = f"here {n} request{'s' * (n > 1)}"
    start = f"Published numbers [{experiment.benchmark}]: {protocols}; means over {experiment.over}, {here}."
    if other := experiment.differs(board):
        return f"{start} This run evaluates otherwise ({other}), so no difference is given."
    return f"{start} This run follows that protocol; in parentheses: here less published."


def facts(found: Beside | None) -> dict[str, Any]:
    """What is published of one number, as columns for a file; none where nothing is."""
    if found is None:
        return {}
    said: dict[str, Any] = {"published": found.published.value}
    said["published_difference"] = math.nan if found.difference is None else found.difference
    return said | {f"published_{key}": getattr(found.published, key) for key in ("confidence", "protocol", "source")}
