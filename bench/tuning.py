"""Choosing methods' parameters: which are tried, which of them is chosen, and the files that say so. Runs nothing.

Each method that declares a `space` (parameter -> values) is tried with the same number of configurations: its defaults,
then others of the grid, drawn without replacement. They are judged on requests of the pool `tune` and there on validation
data, and one rule chooses for all methods: the least mean shortfall (`Request.shortfall`; a cell without scores has the
worst, 2), where that is equal the better retain accuracy, where that is equal what was drawn first.
"""

from __future__ import annotations

import csv
import io
import json
import random
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import resources
from itertools import compress, product
from math import comb, fsum
from pathlib import Path
from typing import Any, NamedTuple

import pydantic

from .errors import UsageError
from .plan import TUNED, Cell, Suite, Variants, resolved, task_key
from .registry import REGISTRY, Spec, did_you_mean, parse_spec
from .types import Pool

POOL: Pool = "tune"
WORST = {"forget": 1.0, "retain": 0.0, "shortfall": 2.0}
"""What a cell that left no scores counts as: nothing forgotten, nothing kept."""
HOW = "how-tuned"
"""The table of a file of tuned parameters that says how they were found; no task can have this name."""
DIGITS = 9
"""Decimals to which scores are compared: sums in floating point differ behind them."""


# ---------------------------------------------------------------- what is tried


def tuning_suite(suite: Suite, methods: Sequence[str]) -> Suite:
    """The suite that tunes these methods: without metrics, which read test data, and under a name of its own, so that no
    folder holds both.

    Raises:
        UsageError: a task has no request to tune on.
    """
    for spec in map(parse_spec, suite.tasks):
        if all(request.pool != POOL for request in REGISTRY.create("task", spec.name, spec.params).requests()):
            raise UsageError(f"task '{spec.name}' has no request of the pool '{POOL}'; name other tasks by --tasks.")
    changes = {"name": f"{suite.name}-tuning", "methods": list(methods), "metrics": [], "requests": None, "also": []}
    return suite.model_copy(update=changes)


def untunable(spec: Spec) -> str | None:
    """Why a method of a suite is not tuned; None if it is."""
    entry = REGISTRY.get("method", spec.name)
    if entry.control:
        return "controls"
    if spec.params:
        return "parameters given"
    return None if getattr(entry.cls, "space", None) else "no space declared"


def draw(method: str, budget: int, seed: int) -> list[dict[str, Any]]:
    """The configurations of a method to try, as parameters that differ from the defaults.

    Args:
        method: a registered name whose definition has a `space`.
        budget: how many, the defaults included.
        seed: of the draw, together with the method's name: every task gets the same configurations.

    Returns:
        The defaults (no parameters) first, then distinct others in random order, at most `budget` in all; fewer where
        the grid has no more. A larger budget only adds to what a smaller one draws.

    Raises:
        UsageError: the space is none, or the method refuses a configuration of it.
    """
    space = _checked_space(method)
    grid = list(product(*space.values()))
    random.Random(f"{seed} {method}").shuffle(grid)
    found: dict[str, dict[str, Any]] = {}
    for params in ({}, *(dict(zip(space, values, strict=True)) for values in grid)):
        if len(found) == budget:
            break
        found.setdefault(_settled(method, params), params)  # a point of the grid may be the defaults again
    return list(found.values())


def only_tuning_requests(cells: Iterable[Cell]) -> None:
    """Refuse cells on any request that parameters must not be chosen on."""
    for cell in cells:
        if cell.pool != POOL:
            raise UsageError(
                f"request '{cell.request}' of task '{cell.task}' is of the pool '{cell.pool}'; "
                f"parameters are chosen on the pool '{POOL}' alone."
            )


def _checked_space(method: str) -> Mapping[str, Sequence[Any]]:
    space = getattr(REGISTRY.get("method", method).cls, "space", None)
    if not isinstance(space, Mapping):
        raise UsageError(f"the space of method '{method}' is no mapping of a parameter to a tuple of values.")
    for key, values in space.items():
        plain = isinstance(values, tuple | list) and all(isinstance(v, bool | int | float | str | None) for v in values)
        if not plain or not values:
            raise UsageError(
                f"the space of method '{method}' has {key}={values!r}; give a tuple of numbers, texts, truth values or None."
            )
    return space


