"""What each command of `slugbench` does: calls the other modules and prints. Imports nothing heavy before it must."""

from __future__ import annotations

import argparse
import contextlib
import inspect
import json
import math
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from .errors import GateError, NotFetched, UsageError
from .registry import KINDS, REGISTRY, is_file, load, parse_spec, parse_specs
from .types import STATUSES

if TYPE_CHECKING:
    import pandas as pd

    from .errors import MissingData
    from .forecast import Forecast
    from .plan import Cell, Suite, Variants
    from .runner import Finished, Job, Settings
    from .store import Store
    from .tuning import Choice

EXIT_NOT_ALL_OK = 3
EXIT_GATE = 4
LISTED = ("methods", "tasks", "metrics", "suites", "reports", "importers")


# ---------------------------------------------------------------- list, plan


def list_(arguments: argparse.Namespace) -> int:
    """`slugbench list`."""
    load(arguments.plugin)
    kinds = {f"{kind}s": kind for kind in KINDS}
    for what in [arguments.what] if arguments.what else LISTED:
        print(f"{what}:")
        if what == "suites":
            from .plan import load_suite, suite_names

            for name in suite_names():
                suite = load_suite(name)
                print(f"  {name:<12} {', '.join(suite.tasks)} x {', '.join(suite.methods)}")
        else:
            for name in REGISTRY.names(kinds[what]):
                _print_entry(kinds[what], name)
    for broken in REGISTRY.broken:
        print(f"did not load: {broken.source}: {broken.error}", file=sys.stderr)
    return 0


def _print_entry(kind: Any, name: str) -> None:
    import dataclasses

    entry = REGISTRY.get(kind, name)
    marks = [f" [{mark}]" for mark, on in (("control", entry.control), ("sees the trial", entry.sees == "trial")) if on]
    print(f"  {name:<16} {entry.summary}{''.join(marks)}")
    for key, value in entry.parameters().items():
        print(f"  {'':<16}   {key}{'' if value is dataclasses.MISSING else f'={value}'}")


def plan(arguments: argparse.Namespace) -> int:
    """`slugbench plan`: 2 when a task lacks what it runs on and no run fetches; all cells are told all the same."""
    from .tuning import variants

    load(arguments.plugin)
    return _print_plan(_suite(arguments), _device(arguments.device), variants(_tuned(arguments)), arguments.out)


def _print_plan(suite: Suite, device: str, variants: Variants, out: Path | None) -> int:
    """What is to be done, how long it takes and what it can resolve; the exit code."""
    from . import forecast, power
    from .plan import expand
    from .store import read_cell

    missing: dict[str, MissingData] = {}
    cells = expand(suite, device=device, variants=variants, missing=missing)
    done: dict[str, dict[str, Any]] = {}
    if out is not None:
        found = {cell.name: read_cell(out / "cells" / cell.name, out / "arrays") for cell in cells}
        done = {cell.name: record for cell in cells if (record := found[cell.name]) and record["key"] == cell.key}
    lacking = f"; {len(missing)} of {len(suite.tasks)} tasks lack something yet:" if missing else ""
    print(f"suite {suite.name}: {len(cells)} cells on {device}, {len(done)} done{lacking}")
    for task, error in missing.items():
        print(f"  {task}: {error}")
    if not cells:
        return UsageError.exit_code
    print(_time_sentence(forecast.forecast(cells, done), _places(suite, device), suite.timeout))
    print(f"  limits: {suite.timeout:g} s and {suite.memory:g} GB a cell, {suite.threads} thread(s)")
    for (task, request, pool), n in Counter((cell.task, cell.request, cell.pool) for cell in cells).items():
        print(f"  {task:<12} {request:<20} {pool:<6} {n} cells")
    print("what it can resolve:")
    print("\n".join(f"  {line}" for line in power.assumptions()))
    for comparison in power.comparisons(cells):
        print("\n".join(f"  {line}" for line in power.sentences(comparison)))
    return 0 if all(isinstance(error, NotFetched) for error in missing.values()) else UsageError.exit_code


