"""What happens inside a cell's own process: build the trial, run the method once, judge the outcome, leave files.

Everything a cell leaves lies in its scratch folder: `result.json` (status, error, cost, values) and `arrays.npz`
(questions and answers, one row an image, and some pictures). Nobody is called back; a cell that leaves no result was killed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import statistics
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from . import meter as metering
from .artifacts import cached, digest, write_through
from .errors import DiskTrouble, InvalidModel, MissingData, MissingDependency, of_its_data
from .intervals import interval
from .pictures import columns as pictures
from .registry import REGISTRY, Entry, load
from .types import Answers, Cost, Metric, Outcome, Scored, Status, Task, Trial, Value, needs_model

if TYPE_CHECKING:
    import torch

    from .plan import Judge
    from .types import Model, Request

WARM_UP_SAMPLES = 16
LOSS_ALLOWED = 0.02
"""Retain accuracy on validation data that choosing may cost: two points, the same for every method."""
COSTS = tuple(field.name for field in dataclasses.fields(Cost) if field.name != "notes")
NOT_LOADED = "answers at hand were judged, and no model was made"
NO_METHODS_FAULT = (DiskTrouble, MissingData)
"""What ends the run rather than become a row."""
GAVE_UP = 74
"""Exit code of a cell that met it (sysexits' EX_IOERR)."""
SAYS = "slugbench: "
"""How the last line of its log then begins; the rest is the sentence for the user."""


class Verdict(NamedTuple):
    """A status and the sentence that goes with it."""

    status: Status
    error: str | None


# ---------------------------------------------------------------- entry points, called in the isolated process


def _blaming_no_method(entry: Callable[[Mapping[str, Any]], None]) -> Callable[[Mapping[str, Any]], None]:
    """What no method is to blame for ends the process with a code of its own, after a sentence in the log."""

    @wraps(entry)
    def entered(job: Mapping[str, Any]) -> None:
        try:
            entry(job)
        except NO_METHODS_FAULT as error:
            where = f"task '{job['task']}' cannot run: " if isinstance(error, MissingData) else ""
            with contextlib.suppress(OSError):  # the log may be on the disk that is full
                traceback.print_exc()
                print(f"\n{SAYS}{where}{' '.join(str(error).split())}", file=sys.stderr, flush=True)
            os._exit(GAVE_UP)

    return entered


@_blaming_no_method
def measure(job: Mapping[str, Any]) -> None:
    """Run a method on a request and judge it; `job` is `runner.Job` as plain data."""
    _prepare_process(job)
    result: dict[str, Any] = {"status": "ok", "error": None, "values": {}, "cost": None, "validation": None}
    try:
        trial = dataclasses.replace(_build(job), method_seed=job["method_seed"])
        method, entry = _method(job)
        reason = method.skips(_seen(entry, trial)) if hasattr(method, "skips") else None
        if reason:
            result |= {"status": "skipped", "error": _plain(str(reason))}
        else:
            own, metrics = _own_oracle(entry, job), _metrics(job)
            if hasattr(method, "answers") and not any(map(needs_model, metrics.values())):
                model, cost, again = None, Cost(notes=dict.fromkeys(COSTS, NOT_LOADED)), None
                answers = method.answers(_seen(entry, trial))
            else:
                trial = _with_floor(trial, job["device"])
                model, cost = unlearn(method, entry, trial, job)
                with of_its_data():
                    answers = trial.answer(model)
                result["validation"] = _validation(trial.request, model)
                again = None if own is not None else partial(_again, method, entry, trial, job)
            _save_arrays(trial, answers, Path(job["scratch"]))
            result["cost"] = dataclasses.asdict(cost)
            result["values"] = judge(trial, answers, metrics, keys=_keys(job), model=model, cost=cost, own=own, again=again)
    except NO_METHODS_FAULT:
        raise
    except Exception as error:
        with _writing("to the log"):
            traceback.print_exc()
        verdict = classify(error)
        result |= {"status": verdict.status, "error": verdict.error}
    _save_result(result, Path(job["scratch"]))


@_blaming_no_method
def rejudge(job: Mapping[str, Any]) -> None:
    """Evaluate metrics anew from a finished cell's arrays, without its model."""
    _prepare_process(job)
    trial = _build(job)
    _, entry = _method(job)
    answers = load_answers(Path(job["arrays"]))
    cost = Cost(**job["cost"])
    own = _own_oracle(entry, job)
    values = judge(trial, answers, _metrics(job), keys=_keys(job), model=None, cost=cost, own=own)
    _save_result({"values": values}, Path(job["scratch"]))


def judge_scored(scored: Scored, judges: Sequence[Judge], trial_key: str, scratch: Path) -> dict[str, list[dict[str, Any]]]:
    """Judge answers that no model here gave, in this process, and leave their arrays in `scratch`; values as of `judge`."""
    _save_arrays(scored.trial, scored.answers, scratch)
    job = {"metrics": [judge._asdict() for judge in judges], "trial_key": trial_key}
    return judge(scored.trial, scored.answers, _metrics(job), keys=_keys(job), model=None, cost=None, own=None)


@_blaming_no_method
def gates(job: Mapping[str, Any]) -> None:
    """Evaluate a task's acceptance gates."""
    _prepare_process(job)
    with of_its_data():
        task: Task = REGISTRY.create("task", job["task"], job["task_params"])
        found = task.gates(job["requests"], job["base_seeds"])
    _save_result({"gates": [gate._asdict() for gate in found]}, Path(job["scratch"]))


# ---------------------------------------------------------------- the method's run


def unlearn(method: Any, entry: Entry, trial: Trial, job: Mapping[str, Any]) -> tuple[Model, Cost]:
    """Run a method once, metered, and make sure it returned a model with finite weights."""
    device = job["device"]
    meter = metering.Meter(metering.device_for(device), trial.request.budget)
    trial = _metered(trial, meter, job)
    before = _snapshot(trial.request.model)
    _warm_up(trial)
    with meter.running():
        model = method(_seen(entry, trial))
    _check(model, job["method"])
    cost = meter.cost(concurrent=job["concurrent"])
    cost.bytes_delta = _bytes_delta(before, model)
    return model.to(device).eval(), cost


def _again(method: Any, entry: Entry, trial: Trial, job: Mapping[str, Any], request: Request) -> Model:
    """The method's model for another request, for metrics that ask what it does elsewhere."""
    return unlearn(method, entry, _with_floor(dataclasses.replace(trial, request=request), job["device"]), job)[0]


def _with_floor(trial: Trial, device: str) -> Trial:
    """The trial with the retain accuracy that its request has to keep; before the model is edited, which is in place."""
    request = trial.request
    with of_its_data():
        kept = request.validate(request.model.to(device).eval()).retain
    return dataclasses.replace(trial, request=dataclasses.replace(request, floor=kept - LOSS_ALLOWED))


def _metered(trial: Trial, meter: metering.Meter, job: Mapping[str, Any]) -> Trial:
    """The trial as a method gets it: on the device, counted, seeded."""
    import torch

    request, device = trial.request, job["device"]
    # the same stream for every method: differences between methods are then not differences between draws
    stream = [job["task"], job["task_params"], job["request"], job["base_seed"], job["method_seed"]]
    generator = torch.Generator().manual_seed(int(digest(json.dumps(stream, sort_keys=True))[:15], 16))
    validation, model = request.validation, request.model.to(device).eval()
    request = dataclasses.replace(
        request,
        model=model,
        forget=metering.CountedSplit(request.forget, meter, "forget", device),
        retain=metering.CountedSplit(request.retain, meter, "retain", device),
        validation=type(validation)(*(metering.SearchedSplit(split, meter, "validation", device) for split in validation)),
        validate=metering.CountedValidate(request.validate, meter),
        generator=generator,
        device=device,
        progress=meter.progress,
    )
    return dataclasses.replace(trial, request=request)


def _seen(entry: Entry, trial: Trial) -> Any:
    """What a method may see."""
    return trial if entry.sees == "trial" else trial.request


def _validation(request: Request, model: Model) -> dict[str, float | None]:
    """What the rule by which all methods choose says of the model returned: for `tune`, which may see no test data."""
    scores = request.validate(model)
    found = {**scores._asdict(), "goal": request.goal, "floor": request.floor, "shortfall": request.shortfall(scores)}
    return {name: _finite(number) for name, number in found.items()}


def _warm_up(trial: Trial) -> None:
    """One unclocked, uncounted batch forwards and backwards: lazy initialisation is nobody's cost."""
    request = trial.request
    assert isinstance(request.retain, metering.CountedSplit)  # `_metered` made it
    batch = next(iter(request.retain.split.batches(WARM_UP_SAMPLES)))
    loss = request.objective.loss(request.model, {name: column.to(request.device) for name, column in batch.items()})
    if loss.requires_grad:
        loss.backward()
    request.model.zero_grad(set_to_none=True)


def _snapshot(model: Model) -> dict[str, torch.Tensor]:
    # in main memory: on a GPU a second copy would count as the method's
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in model.state_dict().items()}