def _settled(method: str, params: Mapping[str, Any]) -> str:
    """A method's full parameters as text."""
    return json.dumps(resolved("method", Spec(method, params))[1], sort_keys=True)


# ---------------------------------------------------------------- what is chosen


class Tried(NamedTuple):
    """A configuration of a method on a task: means over its cells, those that failed counted as worst."""

    params: dict[str, Any]
    n_cells: int
    n_ok: int
    forget: float
    retain: float
    shortfall: float
    seconds: float
    """Wall-clock time of its cells together."""

    def means(self) -> dict[str, float]:
        """Mean forget, retain and shortfall."""
        return {name: getattr(self, name) for name in WORST}


class Trace(NamedTuple):
    """All configurations of a method on a task, in the order drawn."""

    task: str
    """As the suite has it: a name, or a name with parameters."""
    method: str
    tried: list[Tried]

    def order(self) -> list[int]:
        """The configurations' numbers, best first."""

        def rank(i: int) -> tuple[float, float, int]:
            return round(self.tried[i].shortfall, DIGITS), -round(self.tried[i].retain, DIGITS), i

        return sorted(range(len(self.tried)), key=rank)

    @property
    def chosen(self) -> int:
        """The best one's number; 0 are the defaults."""
        return self.order()[0]

    def best_of_k(self, name: str) -> list[float]:
        """Expected `shortfall` or `retain` of what is chosen among k of the configurations, for k = 1, 2, ..."""
        return expected_first([getattr(self.tried[i], name) for i in self.order()])


def expected_first(values: Sequence[float]) -> list[float]:
    """Expected value of the first of k values drawn without replacement, for k = 1 .. n, where earlier is better.

    E_k = sum_i v_i C(n - 1 - i, k - 1) / C(n, k), i = 0 .. n - 1: value i comes first if the other k - 1 are after it.

    Example:
        >>> expected_first([0.0, 1.0, 2.0])
        [1.0, 0.3333333333333333, 0.0]
    """
    n = len(values)
    return [fsum(v * (comb(n - 1 - i, k - 1) / comb(n, k)) for i, v in enumerate(values)) for k in range(1, n + 1)]


def traces(
    tasks: Sequence[str],
    drawn: Mapping[str, Sequence[dict[str, Any]]],
    cells: Sequence[Cell],
    record_of: Callable[[Cell], Mapping[str, Any] | None],
) -> tuple[list[Trace], list[str]]:
    """What became of every configuration, by task and method, and a sentence for each method that skipped a whole task.

    Cells that all configurations of a method skip are left out.

    Args:
        tasks: as the suite has them.
        drawn: for each method its configurations.
        cells: all cells of all of them.
        record_of: the finished record of a cell.
    """
    records: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for cell in cells:
        if (record := record_of(cell)) is None:
            raise UsageError(f"cell {cell.name} is not there; run the same command again.")
        what = (*task_key(cell.task, cell.task_params), cell.method, json.dumps(cell.method_params, sort_keys=True))
        records.setdefault(what, []).append(record)
    found, skipped = [], []
    for task in dict.fromkeys(tasks):
        spec, task_params, _ = resolved("task", parse_spec(task))
        key = task_key(spec.name, task_params)
        for method, configurations in drawn.items():
            mine = [records[*key, method, _settled(method, params)] for params in configurations]
            # what no configuration can do is no fault of any; what one skips and another does is
            common = [any(record["status"] != "skipped" for record in same) for same in zip(*mine, strict=True)]
            if not any(common):
                skipped.append(f"{method} is not tuned on {task}: {mine[0][0]['error']}")
            else:
                mine = [list(compress(part, common)) for part in mine]
                found.append(Trace(task, method, list(map(_tried, configurations, mine))))
    return found, skipped


def _tried(params: dict[str, Any], records: Sequence[Mapping[str, Any]]) -> Tried:
    scores = [_scores(record) for record in records]
    means = {name: fsum(score[name] for score in scores) / len(scores) for name in WORST}
    n_ok = sum(record["status"] == "ok" for record in records)
    return Tried(params, len(records), n_ok, **means, seconds=fsum(record["wall_seconds"] for record in records))


