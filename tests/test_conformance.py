"""What holds for everything registered, ours or a plug-in's; a new file is tested by being there.

An exception stands with the thing itself, as `expected_failures = {test: reason}` on its class, and has to fail.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import math
import pickle
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import pytest

from slugbench.bench import BudgetExceeded, Outcome, Request, Trial, UsageError, Validation, Value
from slugbench.bench.registry import Entry, Kind, Registry
from slugbench.bench.types import STATUSES, Better, Pool

from .toys import EXAMPLE, FAILING, MISBEHAVING, TOY_TASK, restored_registry, run_python, toy_frame, toy_trial

NOT_RUN = {"raises", "hoards", "sleeps", "kills_itself"}
"""Toy methods that do not come back."""


def collect() -> Registry:
    with restored_registry() as found:
        for plugin in (TOY_TASK, FAILING, MISBEHAVING, EXAMPLE):
            found.load_plugin(str(plugin))
        registered = Registry({key: entry for key, entry in found.entries.items() if key[1] not in NOT_RUN})
        modules = {name: sys.modules[name] for name in (entry.cls.__module__ for entry in registered.entries.values())}
    sys.modules.update(modules)  # type hints and pickle look there
    return registered


REGISTERED = collect()


def every(kind: Kind | None = None, *, keep: Callable[[Entry], bool] = lambda entry: True) -> pytest.MarkDecorator:
    """Parametrises a test by what is registered."""
    entries = [entry for entry in REGISTERED.entries.values() if kind in (None, entry.kind) and keep(entry)]
    return pytest.mark.parametrize("entry", entries, ids=lambda entry: entry.name if kind else f"{entry.kind}-{entry.name}")


@pytest.fixture(autouse=True)
def expected_failure(request: pytest.FixtureRequest) -> None:
    entry = getattr(request.node, "callspec", None) and request.node.callspec.params.get("entry")
    reason = getattr(entry and entry.cls, "expected_failures", {}).get(request.node.originalname)
    if reason:
        request.applymarker(pytest.mark.xfail(reason=reason, strict=True))


def make(entry: Entry, params: dict[str, Any] | None = None) -> Any:
    return REGISTERED.create(entry.kind, entry.name, params)


# ---------------------------------------------------------------- everything


@every()
def test_parameters_have_defaults_that_json_can_hold(entry):
    for name, default in entry.parameters().items():
        assert default is not dataclasses.MISSING, f"{name} has no default"
        assert default is None or isinstance(default, bool | int | float | str), (
            f"{name}={default!r}: give a number or a text"
        )
    assert json.loads(json.dumps(entry.parameters())) == entry.parameters()


@every()
def test_parameters_come_back_from_text(entry):
    """As typed on the command line: `name:key=value`."""
    for name, default in entry.parameters().items():
        assert "," not in str(default)
        got = getattr(make(entry, {name: str(default)}), name)
        assert got == default and type(got) is type(default)


@every()
def test_instances_are_equal_hashable_and_frozen(entry):
    one, other = make(entry), make(entry)
    assert one == other and hash(one) == hash(other)
    for name in entry.parameters():
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(one, name, None)


@every()
def test_instances_survive_pickling(entry):
    assert pickle.loads(pickle.dumps(make(entry))) == make(entry)


# ---------------------------------------------------------------- methods


class Counted:
    """What a `Split` promises and nothing else; counts samples read as `what`, and refuses more than `limit` of them."""

    def __init__(self, split: Any, counts: Counter[str], what: str, limit: int) -> None:
        self._split, self._counts, self._what, self._limit = split, counts, what, limit

    def __len__(self) -> int:
        return len(self._split)

    def batches(self, size: int, generator: Any = None) -> Iterator[Any]:
        if self._what == "evals":
            count(self._counts, "evals", 1, self._limit)
        for batch in self._split.batches(size, generator):
            if self._what != "evals":
                count(self._counts, self._what, len(batch["index"]), self._limit)
            yield batch

    def of(self, target: str) -> Counted:
        return Counted(self._split.of(target), self._counts, self._what, self._limit)


def count(counts: Counter[str], what: str, n: int, limit: int) -> None:
    counts[what] += n
    if counts[what] > limit:
        counts["refused"] += 1
        raise BudgetExceeded(f"{counts[what]} {what}; the budget allows {limit}.")


class Ran(NamedTuple):
    """A method's run on the toy task."""

    model: Any
    trial: Trial
    counts: Counter[str]
    """`reads`, `evals`, `steps` of any torch optimiser, and how often a budget was `refused`."""
    exceeded: bool


