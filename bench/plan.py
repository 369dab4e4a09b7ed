"""Turns a suite and what the command line adds to it into cells, each with its key. Runs nothing, imports no torch."""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import resources
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import pydantic

from .artifacts import digest
from .errors import MissingData, UsageError, of_its_data
from .provenance import RESULT_VERSION, keyed_versions, source_digest
from .registry import REGISTRY, Kind, Spec, did_you_mean, parse_spec
from .types import Listed, Pool, Task, needs_model

REPORTED_POOL: Pool = "test"
TUNED = ".tuned.toml"
"""How the file of tuned parameters that ships beside a suite's ends."""

Variants: TypeAlias = "Mapping[tuple[str, str], Mapping[str, Sequence[Mapping[str, Any]]]]"
"""For a task (see `task_key`) and a method the parameters it is run with besides those of the suite."""


class Part(pydantic.BaseModel):
    """What a suite crosses besides, where that is not all of it: what is None here is the suite's."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, strict=True)

    tasks: list[str] | None = None
    methods: list[str] | None = None
    metrics: list[str] | None = None
    requests: int | dict[str, int | list[str]] | None = None
    base_seeds: list[int] | None = None
    method_seeds: list[int] | None = None


class Suite(pydantic.BaseModel):
    """What to cross: the content of a suite file."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str = pydantic.Field(pattern=r"^[A-Za-z0-9_.-]+$")
    tasks: list[str] = pydantic.Field(min_length=1)
    methods: list[str] = pydantic.Field(min_length=1)
    metrics: list[str] | None = None
    """Metric specs; by default, with its defaults, every registered metric that needs nothing but answers."""
    requests: int | dict[str, int | list[str]] | None = None
    """How many of each task's test requests, or which (of any pool), by task; by default all test requests."""
    base_seeds: list[int] = [0]
    method_seeds: list[int] = [0]
    threads: int = pydantic.Field(default=1, ge=1)
    timeout: float = pydantic.Field(default=3600, gt=0)
    """Seconds a cell may take."""
    memory: float = pydantic.Field(default=16, gt=0)
    """GB (1e9 bytes) a cell's process tree may hold."""
    also: list[Part] = []
    """Further crossings: more seeds or costlier metrics for some of the requests. A cell of several is one cell, judged by
    the metrics of all."""

    def parts(self) -> list[Suite]:
        """This suite without its further crossings, then each of these as a suite."""
        plain = self.model_copy(update={"also": []})
        return [plain, *(plain.model_copy(update=part.model_dump(exclude_none=True)) for part in self.also)]

    def with_changes(self, changes: Mapping[str, Any]) -> Suite:
        """The suite with other entries, which its further crossings have in the place of their own, too."""
        also = [part.model_copy(update=dict.fromkeys(changes.keys() & Part.model_fields.keys())) for part in self.also]
        return self.model_copy(update={"also": also, **changes})

    @pydantic.model_validator(mode="after")
    def _requests_are_of_its_tasks(self) -> Suite:
        tasks = [parse_spec(text).name for text in self.tasks]
        for wanted in (self.requests, *(part.requests for part in self.also)):
            for name in wanted if isinstance(wanted, dict) else ():
                if name not in tasks:
                    raise ValueError(f"requests names '{name}', which is none of its tasks {', '.join(tasks)}")
        return self


class Judge(NamedTuple):
    """A metric as a cell uses it."""

    spec: str
    name: str
    params: dict[str, Any]
    key: str


@dataclasses.dataclass(frozen=True)
class Cell:
    """One method on one request from one base model: the unit of work, isolation and resumption."""

    task: str
    task_params: dict[str, Any]
    request: str
    targets: tuple[str, ...]
    pool: Pool
    base_seed: int
    method: str
    method_params: dict[str, Any]
    method_seed: int
    threads: int
    device: str
    key: str
    """Digest of everything the result depends on; metrics have their own. Empty where its task lacks what it runs on."""
    trial_key: str
    """Digest of everything that its trial depends on."""
    judges: tuple[Judge, ...]

    @property
    def name(self) -> str:
        """What it is called in an output folder: what it crosses, and a digest where parameters could differ."""
        params = digest(json.dumps([self.task_params, self.method_params, self.request], sort_keys=True))[:8]
        parts = [self.task, self.request, f"b{self.base_seed}", self.method, f"s{self.method_seed}", params]
        return "-".join(re.sub(r"[^A-Za-z0-9_.-]", "_", part) for part in parts)

    def facts(self) -> dict[str, Any]:
        """What it is, as plain data."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in _NO_FACTS}


_NO_FACTS = ("key", "trial_key", "judges")
"""Of a cell's fields those that say what its result depends on, and not what it is."""


def kind_of(targets: Sequence[str]) -> str:
    """What a request is for: `single` (one target), `joint` (several) or `samples` (training samples of all concepts)."""
    return {0: "samples", 1: "single"}.get(len(targets), "joint")


# ---------------------------------------------------------------- suites