def _scores(record: Mapping[str, Any]) -> Mapping[str, float]:
    scores = record.get("validation") if record["status"] == "ok" else None
    return WORST if scores is None or any(scores[name] is None for name in WORST) else scores


def summary(found: Sequence[Trace]) -> list[str]:
    """Lines for a terminal: what was chosen for each method on each task, and its scores beside the defaults'."""
    lines = []
    for task in dict.fromkeys(trace.task for trace in found):
        rows = [_summed(trace) for trace in found if trace.task == task]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines += [f"{task}: number chosen; shortfall, forget and retain accuracy on validation data, default -> chosen"]
        lines += ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return lines


def _summed(trace: Trace) -> tuple[str, ...]:
    default, chosen = trace.tried[0], trace.tried[trace.chosen]
    names = ("shortfall", "forget", "retain")
    scores = (f"{getattr(default, name):.3f} -> {getattr(chosen, name):.3f}" for name in names)
    params = ", ".join(f"{name}={value}" for name, value in chosen.params.items()) or "the defaults"
    failed = sum(tried.n_cells - tried.n_ok for tried in trace.tried)
    note = f"({failed} cells not ok, counted as worst)" if failed else ""
    return trace.method, f"{trace.chosen} of {len(trace.tried)}", *scores, params, note


# ---------------------------------------------------------------- the files written