def ran(entry: Entry, request_id: str = "single", *, noise: int = 0, **budget: int) -> Ran:
    """Run a method with what a request promises and nothing else; skips the test where the method skips.

    Args:
        entry: the method.
        request_id: of the toy task.
        noise: seed of torch's global generator, which no result may depend on.
        budget: what to change in the request's.
    """
    import torch
    from torch.optim.optimizer import register_optimizer_step_post_hook

    trial, counts = toy_trial(request_id), Counter[str]()
    allowed = dataclasses.replace(trial.request.budget, **budget)

    def validate(model: Any, *, retain: bool = True) -> Any:
        count(counts, "evals", 1, allowed.max_evals)
        return plain.validate(model, retain=retain)

    plain = trial.request
    request = dataclasses.replace(
        plain,
        forget=Counted(plain.forget, counts, "reads", allowed.max_reads),
        retain=Counted(plain.retain, counts, "reads", allowed.max_reads),
        validation=Validation(*(Counted(split, counts, "evals", allowed.max_evals) for split in plain.validation)),
        validate=validate,
        budget=allowed,
    )
    given = dataclasses.replace(trial, request=request) if entry.sees == "trial" else request
    method = make(entry)
    if reason := getattr(method, "skips", lambda request: None)(given):
        pytest.skip(reason)
    torch.manual_seed(noise)
    hook = register_optimizer_step_post_hook(lambda *_: counts.update(steps=1))
    try:
        model, exceeded = method(given), False
    except BudgetExceeded:
        if not budget:
            raise
        model, exceeded = None, True
    finally:
        hook.remove()
    return Ran(model, trial, counts, exceeded)


once = functools.cache(ran)
all_requests = pytest.mark.parametrize("request_id", ["single", "joint", "samples"])
ranked = every("method", keep=lambda entry: not entry.control)


def state(model: Any) -> dict[str, Any]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same(one: dict[Any, Any], other: dict[Any, Any]) -> bool:
    import torch

    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@all_requests
@every("method")
def test_methods_return_a_finite_model_in_eval_mode(entry, request_id):
    import torch

    model = once(entry, request_id).model
    assert isinstance(model, torch.nn.Module)
    assert not any(module.training for module in model.modules())
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())


@all_requests
@ranked
def test_methods_keep_the_architecture(entry, request_id):
    """Names and shapes, or there were no file of changed tensors that restores the unlearned from the original."""
    original = toy_trial(request_id).request.model.state_dict()
    unlearned = once(entry, request_id).model.state_dict()
    assert {name: t.shape for name, t in unlearned.items()} == {name: t.shape for name, t in original.items()}


@every("method")
def test_methods_leave_the_original_and_the_data_alone(entry):
    def data(trial: Trial) -> dict[Any, Any]:
        splits = (trial.request.forget, trial.request.retain, *trial.request.validation)
        return {(i, name): column for i, s in enumerate(splits) for name, column in {**s.tensors, **s.members}.items()}

    trial = toy_trial()
    original = copy.deepcopy(trial.request.model)
    result = once(entry)
    assert same(data(result.trial), data(trial))
    after = result.trial.answer(original)  # what metrics run: test images and labels are what they were
    assert all(np.array_equal(after[name], trial.original[name]) for name in after)


@every("method")
def test_methods_draw_from_the_requests_generator_alone(entry):
    """The same seed gives the same bits, whatever state torch's global generator is in."""
    first, again = once(entry).model, ran(entry, noise=1).model
    assert same(state(first), state(again))