def suite_names() -> list[str]:
    """The suites that ship with the package."""
    folder = resources.files(__package__) / "suites"
    names = [file.name for file in folder.iterdir() if file.name.endswith(".toml")]
    return sorted(name.removesuffix(".toml") for name in names if not name.endswith(TUNED))


def load_suite(name: str) -> Suite:
    """A shipped suite by name, or one from a TOML file.

    Raises:
        UsageError: unknown name, unreadable or malformed file, unknown or wrongly typed key.
    """
    if not name.endswith(".toml"):
        if name not in suite_names():
            known = ", ".join(suite_names())
            raise UsageError(
                f"there is no suite '{name}'{did_you_mean(name, suite_names())}; there is {known}, or give a .toml file."
            )
        return _parse_suite(suite_text(name), name)
    try:
        text = Path(name).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"suite file {name} cannot be read: {error}.") from error
    return _parse_suite(text, name)


def _parse_suite(text: str, source: str) -> Suite:
    try:
        return Suite.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"suite file {source} is not valid TOML: {error}.") from error
    except pydantic.ValidationError as error:
        raise UsageError(f"suite file {source}: {_sentence(error)}.") from error


def _sentence(error: pydantic.ValidationError) -> str:
    first = error.errors()[0]
    if not first["loc"]:  # of the suite as a whole
        return first["msg"].removeprefix("Value error, ")
    key = str([part for part in first["loc"] if isinstance(part, str)][-1])
    allowed = list(Part.model_fields if first["loc"][0] == "also" and len(first["loc"]) > 1 else Suite.model_fields)
    if first["type"] == "extra_forbidden":
        return f"unknown key '{key}'{did_you_mean(key, allowed)}; it may have {', '.join(allowed)}"
    if first["type"] == "missing":
        return f"the key '{key}' is missing"
    message = first["msg"][0].lower() + first["msg"][1:]
    return f"{key} = {first['input']!r} does not do: {message}"


def suite_text(name: str) -> str:
    """The file of a suite that ships with the package."""
    return (resources.files(__package__) / "suites" / f"{name}.toml").read_text()


def reproductions() -> list[str]:
    """The shipped suites that repeat a published experiment: all of their tasks evaluate as papers did."""
    tasks = {name: [parse_spec(text) for text in load_suite(name).tasks] for name in suite_names()}
    return [name for name, specs in tasks.items() if all(_protocol(spec) == "published" for spec in specs)]


def _protocol(spec: Spec) -> Any:
    """That of a task, which has it as a parameter or, where there is but one, as a fact of its class."""
    return spec.params.get("protocol", getattr(REGISTRY.get("task", spec.name).cls, "protocol", None))


# ---------------------------------------------------------------- expansion


def expand(
    suite: Suite,
    *,
    device: str,
    pool: Pool = REPORTED_POOL,
    variants: Variants = MappingProxyType({}),
    missing: dict[str, MissingData] | None = None,
) -> list[Cell]:
    """All cells of a suite, in the order of its lists; those of further crossings follow.

    Args:
        suite: what to cross.
        device: `cpu` or `cuda`.
        pool: where the requests are from, unless the suite names them.
        variants: further parameters of methods, by task; a method to which the suite gives parameters has none.
        missing: gets, by task, the error that says what it lacks; its cells then have no keys.

    Raises:
        MissingData: a task lacks what it runs on, and nobody asked for `missing`.
        UsageError: an unknown or ill-parameterised task, method, metric, request or seed.
    """
    cells: dict[str, Cell] = {}
    for part in suite.parts():
        for cell in _crossed(part, device, pool, variants, missing):
            known = cells.get(cell.name, cell)  # two specs, or two parts, may come to the same
            judges = {judge.spec: judge for judge in (*known.judges, *cell.judges)}
            cells[cell.name] = dataclasses.replace(known, judges=tuple(judges.values()))
    if not cells and not missing:
        raise UsageError("this plan has no cells: it needs at least one request, base seed and method seed.")
    return list(cells.values())