def trace_csv(found: Sequence[Trace]) -> str:
    """A row for each configuration: means over its cells, and in row `k - 1` of a method what choosing among k gives."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = ["task", "method", "number", "params", "chosen", "n_cells", "n_ok", *WORST, "seconds", "k"]
    writer.writerow([*head, "best_of_k_shortfall", "best_of_k_retain"])
    for trace in found:
        curves = zip(trace.best_of_k("shortfall"), trace.best_of_k("retain"), strict=True)
        for i, (tried, curve) in enumerate(zip(trace.tried, curves, strict=True)):
            facts = [trace.task, trace.method, i, json.dumps(tried.params, sort_keys=True), i == trace.chosen]
            means = tried.means().values()
            writer.writerow([*facts, tried.n_cells, tried.n_ok, *means, round(tried.seconds, 3), i + 1, *curve])
    return text.getvalue()


def tuned_toml(found: Sequence[Trace], header: Mapping[str, Any]) -> str:
    """The chosen parameters, one table `[task.method]` each (an empty one keeps the defaults), and how they were found.

    The same cells give the same text: it holds no times and no dates.
    """
    lines = [
        "# Chosen by `slugbench tune`; `slugbench run SUITE --params FILE` runs methods with their defaults and with these."
    ]
    lines += ["", f"[{HOW}]", *(f"{_key(name)} = {_toml(value)}" for name, value in header.items())]
    for trace in found:
        lines += ["", f"[{_key(trace.task)}.{_key(trace.method)}]"]
        lines += [f"{_key(name)} = {_toml(value)}" for name, value in trace.tried[trace.chosen].params.items()]
    for trace in found:
        facts = {
            "tried": len(trace.tried),
            "chosen": trace.chosen,
            "default_scores": trace.tried[0].means(),
            "chosen_scores": trace.tried[trace.chosen].means(),
            "best_of_k": {name: trace.best_of_k(name) for name in ("shortfall", "retain")},
        }
        lines += ["", f"[{HOW}.traces.{_key(trace.task)}.{_key(trace.method)}]"]
        lines += [f"{name} = {_toml(value)}" for name, value in facts.items()]
    return "\n".join([*lines, ""])


def _toml(value: Any) -> str:
    """A plain value as TOML; None, which TOML lacks, as the text that the registry reads as None."""
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{_key(name)} = {_toml(each)}' for name, each in value.items())} }}" if value else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, float):
        return repr(value)
    # JSON's texts are TOML's but for surrogate pairs, hence no escapes above ASCII, and for DEL
    return json.dumps("none" if value is None else value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _key(name: str) -> str:
    return name if re.fullmatch("[A-Za-z0-9_-]+", name) else _toml(name)


# ---------------------------------------------------------------- the file read


class Means(pydantic.BaseModel):
    """Of one configuration, over its cells."""

    model_config = pydantic.ConfigDict(extra="forbid")

    forget: float
    retain: float
    shortfall: float


class Curve(pydantic.BaseModel):
    """Expected scores of what is chosen among 1, 2, ... configurations."""

    model_config = pydantic.ConfigDict(extra="forbid")

    shortfall: list[float]
    retain: list[float]


class Evidence(pydantic.BaseModel):
    """What is known of a choice."""

    model_config = pydantic.ConfigDict(extra="forbid")

    tried: int
    chosen: int
    default_scores: Means
    chosen_scores: Means
    best_of_k: Curve


class How(pydantic.BaseModel):
    """How parameters were chosen."""

    model_config = pydantic.ConfigDict(extra="forbid")

    suite: str
    budget: int
    seed: int
    pool: str
    requests: dict[str, list[str]]
    base_seeds: list[int]
    method_seeds: list[int]
    device: str
    threads: int
    version: str
    traces: dict[str, dict[str, Evidence]] = {}


class Choice(NamedTuple):
    """Parameters of a method for a task, as a file has them."""

    task: str
    task_params: dict[str, Any]
    method: str
    params: dict[str, Any]
    """All of them, defaults included."""
    default: dict[str, Any]
    how: dict[str, Any] | None
    """What the file says of where it comes from: `How` less its traces, and `Evidence`."""

    @property
    def name(self) -> str:
        """Of what it is for."""
        return f"{self.task}{json.dumps(self.task_params, sort_keys=True)} {self.method}"


def read_tuned(where: str) -> list[Choice]:
    """The parameters in a `.toml` file, or in that which ships with a suite.

    Raises:
        UsageError: there is no such file; it is no TOML, or not of this form; a task, method or parameter is unknown.
    """
    try:
        content = tomllib.loads(_text(where))
        how = How.model_validate(content.pop(HOW)) if HOW in content else None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"params file {where} is not valid TOML: {error}.") from error
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, (HOW, *first["loc"])))
        raise UsageError(
            f"params file {where}: {place} does not do: {first['msg'][0].lower()}{first['msg'][1:]}."
        ) from error
    try:
        return [_choice(task, method, params, how) for task, method, params in _tables(content)]
    except UsageError as error:
        raise UsageError(f"params file {where}: {error}") from error


def variants(choices: Iterable[Choice]) -> Variants:
    """Chosen parameters as `plan.expand` takes them."""
    found: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = {}
    for choice in choices:
        found.setdefault(task_key(choice.task, choice.task_params), {})[choice.method] = [choice.params]
    return found


def _text(where: str) -> str:
    if where.endswith(".toml"):
        try:
            return Path(where).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"params file {where} cannot be read: {error}.") from error
    folder = resources.files(__package__) / "suites"
    shipped = sorted(file.name.removesuffix(TUNED) for file in folder.iterdir() if file.name.endswith(TUNED))
    if where not in shipped:
        raise UsageError(
            f"no tuned parameters ship for a suite '{where}'{did_you_mean(where, shipped)}; "
            f"there are those for {', '.join(shipped) or 'none'}, or give a .toml file that `slugbench tune` wrote."
        )
    return (folder / f"{where}{TUNED}").read_text(encoding="utf-8")


def _tables(content: Mapping[str, Any]) -> Iterable[tuple[str, str, dict[str, Any]]]:
    for task, methods in content.items():
        for method, params in methods.items() if isinstance(methods, dict) else [("METHOD", None)]:
            if not isinstance(params, dict):
                raise UsageError(f"'{task}' holds no tables [{_key(task)}.METHOD] of parameters.")
            yield task, method, params


def _choice(task: str, method: str, params: dict[str, Any], how: How | None) -> Choice:
    spec, task_params, _ = resolved("task", parse_spec(task))
    if REGISTRY.get("method", method).control:
        raise UsageError(f"method '{method}' is a control, which has no tuned parameters.")
    full, default = (resolved("method", Spec(method, own))[1] for own in (params, {}))
    evidence = how.traces.get(task, {}).get(method) if how else None
    known = {**how.model_dump(exclude={"traces"}), **evidence.model_dump()} if how and evidence else None
    return Choice(spec.name, task_params, method, full, default, known)