@every("method")
def test_methods_stay_within_the_budget_of_a_request(entry):
    """Asking for more is an error in `ran`; left are those who catch it, and steps."""
    result = once(entry)
    assert result.counts["refused"] == 0
    assert result.counts["steps"] <= result.trial.request.budget.max_steps


@pytest.mark.parametrize("budget", [{"max_steps": 3}, {"max_reads": 100}, {"max_evals": 2}], ids=lambda b: next(iter(b)))
@every("method")
def test_methods_finish_on_a_tiny_budget_or_are_stopped_by_it_at_once(entry, budget):
    result = ran(entry, **budget)
    assert result.counts["steps"] <= budget.get("max_steps", 10**9)
    assert result.counts["refused"] == result.exceeded, "the refusal was caught, and asked for again"


@ranked
def test_a_skip_is_a_sentence(entry):
    method = make(entry)
    if hasattr(method, "skips"):
        trial = toy_trial()
        reason = method.skips(trial if entry.sees == "trial" else trial.request)
        assert reason is None or (isinstance(reason, str) and len(reason.split()) > 2)


# ---------------------------------------------------------------- tasks

LISTING = """
import json, sys
from slugbench.bench.registry import load
registry = load([{toy!r}])
found = {{}}
for name in registry.names("task"):
    task = registry.create("task", name)
    ready = all(wanted.found for wanted in task.wanted())
    some = (*task.requests()[:3], *task.requests()[-3:]) if ready else ()  # of all kinds
    found[name] = {{
        "requests": [[r.id, list(r.targets), r.pool] for r in task.requests()],
        "fingerprints": [task.fingerprint(r.id, seed) for r in dict.fromkeys(some) for seed in task.base_seeds],
        "torch": "torch" in sys.modules,
    }}
print(json.dumps(found))
"""


@functools.cache
def listed(seed: int) -> dict[str, Any]:
    """What a fresh process says of every task."""
    return json.loads(run_python(LISTING.format(toy=str(TOY_TASK)), PYTHONHASHSEED=str(seed)))


@every("task")
def test_tasks_list_requests_and_vouch_for_them_without_torch(entry):
    assert not listed(0)[entry.name]["torch"]
    assert [[r.id, list(r.targets), r.pool] for r in make(entry).requests()] == listed(0)[entry.name]["requests"]


@every("task")
def test_requests_have_ids_of_their_own_and_pools_share_no_target(entry):
    requests = make(entry).requests()
    assert len({r.id for r in requests}) == len(requests) > 0
    pools: dict[str, str] = {}
    for request in requests:
        assert len(set(request.targets)) == len(request.targets)
        assert request.pool in get_args(Pool)
        for target in request.targets:
            assert pools.setdefault(target, request.pool) == request.pool, f"{target} is in two pools"


@every("task")
def test_fingerprints_are_the_same_in_every_process_and_others_for_other_models(entry):
    one, other = listed(0)[entry.name]["fingerprints"], listed(1)[entry.name]["fingerprints"]
    if not one:
        pytest.skip(f"{entry.name}: its data is not here")
    assert one == other
    assert len(set(one)) == len(one)


@every("task")
def test_base_seeds_are_numbered_and_unknown_ones_refused(entry):
    task = make(entry)
    assert task.base_seeds and all(isinstance(seed, int) for seed in task.base_seeds)
    with pytest.raises(UsageError):
        task.build("no such request", task.base_seeds[0])


@functools.cache
def built(entry: Entry, kind: str = "concepts") -> Trial:
    """A task's first request for development; skips the test where the task's data is not there."""
    task = make(entry)
    if missing := [wanted.note for wanted in task.wanted() if not wanted.found]:
        pytest.skip(f"{entry.name} needs {missing[0]}")
    ids = [r.id for r in task.requests() if r.pool == "dev" and bool(r.targets) == (kind == "concepts")]
    if kind == "samples" and not ids:
        pytest.skip(f"{entry.name} forgets no samples")
    return task.build(ids[0], task.base_seeds[0])