def reproduce(arguments: argparse.Namespace) -> int:
    """`slugbench reproduce`: the plan of a published experiment, and the commands that run it."""
    from .plan import load_suite, reproductions, suite_text
    from .registry import did_you_mean

    load(_absolute(arguments.plugin))
    name, known = arguments.name, reproductions()
    if name not in known:
        raise UsageError(
            f"there is no published experiment '{name}' to repeat{did_you_mean(name, known)}; there is {', '.join(known)}."
        )
    file = name if arguments.out is None else str(_written_once(arguments.out / f"{name}.toml", suite_text(name)))
    suite = load_suite(file)
    print(f"{name}: {', '.join(suite.methods)}")
    for task, requests in suite.requests.items() if isinstance(suite.requests, dict) else ():
        print(f"  of {task}: {', '.join(requests) if isinstance(requests, list) else requests}")
    code = _print_plan(suite, _device(arguments.device), {}, None)
    print("to run it:")
    for task in suite.tasks:
        print(f"  slugbench doctor {task}")
    print(f"  slugbench run {file} --out runs/{name}")
    return code


def _written_once(path: Path, text: str) -> Path:
    """The path of a file with that text, which is there now; one that somebody has changed since is kept."""
    with _writing(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_text(text)
    return path


@contextlib.contextmanager
def _writing(what: str) -> Iterator[None]:
    """Trouble with the disk ends the command with a sentence."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"cannot write {what} ({error.strerror or error}); choose another --out.") from error


def _time_sentence(found: Forecast, places: int, timeout: float) -> str:
    """How long it takes; of cells like which none was timed no more is known than when they are killed."""
    most = f"{found.unknown} cells are of kinds never timed: at most {_duration(found.unknown * timeout / places)}, "
    most += f"{places} at a time, since none may take more than {_duration(timeout)}"
    if not found.seconds:
        return f"  time: {most}; better known when some are done" if found.unknown else "  time: none"
    by = "as the cells that are done were" if found.measured else "as where the suites were timed, a CPU"
    about = f"about {_duration(found.seconds / places)} for the rest, {places} at a time, if they are as fast {by}"
    return f"  time: {about}" + (f"; besides, {most}" if found.unknown else "")


def _duration(seconds: float) -> str:
    """In minutes, hours or days, rounded up."""
    minutes = math.ceil(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    return f"{math.ceil(minutes / 6) / 10:g} h" if minutes < 72 * 60 else f"{math.ceil(minutes / 1440)} days"


# ---------------------------------------------------------------- run, tune


def run(arguments: argparse.Namespace) -> int:
    """`slugbench run`: gates, missing cells, table, report."""
    from .tuning import variants

    load(_absolute(arguments.plugin), kinds=("method", "task", "metric"))
    suite, device, reports = _suite(arguments), _device_there(arguments), _reports(f"text,{arguments.format}")
    choices = _tuned(arguments)
    cells = _fetched(suite, device=device, variants=variants(choices))
    settings = _settings(arguments, suite, cells, device)
    with _store(arguments.out, suite, device) as store:
        jobs = _missing(cells, store, arguments.retry)
        _work(jobs, cells, store, suite, settings, tuned=_used(choices, cells))
        return _conclude(store, cells, arguments.format, reports)


def tune(arguments: argparse.Namespace) -> int:
    """`slugbench tune`: parameters for every method that declares a space, chosen on the tuning requests alone."""
    import slugbench

    from . import tuning
    from .plan import task_keys

    load(_absolute(arguments.plugin), kinds=("method", "task", "metric"))
    suite, device = _suite(arguments), _device_there(arguments)
    drawn = _drawn(suite, arguments.budget, arguments.seed)
    suite = tuning.tuning_suite(suite, list(drawn))
    further = {method: configurations[1:] for method, configurations in drawn.items()}
    cells = _fetched(suite, device=device, pool=tuning.POOL, variants=dict.fromkeys(task_keys(suite), further))
    tuning.only_tuning_requests(cells)
    settings = _settings(arguments, suite, cells, device)
    with _store(arguments.out, suite, device) as store:
        _work(_missing(cells, store, arguments.retry), cells, store, suite, settings)
        store.write_table()
        found, skipped = tuning.traces(suite.tasks, drawn, cells, store.finished)
        header = {
            "suite": suite.name.removesuffix("-tuning"),
            **{"budget": arguments.budget, "seed": arguments.seed, "pool": tuning.POOL},
            "requests": {task: requests for task, _, requests, _ in _by_task(cells)},
            **{"base_seeds": suite.base_seeds, "method_seeds": suite.method_seeds},
            **{"device": device, "threads": suite.threads, "version": slugbench.__version__},
        }
        store.write("trace.csv", tuning.trace_csv(found))
        store.write("tuned.toml", tuning.tuned_toml(found, header))
    print("\n".join([*skipped, *tuning.summary(found), str(arguments.out / "trace.csv"), str(arguments.out / "tuned.toml")]))
    return 0 if all(tried.n_ok == tried.n_cells for trace in found for tried in trace.tried) else EXIT_NOT_ALL_OK


def _fetched(suite: Suite, **how: Any) -> list[Cell]:
    """The cells of a suite, after fetching what its tasks run on, where that is theirs to fetch."""
    from .plan import expand

    fetched = set[str]()
    while True:
        try:
            return expand(suite, **how)
        except NotFetched as error:
            if str(error) in fetched:  # and is not found all the same
                raise
            fetched.add(str(error))
            error.fetch()


def _drawn(suite: Suite, budget: int, seed: int) -> dict[str, list[dict[str, Any]]]:
    """The configurations of each method of a suite that can be tuned; says which cannot, and which have fewer."""
    from .tuning import draw, untunable

    drawn: dict[str, list[dict[str, Any]]] = {}
    left: dict[str, list[str]] = {}
    for spec in map(parse_spec, suite.methods):
        if reason := untunable(spec):
            left.setdefault(reason, []).append(_spec_text(spec.name, spec.params))
        else:
            drawn[spec.name] = draw(spec.name, budget, seed)
    for reason, names in left.items():
        print(f"not tuned, {reason}: {', '.join(names)}")
    if not drawn:
        raise UsageError("there is no method to tune; a method declares what may be drawn in a class attribute `space`.")
    if fewer := [f"{name} {len(all_)}" for name, all_ in drawn.items() if len(all_) < budget]:
        print(f"fewer than {budget} configurations, since their grids have no more: {', '.join(fewer)}")
    return drawn


def _tuned(arguments: argparse.Namespace) -> list[Choice]:
    """What `--params` names."""
    from .tuning import read_tuned

    return read_tuned(arguments.params) if arguments.params is not None else []


def _used(choices: Sequence[Choice], cells: Sequence[Cell]) -> dict[str, dict[str, Any]]:
    """Tuned parameters that cells have, for `run.json`, from where reports know them."""
    used = {(cell.task, json.dumps([cell.task_params, cell.method_params]), cell.method) for cell in cells}
    return {
        choice.name: choice._asdict()
        for choice in choices
        if (choice.task, json.dumps([choice.task_params, choice.params]), choice.method) in used
    }


def _store(folder: Path, suite: Suite, device: str) -> contextlib.closing[Store]:
    from .store import Store

    return contextlib.closing(Store(folder, suite=suite.name, settings={"threads": suite.threads, "device": device}))


def _work(
    jobs: Sequence[Job],
    cells: Sequence[Cell],
    store: Store,
    suite: Suite,
    settings: Settings,
    tuned: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Provenance, gates, and the jobs, which are what is missing of the cells."""
    from . import provenance

    device = cells[0].device
    facts = provenance.provenance(device)
    known = store.run.get("tuned", {})
    if jobs or not store.run or {**known, **tuned} != known:
        _note_run(store, suite, device, {_mark(facts): facts}, tuned=dict(tuned))
    done = len(cells) - len(jobs)
    print(f"{suite.name}: {len(cells)} cells, {done} done before, {len(jobs)} to run, {settings.jobs} at a time")
    if jobs:
        _check_gates(cells, store, settings)
        try:
            _run_cells(jobs, store, settings, facts)
        except BaseException:  # what is finished can be read, whatever stopped the rest
            store.write_table()
            raise


def _suite(arguments: argparse.Namespace) -> Suite:
    """The suite with what the command line puts in the place of its entries; `tune` has fewer options."""
    from .plan import load_suite

    suite = load_suite(arguments.suite)
    changes: dict[str, Any] = {}
    for name in ("methods", "tasks", "metrics"):
        if (text := getattr(arguments, name, None)) is not None:
            changes[name] = [_spec_text(spec.name, spec.params) for spec in parse_specs(text)]
            if not changes[name] and name != "metrics":
                raise UsageError(f"--{name} names none; leave it out to use the suite's.")
    for name in ("requests", "base_seeds", "method_seeds", "threads", "timeout", "memory"):
        if (value := getattr(arguments, name, None)) is not None:
            changes[name] = value
    if isinstance(changes.get("requests"), list):
        changes["requests"] = _requests_by_task(changes["requests"], changes.get("tasks", suite.tasks))
    return suite.with_changes(changes)


def _spec_text(name: str, params: Mapping[str, str]) -> str:
    return f"{name}:{','.join(f'{key}={value}' for key, value in params.items())}" if params else name


def _requests_by_task(ids: list[str], tasks: Sequence[str]) -> dict[str, int | list[str]]:
    """Requests named on the command line, sorted by the task that has them."""

    found: dict[str, int | list[str]] = {}
    left = dict.fromkeys(ids)
    for spec in map(parse_spec, tasks):
        listed = REGISTRY.create("task", spec.name, spec.params).requests()
        found[spec.name] = [request.id for request in listed if request.id in ids]
        for request in listed:
            left.pop(request.id, None)
    if left:
        raise UsageError(f"no task of this run has the request '{next(iter(left))}'; `slugbench plan` shows what there is.")
    return found


def _device(wanted: str) -> str:
    """`cpu` or `cuda`; a device that is absent is refused."""
    if wanted == "cpu":
        return "cpu"
    from .provenance import accelerators

    there = False
    if accelerators():  # torch is asked only where the driver sees a device: it takes seconds to import
        import torch

        there = torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise UsageError("--device cuda: there is no CUDA device that torch can use here; leave it out or use --device cpu.")
    return "cuda" if there else "cpu"


def _device_there(arguments: argparse.Namespace) -> str:
    """The device that cells run on; of machines elsewhere nothing is known here, and the one asked for is believed."""
    return "cuda" if arguments.backend == "dask" and arguments.device == "cuda" else _device(arguments.device)


def _settings(arguments: argparse.Namespace, suite: Suite, cells: Sequence[Cell], device: str) -> Settings:
    from . import cluster
    from .isolate import Limits
    from .plan import preloads
    from .runner import Settings

    if (arguments.backend == "dask") != bool(arguments.scheduler):
        raise UsageError("--backend dask and --scheduler ADDRESS need each other; `dask scheduler` prints the address.")
    places = cluster.places(arguments.scheduler) if arguments.scheduler else _places(suite, device)
    return Settings(
        limits=Limits(suite.timeout, int(suite.memory * 1e9)),
        jobs=arguments.jobs or places,
        backend=arguments.backend,
        scheduler=arguments.scheduler or "",
        plugins=tuple(_absolute(arguments.plugin)),
        preload=tuple(preloads(cells)),
    )


def _places(suite: Suite, device: str) -> int:
    """How many cells run at a time: one a device, or one for so many threads as they have."""
    from .provenance import accelerators

    if device == "cuda":
        return max(len(accelerators()), 1)
    return max(_cores() // suite.threads, 1)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _absolute(plugins: Sequence[str]) -> list[str]:
    """Plug-in files by absolute path, so that processes elsewhere find them."""
    return [str(Path(plugin).resolve()) if is_file(plugin) else plugin for plugin in plugins]


def _missing(cells: Sequence[Cell], store: Store, retry: Sequence[str]) -> list[Job]:
    """What is to be done: cells that are not there, stale or to be retried, and metrics that are stale."""
    from .runner import Job
    from .types import needs_model

    jobs = []
    for cell in cells:
        record = store.finished(cell)
        if record is None or record["status"] in retry:
            jobs.append(Job(cell, cell.judges, store.scratch / cell.name))
            continue
        stale = tuple(j for j in cell.judges if record["values"].get(j.spec, {}).get("key") != j.key)
        if record["status"] != "ok" or not stale:
            continue
        if any(needs_model(REGISTRY.get("metric", judge.name).cls) for judge in stale):
            jobs.append(Job(cell, cell.judges, store.scratch / cell.name))
        else:
            jobs.append(Job(cell, stale, store.scratch / cell.name, record, store.arrays / f"{cell.name}.npz"))
    return jobs


def _note_run(store: Store, suite: Suite, device: str, provenance: Mapping[str, Any], **more: Any) -> None:
    """Put into `run.json` what a table's reader needs of the run; no report is of it yet."""
    from .plan import controls

    settings = {"threads": suite.threads, "device": device}
    store.update_run(
        schema=1,
        suite=suite.model_dump(),
        settings=settings,
        controls=controls(),
        provenance=dict(provenance),
        **more,
        reported=None,
    )


def _check_gates(cells: Sequence[Cell], store: Store, settings: Settings) -> None:
    """Acceptance gates of each task over the requests about to run, before any method."""
    from . import runner

    found = []
    for task, params, requests, seeds in _by_task(cells):
        with tempfile.TemporaryDirectory(dir=store.scratch) as folder:
            gates = runner.gates(task, params, requests, seeds, settings=settings, folder=Path(folder))
        found += [{"task": task, "when": "before", **gate._asdict()} for gate in gates]
    _record_gates(store, found)
    _refuse_failed(found)
    print(f"gates: {len(found)} passed")
    for gate in found:
        if gate["value"] is None:  # what nobody knows the user may
            print(f"  {_gate(gate)}")


def _check_gates_after(cells: Sequence[Cell], store: Store, frame: pd.DataFrame) -> None:
    """Gates on the finished table: the controls are caught."""
    found = []
    for name, params, _, _ in _by_task(cells):
        task = REGISTRY.create("task", name, params)
        found += [{"task": name, "when": "after", **gate._asdict()} for gate in task.gates_after(frame[frame.task == name])]
    _record_gates(store, found)


def _record_gates(store: Store, found: Sequence[dict[str, Any]]) -> None:
    """Put gates among those known from earlier parts of the run, in the place of what they said then."""
    known = {(gate["task"], gate["when"], gate["name"]): gate for gate in [*store.run.get("gates", []), *found]}
    store.update_run(gates=list(known.values()))


def _refuse_failed(gates: Sequence[dict[str, Any]]) -> None:
    for gate in gates:
        if not gate["ok"]:
            raise GateError(f"gate {_gate(gate)} failed before any method ran; see `slugbench doctor {gate['task']}`.")


def _gate(gate: dict[str, Any]) -> str:
    """`'name' of task: value (limit; note)`."""
    value = "no value" if gate["value"] is None else f"{gate['value']:.4g}"
    note = f"; {gate['note']}" if gate["note"] else ""
    return f"'{gate['name']}' of {gate['task']}: {value} (allowed: {gate['limit']}{note})"


def _by_task(cells: Sequence[Cell]) -> list[tuple[str, dict[str, Any], list[str], list[int]]]:
    """The tasks of these cells with their requests and base seeds."""
    groups: dict[tuple[str, str], tuple[dict[str, None], dict[int, None]]] = {}
    for cell in cells:
        requests, seeds = groups.setdefault((cell.task, json.dumps(cell.task_params)), ({}, {}))
        requests[cell.request] = seeds[cell.base_seed] = None
    return [(task, json.loads(params), list(requests), list(seeds)) for (task, params), (requests, seeds) in groups.items()]


def _mark(facts: Mapping[str, Any]) -> str:
    """What a table calls a provenance."""
    from .artifacts import digest

    return digest(facts)[:12]


def _run_cells(jobs: Sequence[Job], store: Store, settings: Settings, facts: Mapping[str, Any]) -> None:
    """Run jobs, and put each into the store as it ends, with its provenance: the facts given, where not its machine's."""
    from . import runner

    for job in jobs:
        store.scratch_for(job.cell)
    with _progress(len(jobs)) as show, contextlib.closing(runner.run(jobs, settings)) as finished_cells:
        for finished in finished_cells:
            own = {**facts, **(finished.machine or {})}
            if _mark(own) not in store.run["provenance"]:
                store.update_run(provenance={_mark(own): own})
            store.commit(finished.cell, {**finished.record, "provenance": _mark(own)}, finished.scratch)
            show(finished)


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Any]:
    """A function that shows a finished cell: a bar with an estimate on a terminal, plain lines elsewhere."""
    done = 0

    def line(finished: Finished) -> str:
        cell, record = finished.cell, finished.record
        what = f"[{done}/{total}] {cell.task} {cell.request} b{cell.base_seed} {cell.method} s{cell.method_seed}"
        sentence = f": {record['error']}" if record["error"] else ""
        return f"{what} {record['status']} {record['wall_seconds']:.1f} s{sentence}"

    if not sys.stdout.isatty():

        def plain(finished: Finished) -> None:
            nonlocal done
            done += 1
            print(line(finished), flush=True)

        yield plain
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("cells"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as progress:
        bar = progress.add_task("cells", total=total)

        def barred(finished: Finished) -> None:
            nonlocal done
            done += 1
            if finished.record["status"] not in ("ok", "skipped"):
                progress.console.print(line(finished), markup=False, highlight=False)
            progress.advance(bar)

        yield barred


def _conclude(store: Store, cells: Sequence[Cell], formats: str, reports: Sequence[Any]) -> int:
    """Table, gates and reports where they are not up to date, the leaderboard on the screen, and the exit code."""
    from .frame import normalised

    folder = store.folder / "report"
    counts = Counter((store.finished(cell) or {"status": "missing"})["status"] for cell in cells)
    summary = ", ".join(f"{n} {name}" for name, n in counts.items())
    if store.run.get("reported") == formats:
        print(f"nothing to do; cells: {summary}; the report is in {folder}")
    else:  # also after a kill between the last cell and the report
        frame = normalised(store.write_table())
        _check_gates_after(cells, store, frame)
        run = {**store.run, "folder": str(store.folder)}
        (text,) = _write_reports(frame, [run], folder, reports[:1])
        print(text.read_text())
        print(f"cells: {summary}")
        others = _write_reports(frame, [run], folder, reports[1:])
        store.update_run(reported=formats)
        for path in reversed(others):
            print(path)
    tasks = {cell.task for cell in cells}
    failed = [gate for gate in store.run.get("gates", []) if not gate["ok"] and gate["task"] in tasks]
    if failed:
        print(f"slugbench: gate {_gate(failed[0])} failed after the run.", file=sys.stderr)
        return EXIT_GATE
    return 0 if set(counts) <= {"ok", "skipped"} else EXIT_NOT_ALL_OK


# ---------------------------------------------------------------- score

ELSEWHERE = "elsewhere"
"""What made the images, if nobody says."""


def score(arguments: argparse.Namespace) -> int:
    """`slugbench score`: table and report of images that were made elsewhere."""
    from . import provenance, scoring
    from .plan import judges_of

    load(_absolute(arguments.plugin), kinds=("task", "metric"))
    spec, device, reports = parse_spec(arguments.task), _device(arguments.device), _reports(f"text,{arguments.format}")
    asked = scoring.submission(spec, arguments.target)
    metrics = arguments.metrics and [_spec_text(each.name, each.params) for each in parse_specs(arguments.metrics)]
    judges = judges_of(metrics)
    suite = _suite_of_scores(arguments, metrics)
    folders = scoring.Folders(arguments.images, arguments.classifiers, arguments.original, tuple(arguments.oracle))
    with _store(arguments.out, suite, device) as store:
        with _counting("images") as show:
            done = scoring.score(
                asked, folders, store,
                method=arguments.name, judges=judges, threads=suite.threads, device=device, progress=show,
            )  # fmt: skip
        if done.record is not None:
            facts = provenance.provenance(device)
            mark = _mark(facts)
            methods = store.run.get("suite", {}).get("methods", [])
            suite = suite.with_changes({"methods": list(dict.fromkeys([*methods, arguments.name]))})
            _note_run(store, suite, device, {mark: facts})
            _record_gates(store, [{"task": asked.name, "when": "score", **gate._asdict()} for gate in done.gates])
            store.commit(done.cell, {**done.record, "provenance": mark}, store.scratch / done.cell.name)
        return _conclude(store, [done.cell], arguments.format, reports)


def _suite_of_scores(arguments: argparse.Namespace, metrics: list[str] | None) -> Suite:
    """What stands in `run.json` in a suite's place, so that a folder of scores is not mixed with a run."""
    from .plan import Suite

    threads = arguments.threads or _cores()
    name = f"{parse_spec(arguments.task).name}-scores"
    return Suite(name=name, tasks=[arguments.task], methods=[arguments.name], metrics=metrics, threads=threads)


@contextlib.contextmanager
def _counting(what: str) -> Iterator[Any]:
    """A function that shows how many of all are done: a bar on a terminal, a line every tenth elsewhere."""
    if sys.stdout.isatty():
        from rich.progress import Progress

        with Progress() as progress:
            bar = progress.add_task(what)
            yield lambda done, total: progress.update(bar, completed=done, total=total)
        return
    shown = -1

    def plain(done: int, total: int) -> None:
        nonlocal shown
        if (tenth := 10 * done // total) > shown:
            shown = tenth
            print(f"{done} of {total} {what}", flush=True)

    yield plain


# ---------------------------------------------------------------- import


def import_(arguments: argparse.Namespace) -> int:
    """`slugbench import`: table and report of what other code measured."""
    from . import importing
    from .plan import Suite, load_suite

    load(_absolute(arguments.plugin), kinds=("importer", "task"))
    source, device, reports = arguments.source, arguments.device, _reports(f"text,{arguments.format}")
    found = importing.read(source, arguments.folder, arguments.weights)
    for name, table in found.tables.items():
        _write_table(arguments.out / name, table)
    print("\n".join(found.remarks), end="\n" if found.remarks else "")
    if not found.results:
        print("\n".join(str(arguments.out / name) for name in found.tables) or f"there is no result in {arguments.folder}")
        return 0
    task = arguments.task or load_suite(found.suite).tasks[0]
    made = importing.cells(found, source, task, threads=arguments.threads, device=device)
    methods = list(dict.fromkeys(result.method for result in found.results))
    suite = Suite(name=source, tasks=[task], methods=methods, metrics=[], threads=arguments.threads)
    with _store(arguments.out, suite, device) as store:
        new = [(cell, record) for cell, record in made if store.finished(cell) is None]
        if new:
            facts = importing.origin(found, source, device)
            mark = _mark(facts)
            _note_run(store, suite, device, {mark: facts})
            for cell, record in new:
                store.commit(cell, {**record, "provenance": mark}, store.scratch_for(cell))
        return _conclude(store, [cell for cell, _ in made], arguments.format, reports)


def _write_table(path: Path, table: pd.DataFrame) -> None:
    with _writing(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(path, index=False)


# ---------------------------------------------------------------- status, report


def status(arguments: argparse.Namespace) -> int:
    """`slugbench status`."""
    from .store import read_run_file, records

    run = read_run_file(arguments.folder)
    found = list(records(arguments.folder).values())
    counts = Counter(record["status"] for record in found)
    print(f"{arguments.folder}: suite {run['suite']['name']}, {len(found)} finished cells")
    for name in STATUSES:
        if counts[name]:
            print(f"  {name:<8} {counts[name]}")
    for record in found:
        if record["error"]:
            facts = record["facts"]
            where = f"{facts['task']} {facts['request']} b{facts['base_seed']} {facts['method']} s{facts['method_seed']}"
            print(f"  {record['status']:<8} {where}: {record['error']}")
    return 0


def report(arguments: argparse.Namespace) -> int:
    """`slugbench report`."""
    from .frame import merge, read_run

    load(_absolute(arguments.plugin), kinds=("report",))
    reports = _reports(arguments.format)
    frame, runs = merge([read_run(folder) for folder in arguments.folders])
    for path in _write_reports(frame, runs, arguments.out or arguments.folders[0] / "report", reports):
        print(path)
    return 0


def _reports(formats: str) -> list[Any]:
    """The reports named, in their order; before long work, so that a wrong name costs nothing."""
    load(kinds=("report",))
    specs = parse_specs(formats)
    if not specs:
        raise UsageError(f"--format names no report; there is {', '.join(REGISTRY.names('report'))}.")
    return [REGISTRY.create("report", spec.name, spec.params) for spec in specs]


def _write_reports(frame: pd.DataFrame, runs: Sequence[Mapping[str, Any]], out: Path, reports: Sequence[Any]) -> list[Path]:
    """The main file of each report, in their order.

    Raises:
        UsageError: a report failed, or could not be written; the others have been made.
    """
    written, failed = [], []
    for make in reports:
        try:
            out.mkdir(parents=True, exist_ok=True)
            written.append(make(frame, runs, out)[0])
        except OSError as error:
            raise UsageError(f"cannot write reports to {out} ({error.strerror or error}); choose another --out.") from error
        except Exception as error:  # a foreign report may fail in any way
            failed.append(f"report {type(make).__name__} failed: {type(error).__name__}: {error}")
    if failed:
        raise UsageError(f"{'; '.join(failed)}; the other reports are in {out}.")
    return written


# ---------------------------------------------------------------- doctor, artifacts


def doctor(arguments: argparse.Namespace) -> int:
    """`slugbench doctor`: 2 when a file is missing, 4 when a gate fails."""

    load(_absolute(arguments.plugin), kinds=("method", "task", "metric"))
    specs = [parse_spec(arguments.task)] if arguments.task else [parse_spec(name) for name in REGISTRY.names("task")]
    tasks = {spec.name: REGISTRY.create("task", spec.name, spec.params) for spec in specs}
    missing = False
    for name, task in tasks.items():
        print(f"{name}:")
        files = task.wanted()
        if not arguments.task:  # of all tasks what is there is counted
            print(f"  found   {sum(wanted.found for wanted in files)} of {len(files)}")
            files = [wanted for wanted in files if not wanted.found]
        for wanted in files:
            missing |= not wanted.found
            print(f"  {'found  ' if wanted.found else 'MISSING'} {wanted.path}: {wanted.note}")
    if missing:
        return UsageError.exit_code
    return _doctor_gates(specs[0].name, specs[0].params, tasks[specs[0].name], arguments) if arguments.task else 0


def _doctor_gates(name: str, params: Mapping[str, str], task: Any, arguments: argparse.Namespace) -> int:
    from . import runner
    from .isolate import Limits

    settings = runner.Settings(
        Limits(3600, int(16e9)), plugins=tuple(_absolute(arguments.plugin)), preload=("torch", *task.preload)
    )
    requests = [request.id for request in task.requests() if request.pool != "sealed"]
    with tempfile.TemporaryDirectory() as folder:
        gates = runner.gates(name, params, requests, task.base_seeds, settings=settings, folder=Path(folder))
    for gate in gates:
        print(f"  {'passed' if gate.ok else 'FAILED'} {_gate({'task': name, **gate._asdict()})}")
    return 0 if all(gate.ok for gate in gates) else EXIT_GATE


def artifacts_list(_: argparse.Namespace) -> int:
    """`slugbench artifacts list`."""
    from .artifacts import artifacts, cache_dir

    found = artifacts()
    for artifact in found:
        print(f"  {artifact.bytes / 1e6:9.1f} MB  {artifact.path.name}")
    print(f"{len(found)} artefacts, {sum(a.bytes for a in found) / 1e6:.1f} MB, in {cache_dir()}")
    return 0


def artifacts_rebuild(arguments: argparse.Namespace) -> int:
    """`slugbench artifacts rebuild TASK`."""
    load(_absolute(arguments.plugin), kinds=("task",))
    spec = parse_spec(arguments.task)
    out = arguments.out or Path(f"{spec.name}-rebuilt")
    task = REGISTRY.create("task", spec.name, spec.params)
    if arguments.requests and "requests" not in inspect.signature(task.rebuild).parameters:
        raise UsageError(f"task '{spec.name}' is remade as a whole; leave --requests out.")
    with _writing(f"to {out}"):
        out.mkdir(parents=True, exist_ok=True)
    task.rebuild(out, jobs=arguments.jobs, **({"requests": arguments.requests} if arguments.requests else {}))
    print(out)
    return 0


def artifacts_gc(arguments: argparse.Namespace) -> int:
    """`slugbench artifacts gc`."""
    from .artifacts import collect_garbage

    removed = collect_garbage(arguments.keep)
    print(f"removed {len(removed)} artefacts, {sum(a.bytes for a in removed) / 1e6:.1f} MB")
    return 0