def _check(model: Any, name: str) -> None:
    import torch

    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"method '{name}' returned {type(model).__name__}; it must return the unlearned model.")
    for tensor_name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise InvalidModel(f"{tensor_name} holds NaN or infinite values.")


def _bytes_delta(before: Mapping[str, torch.Tensor], model: Model) -> int:
    """Size of the tensors that differ from the original's, uncompressed."""
    import torch

    return sum(
        tensor.numel() * tensor.element_size()
        for name, tensor in model.state_dict().items()
        if name not in before or not torch.equal(tensor, before[name].to(tensor.device))
    )


# ---------------------------------------------------------------- judging


def judge(
    trial: Trial,
    answers: Answers,
    metrics: Mapping[str, Metric],
    *,
    keys: Mapping[str, Mapping[str, str]],
    model: Model | None,
    cost: Cost | None,
    own: int | None,
    again: Callable[[Request], Model] | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """Every metric on the outcome, and on each oracle in its place.

    Args:
        trial: the trial.
        answers: of the model to judge.
        metrics: by spec.
        keys: for each spec all that its reference values depend on besides the oracle; they are made once for all cells of
            a trial and kept in the cache.
        model: the model itself, where it is at hand.
        cost: what it cost, where it is known.
        own: the oracle that the judged model is, which is then left out of its own reference.
        again: runs the judged method on another request.

    Returns:
        For each metric's spec the facts of its rows.

    Raises:
        DiskTrouble, MissingData: a metric met what is no fault of its own.
    """
    others = [s for s in range(len(trial.oracles)) if s != own]
    outcome = Outcome(trial, answers, tuple(trial.oracles[s] for s in others), model, cost, tuple(others), again)
    from_answers = {spec: metric for spec, metric in metrics.items() if model is None or not needs_model(metric)}
    known = _references(trial, from_answers, others, keys)
    rows = {}
    for spec, metric in metrics.items():
        try:
            references = known.get(spec) or [
                _reference(metric, trial, s, [o for o in others if o != s], model, keys[spec]) for s in others
            ]
            rows[spec] = [_facts(value, references) for value in metric(outcome)]
        except NO_METHODS_FAULT:
            raise
        except Exception as error:  # a metric's fault must not cost the cell: its row says what happened
            with _writing("to the log"):
                traceback.print_exc()
            rows[spec] = [_facts(Value(spec, None, note=_plain(f"the metric raised {type(error).__name__}: {error}")), [])]
    return rows


def _references(
    trial: Trial, metrics: Mapping[str, Metric], others: Sequence[int], keys: Mapping[str, Mapping[str, str]]
) -> dict[str, list[dict[str, float | None]]]:
    """By spec, what metrics say of each oracle's answers; without those that raise, which will again where it is noted."""
    if not metrics or not others:
        return {}

    def make(path: Path) -> None:
        found = {}
        for spec, metric in metrics.items():
            with contextlib.suppress(Exception):
                found[spec] = [_of_oracle(metric, trial, s, [o for o in others if o != s], None) for s in others]
        path.write_text(json.dumps(found))

    content = {"specs": {spec: keys[spec] for spec in sorted(metrics)}, "others": list(others)}
    found: dict[str, list[dict[str, float | None]]] = json.loads(
        cached("references", content, make, suffix=".json").read_text()
    )
    return found


def _reference(
    metric: Metric, trial: Trial, oracle: int, others: Sequence[int], judged: Model | None, key: Mapping[str, str]
) -> dict[str, float | None]:
    """What a metric says of one oracle: of one that needs models, on the device of the judged one and from the cache."""
    if judged is None or not needs_model(metric):
        return _of_oracle(metric, trial, oracle, others, None)
    device = next(judged.parameters()).device

    def make(path: Path) -> None:
        model = trial.oracle_model(oracle).to(device).eval()
        path.write_text(json.dumps(_of_oracle(metric, trial, oracle, others, model)))

    content = {**key, "oracle": oracle, "others": list(others)}
    found: dict[str, float | None] = json.loads(cached("reference", content, make, suffix=".json").read_text())
    return found


def _of_oracle(
    metric: Metric, trial: Trial, oracle: int, others: Sequence[int], model: Model | None
) -> dict[str, float | None]:
    """What a metric says of one oracle, judged against the others."""
    answers = tuple(trial.oracles[o] for o in others)
    outcome = Outcome(trial, trial.oracles[oracle], answers, model, others=tuple(others))
    return {value.name: _finite(value.value) for value in metric(outcome)}


def rows_without_oracle(values: Iterable[Value]) -> list[dict[str, Any]]:
    """What the table has of values beside which no oracle stands."""
    return [_facts(value, []) for value in values]


def _facts(value: Value, references: Sequence[Mapping[str, float | None]]) -> dict[str, Any]:
    oracle = [number for reference in references if (number := reference.get(value.name)) is not None]
    number = _finite(value.value)
    bounds = interval(value) if number is not None else None
    note = value.note or ("not a finite number" if value.value is not None and number is None else "")
    return {
        "metric": value.name,
        "value": number,
        "unit": value.unit,
        "better": value.better,
        "oracle_mean": statistics.fmean(oracle) if oracle else None,
        "oracle_sd": statistics.stdev(oracle) if len(oracle) > 1 else None,
        "chance": value.chance,
        "ci_low": _finite(bounds[0]) if bounds else None,
        "ci_high": _finite(bounds[1]) if bounds else None,
        "n_images": value.n_images,
        "n_units": value.n_units,
        "note": note or None,
    }


def _finite(number: Any) -> float | None:
    return float(number) if number is not None and math.isfinite(number) else None


# ---------------------------------------------------------------- verdicts


def classify(error: BaseException) -> Verdict:
    """The status that an exception of a method, or of its task, becomes."""
    text = _plain(f"{type(error).__name__}: {error}")
    if isinstance(error, MissingDependency):
        return Verdict("skipped", _plain(str(error)))
    if isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith("slugbench"):
        return Verdict("skipped", f"needs the package '{error.name}', which is not installed.")
    if isinstance(error, InvalidModel):
        return Verdict("invalid", text)
    # torch.OutOfMemoryError on CUDA; a plain RuntimeError by the CPU's allocator
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in text:
        return Verdict("oom", text)
    return Verdict("failed", text)


def _plain(text: str) -> str:
    """Text that every file format can hold: lone surrogates, as in undecodable file names, written out."""
    return text.encode("utf-8", "backslashreplace").decode()


# ---------------------------------------------------------------- process and files


def _prepare_process(job: Mapping[str, Any]) -> None:
    """Threads, determinism and seeds before anything of torch runs."""
    import random

    import numpy as np
    import torch

    torch.set_num_threads(job["threads"])
    if not torch.are_deterministic_algorithms_enabled():  # the server has done it, as a rule
        torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    random.seed(0)
    np.random.seed(0)
    torch.default_generator.manual_seed(0)  # not torch.manual_seed, which formats a stack trace: 3 ms
    if job["device"] == "cuda":
        torch.cuda.manual_seed_all(0)
    load(job["plugins"], kinds=("method", "task", "metric"))


def _build(job: Mapping[str, Any]) -> Trial:
    with of_its_data():
        task: Task = REGISTRY.create("task", job["task"], job["task_params"])
        return task.build(job["request"], job["base_seed"])


def _method(job: Mapping[str, Any]) -> tuple[Any, Entry]:
    entry = REGISTRY.get("method", job["method"])
    return REGISTRY.create("method", job["method"], job["method_params"]), entry


def _metrics(job: Mapping[str, Any]) -> dict[str, Metric]:
    return {m["spec"]: REGISTRY.create("metric", m["name"], m["params"]) for m in job["metrics"]}


def _keys(job: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """By spec, all that a metric's value of an oracle depends on but which one it is."""
    return {m["spec"]: {"metric": m["key"], "trial": job["trial_key"]} for m in job["metrics"]}


def _own_oracle(entry: Entry, job: Mapping[str, Any]) -> int | None:
    return job["method_seed"] if entry.sees == "trial" else None


def _save_arrays(trial: Trial, answers: Answers, scratch: Path) -> None:
    import numpy as np

    columns = {f"question.{name}": column for name, column in trial.questions.items()}
    columns |= {f"answer.{name}": column for name, column in answers.items()}
    columns |= pictures(trial, answers)
    with _writing(f"results to {scratch}"):
        np.savez_compressed(scratch / "arrays.npz", **columns)  # type: ignore[arg-type]  # numpy's stub knows no ** columns
        write_through(scratch / "arrays.npz")


def load_answers(path: Path) -> Answers:
    """The answers in a finished cell's arrays."""
    import numpy as np

    with np.load(path) as stored:
        return {name.removeprefix("answer."): stored[name] for name in stored.files if name.startswith("answer.")}


def _save_result(result: Mapping[str, Any], scratch: Path) -> None:
    with _writing(f"results to {scratch}"):
        (scratch / "result.json").write_text(json.dumps(result))


@contextlib.contextmanager
def _writing(what: str) -> Iterator[None]:
    """Trouble with the disk, told apart from a method's: it ends the run with a sentence."""
    try:
        yield
    except OSError as error:
        raise DiskTrouble(
            f"a cell cannot write {what} ({error}); make room and run the same command again: finished cells are kept."
        ) from error