both_kinds = pytest.mark.parametrize("kind", ["concepts", "samples"])
"""What is to be forgotten: targets, or training samples."""


def batch(split: Any) -> dict[str, Any]:
    return next(split.batches(16))


@both_kinds
@every("task")
def test_trials_ask_aligned_questions(entry, kind):
    trial = built(entry, kind)
    questions, n = trial.questions, len(trial.questions["split"])
    assert set(questions) >= {"split", "unit", "label", "near", "index"}
    assert {len(column) for column in questions.values()} == {n}
    known = {"forget", "retain", "forget_train", "forget_unseen", "retain_train", "outsider", "utility"}
    assert set(questions["split"]) <= known
    assert {"forget", "retain"} <= set(questions["split"])
    assert questions["near"].dtype == bool and set(questions["split"][questions["near"]]) <= {"retain"}
    assert all(questions[name].dtype.kind in "iu" for name in ("unit", "label", "index"))


@both_kinds
@every("task")
def test_answers_are_aligned_finite_and_agree_with_the_labels(entry, kind):
    trial = built(entry, kind)
    own = np.isin(trial.questions["split"], ("forget", "retain"))
    for answers in (trial.original, *trial.oracles):
        assert set(answers) >= {"predicted", "rank", "score"}
        assert {len(column) for column in answers.values()} == {len(own)}
        assert np.isfinite(answers["score"]).all() and (answers["rank"] >= 0).all()
        right = answers["predicted"][own] == trial.questions["label"][own]
        assert np.mean(right == (answers["rank"][own] == 0)) > 0.99  # apart from ties


@both_kinds
@every("task")
def test_the_original_answers_as_the_trial_says(entry, kind):
    trial = built(entry, kind)
    now = trial.answer(trial.request.model)
    assert now.keys() == trial.original.keys()
    assert np.array_equal(now["rank"], trial.original["rank"])
    np.testing.assert_allclose(now["score"], trial.original["score"], rtol=1e-4, atol=1e-4)


@every("task")
def test_every_build_hands_out_a_model_of_its_own(entry):
    import torch

    first = built(entry)
    task = make(entry)
    spoilt = task.build(next(r.id for r in task.requests() if r.pool == "dev"), task.base_seeds[0])
    with torch.no_grad():
        for tensor in spoilt.request.model.parameters():
            tensor.zero_()
    again = task.build(next(r.id for r in task.requests() if r.pool == "dev"), task.base_seeds[0])
    assert same(state(again.request.model), state(first.request.model))
    assert not any(module.training for module in again.request.model.modules())


@every("task")
def test_train_and_validation_samples_are_disjoint_and_targets_add_up(entry):
    request = built(entry).request
    seen: Counter[bytes] = Counter()
    for split in (request.forget, request.retain, *request.validation):
        for rows in split.batches(64):
            seen.update({image.numpy().tobytes() for image in rows["image"]})
    assert max(seen.values()) == 1
    assert sum(len(request.forget.of(target)) for target in request.targets) == len(request.forget)


@every("task")
def test_samples_to_be_forgotten_are_their_own_validation_and_question_and_no_target(entry):
    trial = built(entry, "samples")
    request, splits = trial.request, trial.questions["split"]
    assert request.targets == () and "forget_train" not in splits
    assert (splits == "forget").sum() == len(request.forget) == len(request.validation.forget)
    pixels = [
        {image.numpy().tobytes() for rows in split.batches(64) for image in rows["image"]}
        for split in (request.forget, request.validation.forget, request.retain, request.validation.retain)
    ]
    assert pixels[0] == pixels[1]
    assert not pixels[0] & pixels[2] and not pixels[0] & pixels[3] and not pixels[2] & pixels[3]
    assert request.validate(request.model).retain == pytest.approx(request.goal)  # as on what was never trained on


