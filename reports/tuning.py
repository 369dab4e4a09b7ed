"""What `run.json` says of tuned parameters: which rows have them, how they were chosen, what fewer tries give."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from .glossary import number

SHOWN = (1, 5, 10)
"""How many configurations the table says the expected best of."""


class Choice(NamedTuple):
    """Parameters that were chosen for a method on a task."""

    task: str
    task_params: str
    """JSON, as in the table."""
    method: str
    params: str
    """All of them as JSON, as in the table."""
    changed: str
    """Those that are not the defaults, `key=value, ...`; empty where tuning kept them all."""
    how: Mapping[str, Any] | None
    """Budget, number chosen, scores, curves; None for parameters that were written by hand."""

    @property
    def setting(self) -> tuple[str, str, str, str]:
        """What the rows measured with it have in common: task, method and their parameters."""
        return self[:4]


def choices(runs: Sequence[Mapping[str, Any]]) -> list[Choice]:
    """Every choice of every run, the same one once, by task and method."""
    found = [_choice(each) for run in runs for each in (run.get("tuned") or {}).values()]
    return sorted({choice.setting: choice for choice in found}.values(), key=lambda choice: choice.setting)


def by_task(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[Choice]]:
    """The choices of which it is known how they were made, by task."""
    known = [choice for choice in choices(runs) if choice.how]
    return {task: [c for c in known if c.task == task] for task in dict.fromkeys(choice.task for choice in known)}


def table(known: Sequence[Choice]) -> pd.DataFrame:
    """Choices as text: what was tried and chosen, scores with the defaults and as chosen, the best of a few."""
    records = []
    for choice in known:
        how = choice.how or {}
        record = {"method": choice.method, "tried": str(how["tried"]), "chosen": choice.changed or "the defaults"}
        for name in ("shortfall", "forget", "retain"):
            scores = (how[f"{which}_scores"][name] for which in ("default", "chosen"))
            record[f"{name}: default, chosen"] = ", ".join(map(number, scores))
        curve = how["best_of_k"]["shortfall"]
        records.append(record | {f"best of {k}": number(curve[k - 1]) if k <= len(curve) else "—" for k in SHOWN})
    return pd.DataFrame(records)


def sentence(known: Sequence[Choice]) -> str:
    """How the parameters of a task were chosen."""
    hows = [choice.how for choice in known if choice.how]
    budgets = sorted({how["budget"] for how in hows})
    targets = sorted({request for how in hows for request in how["requests"].get(known[0].task, [])})
    seeds = sorted({seed for how in hows for seed in how["base_seeds"]})
    return (
        f"Each method was tried with at most {' or '.join(map(str, budgets))} configurations, its defaults among them, on "
        f"the tuning requests {', '.join(targets)} with {_count(len(seeds), 'base model')}. Chosen is the one that misses "
        "forgetting and keeping least on validation data (shortfall), then the one that keeps most; a cell that failed "
        "counts as the worst there is. Best of k: the expected shortfall of what is chosen among k of the configurations."
    )


def _choice(each: Mapping[str, Any]) -> Choice:
    changed = {name: value for name, value in each["params"].items() if each["default"].get(name) != value}
    text = ", ".join(f"{name}={value}" for name, value in changed.items())
    task_params, params = (json.dumps(each[name], sort_keys=True) for name in ("task_params", "params"))
    return Choice(each["task"], task_params, each["method"], params, text, each.get("how"))


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'s' if n > 1 else ''}"