def _crossed(
    suite: Suite, device: str, pool: Pool, variants: Variants, missing: dict[str, MissingData] | None
) -> Iterator[Cell]:
    judges = judges_of(suite.metrics)
    specs = [(parse_spec(text), _source("method", text)) for text in _unique(suite.methods)]
    for text in _unique(suite.tasks):
        spec, params, task = resolved("task", parse_spec(text))
        further = variants.get(task_key(spec.name, params), {})
        methods = [
            (*resolved("method", Spec(method.name, own))[:2], method_source)
            for method, method_source in specs
            for own in [method.params, *([] if method.params else further.get(method.name, []))]
        ]
        _check_seeds(spec.name, task, suite.base_seeds)
        source = _source("task", text)
        asked: list[tuple[Listed, int]] = []
        contents: list[str | None] = []
        try:
            asked = list(product(select(spec.name, task, suite.requests, pool), suite.base_seeds))
            contents = [None] * len(asked)
            with of_its_data():
                contents = [task.fingerprint(listed.id, seed) for listed, seed in asked]
        except MissingData as error:
            if missing is None:
                raise
            missing.setdefault(text, error)
        for (listed, base_seed), content in zip(asked, contents, strict=True):
            facts = {
                **{"task": spec.name, "task_params": params, "task_source": source, "request": listed.id},
                **{"base_seed": base_seed, "content": content},
                **{"threads": suite.threads, "device": device, "version": RESULT_VERSION, "libraries": keyed_versions()},
            }
            trial_key = digest(facts) if content is not None else ""
            for (method, method_params, method_source), method_seed in product(methods, suite.method_seeds):
                with_method = {"method": method.name, "method_params": method_params, "method_source": method_source}
                key = digest({**facts, **with_method, "method_seed": method_seed}) if trial_key else ""
                yield Cell(
                    spec.name, params, listed.id, tuple(listed.targets), listed.pool, base_seed,
                    method.name, method_params, method_seed, suite.threads, device, key, trial_key, judges,
                )  # fmt: skip


def task_key(name: str, params: Mapping[str, Any]) -> tuple[str, str]:
    """A task with its full parameters, as the key of a mapping."""
    return name, json.dumps(params, sort_keys=True)


def task_keys(suite: Suite) -> list[tuple[str, str]]:
    """The keys of a suite's tasks."""
    return [task_key(name, params) for (name, _), params, _ in (resolved("task", parse_spec(text)) for text in suite.tasks)]


def select(
    name: str, task: Task, wanted: int | dict[str, int | list[str]] | None, pool: Pool = REPORTED_POOL
) -> list[Listed]:
    """The requests a suite asks of a task: the first ones of a pool, all of them, or those named."""
    with of_its_data():
        listed = task.requests()
    mine = wanted.get(name) if isinstance(wanted, dict) else wanted
    if mine is None or isinstance(mine, int):
        pooled = [request for request in listed if request.pool == pool]
        if mine is not None and not 1 <= mine <= len(pooled):
            raise UsageError(f"requests = {mine} for task '{name}', which has 1 to {len(pooled)} {pool} requests.")
        return pooled[:mine]
    by_id = {request.id: request for request in listed}
    for unknown in (id for id in mine if id not in by_id):
        raise UsageError(
            f"task '{name}' has no request '{unknown}'{did_you_mean(unknown, by_id)}; it has {', '.join(by_id)}."
        )
    return [by_id[id] for id in dict.fromkeys(mine)]


def judges_of(metrics: Sequence[str] | None) -> tuple[Judge, ...]:
    """The metrics of these specs; by default every registered one that needs nothing but answers."""
    if metrics is None:
        metrics = [name for name in REGISTRY.names("metric") if not needs_model(REGISTRY.get("metric", name).cls)]
    return tuple(_judge(spec) for spec in _unique(metrics))


def _unique(specs: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(specs))


def _check_seeds(name: str, task: Task, base_seeds: Sequence[int]) -> None:
    for seed in base_seeds:
        if seed not in task.base_seeds:
            allowed = ", ".join(map(str, task.base_seeds))
            raise UsageError(f"task '{name}' has no base seed {seed}; it has {allowed}.")


def resolved(kind: Kind, spec: Spec) -> tuple[Spec, dict[str, Any], Any]:
    """A spec with its full parameters, defaults included, as plain data, and the instance they make."""
    instance = REGISTRY.create(kind, spec.name, spec.params)
    params = {f.name: getattr(instance, f.name) for f in dataclasses.fields(instance) if f.init}
    try:
        return spec, json.loads(json.dumps(params, default=str)), instance
    except (TypeError, ValueError) as error:
        raise UsageError(f"{kind} '{spec.name}' has a parameter that is no plain value: {error}.") from error


def _judge(text: str) -> Judge:
    spec, params, _ = resolved("metric", parse_spec(text))
    key = digest({"metric": spec.name, "params": params, "source": _source("metric", spec.name), "version": RESULT_VERSION})
    return Judge(text, spec.name, params, key)


def _source(kind: Kind, text: str) -> str:
    entry = REGISTRY.get(kind, parse_spec(text).name)
    return source_digest(entry.cls, entry.source)


def controls() -> list[str]:
    """The registered methods that are reference points."""
    return [name for name in REGISTRY.names("method") if REGISTRY.get("method", name).control]


def preloads(cells: Iterable[Cell]) -> list[str]:
    """Modules worth importing once, in the server that cells are forked from: torch, and what the tasks, methods and
    metrics of these cells name in a class attribute `preload`."""
    used: dict[tuple[Kind, str], None] = {}
    for cell in cells:
        used |= dict.fromkeys(
            [("task", cell.task), ("method", cell.method), *(("metric", judge.name) for judge in cell.judges)]
        )
    wanted = [module for kind, name in used for module in getattr(REGISTRY.get(kind, name).cls, "preload", ())]
    return list(dict.fromkeys(["torch", *wanted]))