@every("task")
def test_the_objective_speaks_of_the_model_it_is_for(entry):
    import torch

    trial = built(entry)
    request, objective = trial.request, trial.request.objective
    assert objective.kind in {"clip", "classifier", "diffusion"}
    for loss in (objective.loss, objective.forget_loss):
        value = loss(request.model, batch(request.forget))
        assert value.shape == () and torch.isfinite(value) and value.requires_grad
    names = [name for tower in objective.weights(request.model).values() for name in tower]
    assert sorted(names) == sorted(name for name, p in request.model.named_parameters() if p.requires_grad)
    with torch.no_grad():
        assert objective.logits(request.model, batch(request.retain)).shape == (16, trial.n_classes)


@both_kinds
@every("task")
def test_relabelling_gives_every_sample_another_label_and_the_same_image(entry, kind):
    import torch

    request = built(entry, kind).request
    before = batch(request.forget)
    kept = {name: column.clone() for name, column in before.items()}
    after = request.objective.relabel(before, torch.Generator().manual_seed(0))
    assert same(before, kept) and torch.equal(after["image"], before["image"])
    columns = [name for name in ("label", "text") if name in before]
    for name in columns:
        assert (after[name].view(len(after[name]), -1) != before[name].view(len(before[name]), -1)).any(dim=1).all()
    assert columns


@every("task")
def test_a_masked_model_never_answers_the_targets(entry):
    import torch

    trial = built(entry)
    request = trial.request
    before = state(request.model)
    masked = request.objective.masked(request.model, request.targets)
    answers, forget = trial.answer(masked), trial.questions["split"] == "forget"
    assert (answers["rank"][forget] > 0).all()
    assert all(np.isfinite(answers["score"]))
    assert same(state(request.model), before)
    with torch.no_grad():
        assert torch.isfinite(request.objective.logits(masked, batch(request.forget))).all()


@both_kinds
@every("task")
def test_validate_scores_what_the_objective_answers(entry, kind):
    import torch

    request = built(entry, kind).request
    scores = request.validate(request.model)
    assert math.isnan(request.validate(request.model, retain=False).retain)
    assert request.validate(request.model, retain=False).forget == scores.forget
    n = len(request.validation.forget)
    assert scores.forget_se == pytest.approx(math.sqrt(scores.forget * (1 - scores.forget) / n))
    for split, got in zip(request.validation, scores, strict=False):
        right = []
        for rows in split.batches(64):
            if "label" not in rows:
                pytest.skip("its batches hold no labels")
            with torch.no_grad():
                right += (request.objective.logits(request.model, rows).argmax(1) == rows["label"]).tolist()
        assert got == pytest.approx(np.mean(right))


@both_kinds
@every("task")
def test_requests_say_what_may_be_spent_and_where_to_stop(entry, kind):
    trial = built(entry, kind)
    budget = trial.request.budget
    assert min(budget.max_steps, budget.max_reads, budget.max_evals) > 0
    assert 0 < trial.request.goal < 1 < trial.n_classes
    assert trial.joint == (len(trial.request.targets) > 1)


@both_kinds
@every("task")
def test_some_rows_are_answered_as_among_all(entry, kind):
    trial = built(entry, kind)
    rows = np.arange(0, len(trial.questions["split"]), 7)
    some = trial.answer(trial.request.model, rows)
    assert {len(column) for column in some.values()} == {len(rows)}
    assert np.mean(some["rank"] == trial.original["rank"][rows]) > 0.99


@both_kinds
@every("task")
def test_trials_that_show_features_have_one_row_an_image_and_give_the_original_anew(entry, kind):
    trial = built(entry, kind)
    if trial.features is None:
        pytest.skip("shows no features")
    rows = np.array([2, 0, 1])
    shown = trial.features(trial.request.model, rows)
    assert shown.ndim == 2 and len(shown) == 3 and np.isfinite(shown).all()
    np.testing.assert_allclose(trial.features(trial.request.model, rows[1:]), shown[1:], rtol=1e-3, atol=1e-5)
    assert trial.original_model is not None
    again = trial.original_model()
    assert again is not trial.request.model and same(state(again), state(trial.request.model))


@both_kinds
@every("task")
def test_shadow_originals_are_others_trained_on_the_same(entry, kind):
    trial = built(entry, kind)
    if trial.shadow is None:
        pytest.skip("has no shadow originals")
    one, again = trial.shadow(0), trial.shadow(0)
    assert one.targets == trial.request.targets and len(one.forget) == len(trial.request.forget)
    assert same(state(one.model), state(again.model)) and one.model is not again.model
    assert not same(state(one.model), state(trial.request.model))
    known, before = one.validate(one.model), trial.request.validate(trial.request.model)
    assert known.retain == pytest.approx(before.retain, abs=0.2)


@every("task")
def test_requests_one_after_the_other_hold_each_target_once_and_nobody_who_is_gone(entry):
    task = make(entry)
    joint = [r for r in task.requests() if len(r.targets) > 1]
    if not joint or not all(wanted.found for wanted in task.wanted()):
        pytest.skip("has no joint requests here")
    trial = task.build(joint[0].id, task.base_seeds[0])
    if trial.alone is None:
        pytest.skip("takes no targets one after the other")
    request, n_all = trial.request, len(trial.request.forget) + len(trial.request.retain)
    asked = [trial.alone(place, request.model) for place in range(len(request.targets))]
    assert [one.targets for one in asked] == [(target,) for target in request.targets]
    for place, one in enumerate(asked):
        gone = sum(len(before.forget) for before in asked[:place])
        assert len(one.forget) == len(request.forget.of(request.targets[place]))
        assert len(one.forget) + len(one.retain) == n_all - gone
        rows = [rows["index"] for split in (one.forget, one.retain) for rows in split.batches(256)]
        assert len(set(np.concatenate(rows).tolist())) == n_all - gone


# ---------------------------------------------------------------- metrics


class Judged(NamedTuple):
    """A metric on one model of the toy task."""

    outcome: Outcome
    values: list[Value]


@functools.cache
def judged(entry: Entry, kind: str, model: str, request_id: str) -> Judged:
    """Of `original`, `oracle` (in the oracle's place: left out of its own reference) or `noise`."""
    import torch

    from slugbench.bench import Cost

    trial = toy_trial(request_id, kind=kind)
    others, cost = trial.oracles, Cost(t_total=1.0, n_evals=0, notes={"energy_j": "no counter"})
    judged_model = trial.request.model
    if model == "oracle":
        judged_model, others, cost = trial.oracle_model(0), trial.oracles[1:], None
    elif model == "noise":
        with torch.no_grad():
            for i, p in enumerate(judged_model.parameters()):
                p.add_(0.5 * p.std() * torch.randn(p.shape, generator=torch.Generator().manual_seed(i)))
    again = None if model == "oracle" else lambda request: request.model  # a method that does nothing
    numbers = tuple(range(len(trial.oracles)))[-len(others) :]
    outcome = Outcome(trial, trial.answer(judged_model), others, judged_model, cost, numbers, again)
    return Judged(outcome, list(make(entry)(outcome)))


MODELS = ("original", "oracle", "noise")
every_outcome = [
    pytest.mark.parametrize("model", MODELS),
    pytest.mark.parametrize("kind", ["classifier", "clip"]),
    all_requests,
]


def on_every_outcome(test: Callable[..., None]) -> Callable[..., None]:
    for mark in every_outcome:
        test = mark(test)
    return every("metric")(test)


@on_every_outcome
def test_values_are_finite_or_null_with_a_note(entry, model, kind, request_id):
    for value in judged(entry, kind, model, request_id).values:
        assert isinstance(value, Value) and value.better in get_args(Better)
        if value.value is None:
            assert value.note, f"{value.name} is null and does not say why"
        else:
            assert math.isfinite(value.value)
        json.dumps([value.value, value.chance, value.n_images, value.n_units])


@on_every_outcome
def test_values_are_what_their_arrays_say(entry, model, kind, request_id):
    """Macro average, or `statistic`, of the per-image arrays: what the interval is drawn from."""
    for value in judged(entry, kind, model, request_id).values:
        if value.value is None or value.arrays is None:
            continue
        x, unit = value.arrays["x"], value.arrays["unit"]
        assert {len(column) for column in value.arrays.values()} == {len(x)} == {value.n_images}
        assert value.n_units == len(np.unique(unit))
        again = value.statistic(value.arrays) if value.statistic else np.mean([x[unit == u].mean() for u in np.unique(unit)])
        assert value.value == pytest.approx(again)


@on_every_outcome
def test_metrics_leave_the_outcome_alone(entry, model, kind, request_id):
    outcome = judged(entry, kind, model, request_id).outcome
    fresh = toy_trial(request_id, kind=kind)
    assert all(np.array_equal(outcome.trial.questions[name], fresh.questions[name]) for name in fresh.questions)
    assert all(np.array_equal(outcome.trial.original[name], fresh.original[name]) for name in fresh.original)
    again = outcome.trial.answer(outcome.model)
    assert all(np.array_equal(outcome.answers[name], again[name]) for name in again)


@all_requests
@pytest.mark.parametrize("kind", ["classifier", "clip"])
@every("metric")
def test_oracles_are_measured_by_the_same_values_as_the_models_they_judge(entry, kind, request_id):
    """All but costs, which no oracle has."""
    of_model = {v.name: v for v in judged(entry, kind, "original", request_id).values}
    of_oracle = {v.name: v for v in judged(entry, kind, "oracle", request_id).values}
    assert set(of_oracle) <= set(of_model)
    assert all(of_model[name].better == of_oracle[name].better for name in of_oracle)
    assert not of_oracle or set(of_oracle) == set(of_model)


@pytest.mark.parametrize("kind", ["classifier", "clip"])
def test_no_two_values_share_a_name(kind):
    names = Counter(
        value.name
        for entry in REGISTERED.entries.values()
        if entry.kind == "metric"
        for value in judged(entry, kind, "original", "joint").values
    )
    assert max(names.values(), default=1) == 1, names.most_common(1)


# ---------------------------------------------------------------- reports


@every("report")
def test_reports_write_what_they_say_and_leave_the_table_alone(entry, tmp_path):
    frame = toy_frame(statuses=STATUSES)
    before = frame.copy(deep=True)
    for _ in range(2):  # the second time over the first
        written = make(entry)(frame, [{"suite": "toy"}], tmp_path / "report")
        assert written and all(Path(path).is_file() and Path(path).stat().st_size for path in written)
        assert all((tmp_path / "report").resolve() in Path(path).resolve().parents for path in written)
    assert frame.equals(before)


@every("report")
def test_reports_on_failed_cells_alone_name_them(entry, tmp_path):
    frame = toy_frame(statuses=STATUSES)
    written = make(entry)(frame[frame["status"] != "ok"].reset_index(drop=True), [], tmp_path)
    assert all(Path(path).is_file() for path in written)


@every("report")
def test_reports_on_an_empty_table_say_so(entry, tmp_path):
    """A file that says there is nothing, or one clear sentence."""
    try:
        written = make(entry)(toy_frame()[:0], [], tmp_path)
    except UsageError as refused:
        assert len(str(refused).split()) > 3
    else:
        assert all(Path(path).is_file() for path in written)


# ---------------------------------------------------------------- these checks can fail


def test_a_split_refuses_more_than_the_budget_and_counts():
    counts: Counter[str] = Counter()
    request: Request = toy_trial().request
    split = Counted(request.retain, counts, "reads", limit=40)
    assert len(split) == len(request.retain)
    next(split.batches(32))
    with pytest.raises(BudgetExceeded, match="64 reads; the budget allows 40"):
        next(split.batches(32))
    assert counts == {"reads": 64, "refused": 1}


def test_the_example_forgets_the_target_and_keeps_the_rest():
    result = once(REGISTERED.get("method", "my_method"))
    split = result.trial.questions["split"]
    right = result.trial.answer(result.model)["rank"] == 0
    assert right[split == "forget"].mean() < 0.3 < 0.9 < right[split == "retain"].mean()
    assert result.counts["steps"] < result.trial.request.budget.max_steps  # it stopped because it was done
