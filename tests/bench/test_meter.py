"""What a method spends is booked under the right head, on a CPU, on a device that pretends, and on a real one."""

import dataclasses
import itertools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from slugbench.bench import Budget, BudgetExceeded, MissingData, UsageError
from slugbench.bench.cell import unlearn
from slugbench.bench.meter import CountedSplit, CountedValidate, CpuDevice, Meter, SearchedSplit
from slugbench.bench.registry import Entry

BUDGET = Budget(max_steps=10, max_reads=100, max_evals=2)


@dataclass
class PretendDevice:
    """A device that works asynchronously, with a memory and an energy counter of its own."""

    log: list[str] = field(default_factory=list)
    joules: Callable[[], float] = field(default_factory=lambda: itertools.count(100.0, 7.0).__next__)

    def synchronize(self):
        self.log.append("synchronize")

    def reset_peaks(self):
        self.log.append("reset")

    def peaks(self):
        return 1_000, 4_096

    def energy_joules(self):
        return self.joules()


def spent(device=None, *, concurrent=False, work=lambda meter: None):
    meter = Meter(device or CpuDevice(), BUDGET)
    with meter.running():
        work(meter)
    return meter.cost(concurrent=concurrent)


def test_time_runs_under_the_phase_named_last_and_adds_up():
    def work(meter):
        meter.progress("prepare")
        time.sleep(0.02)
        meter.progress("apply")
        with meter.searching():
            time.sleep(0.04)
        time.sleep(0.01)

    cost = spent(work=work)
    assert 0.02 <= cost.t_prepare < 0.04 <= cost.t_search < 0.1 and 0.01 <= cost.t_apply < 0.04
    assert cost.t_total == pytest.approx(cost.t_prepare + cost.t_search + cost.t_apply)


def test_a_phase_of_another_name_is_refused():
    with pytest.raises(ValueError, match="one of prepare, search, apply"):
        spent(work=lambda meter: meter.progress("cook"))


def test_memory_is_null_with_a_reason_on_a_cpu():
    cost = spent()
    assert cost.peak_device_bytes is None and cost.peak_device_reserved_bytes is None
    assert "CPU" in cost.notes["peak_device_bytes"] and "CPU" in cost.notes["peak_device_reserved_bytes"]
    assert cost.peak_rss_bytes > 10_000_000


def test_a_device_is_reset_synchronised_and_read():
    device = PretendDevice()
    cost = spent(device, work=lambda meter: meter.progress("search"))
    assert device.log == ["reset", "synchronize", "synchronize", "synchronize"]  # start, change of phase, end
    assert (cost.peak_device_bytes, cost.peak_device_reserved_bytes, cost.energy_j) == (1_000, 4_096, 7.0)
    assert not cost.notes


def test_energy_is_null_where_others_ran_or_the_counter_is_missing_or_overflowed():
    beside = spent(PretendDevice(), concurrent=True)
    missing = spent(PretendDevice(joules=lambda: None))
    wrapped = spent(PretendDevice(joules=iter([5.0, 1.0]).__next__))
    for cost, reason in ((beside, "other cells ran"), (missing, "no energy counter"), (wrapped, "overflowed")):
        assert cost.energy_j is None and reason in cost.notes["energy_j"]


def test_reads_are_counted_by_split_and_the_budget_ends_them(trial):
    meter = Meter(CpuDevice(), dataclasses.replace(BUDGET, max_reads=len(trial.request.forget) + 4))
    forget, retain = (
        CountedSplit(s, meter, w, "cpu") for s, w in ((trial.request.forget, "forget"), (trial.request.retain, "retain"))
    )
    assert sum(len(batch["index"]) for batch in forget.batches(7)) == meter.counts["forget"] == len(forget)
    with pytest.raises(BudgetExceeded, match="the budget allows"):
        list(retain.batches(5))


@pytest.mark.parametrize("split", [CountedSplit, SearchedSplit])
def test_what_a_split_refuses_is_a_fault_of_its_data(split, trial):
    class Broken:
        def batches(self, size, generator=None):
            yield from itertools.islice(trial.request.forget.batches(size), 1)
            raise UsageError("picture 7 is broken.")

    batches = split(Broken(), Meter(CpuDevice(), Budget(1, 100, 10)), "forget", "cpu").batches(8)
    assert len(next(batches)["index"]) == 8
    with pytest.raises(MissingData, match="picture 7 is broken"):
        next(batches)


def test_parts_of_a_split_are_counted_too(trial):
    meter = Meter(CpuDevice(), BUDGET)
    part = CountedSplit(trial.request.forget, meter, "forget", "cpu").of(trial.request.targets[0])
    assert sum(len(batch["index"]) for batch in part.batches(50)) == meter.counts["forget"] > 0


def test_a_pass_over_validation_is_an_evaluation_and_search(trial):
    meter = Meter(CpuDevice(), BUDGET)
    with meter.running():
        for _ in SearchedSplit(trial.request.validation.forget, meter, "validation", "cpu").batches(16):
            assert meter.phase == "search"
            time.sleep(0.002)
    assert meter.counts["evals"] == 1 and meter.phase == "apply" and meter.cost(concurrent=False).t_search > 0.001


def test_evaluations_are_counted_and_the_budget_ends_them(trial):
    meter = Meter(CpuDevice(), BUDGET)
    validate = CountedValidate(trial.request.validate, meter)
    assert validate(trial.request.model) == trial.request.validate(trial.request.model)
    validate(trial.request.model, retain=False)
    with pytest.raises(BudgetExceeded, match="evaluated 3 times"):
        validate(trial.request.model)


def job(device="cpu"):
    names = {"task": "toy", "task_params": {}, "request": "single", "base_seed": 0, "method": "m", "method_seed": 0}
    return {**names, "device": device, "concurrent": False}


def unlearned(method, trial, device="cpu"):
    return unlearn(method, Entry("method", "m", type(method), ""), trial, job(device))


def test_the_change_is_measured_in_bytes_of_changed_tensors(trial):
    def edit(request):
        next(request.model.parameters()).data[0] += 1
        return request.model

    first = next(trial.request.model.parameters())
    assert unlearned(lambda request: request.model, trial)[1].bytes_delta == 0
    assert unlearned(edit, trial)[1].bytes_delta == first.numel() * first.element_size()


def test_every_method_draws_the_same_numbers(trial):
    drawn = []

    def draw(request):
        import torch

        drawn.append(torch.rand(3, generator=request.generator))
        return request.model

    for _ in range(2):
        unlearned(draw, trial)
    assert drawn[0].equal(drawn[1])


@pytest.mark.gpu
def test_a_gpu_measures_memory_time_and_energy(trial):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")

    def allocate(request):
        torch.ones(64, 1_000_000, device="cuda").sum().item()  # 256 MB of float32
        for batch in request.forget.batches(16):
            assert all(column.is_cuda for column in batch.values())
        return request.model

    model, cost = unlearned(allocate, trial, "cuda")
    assert next(model.parameters()).is_cuda and trial.answer(model)["rank"].shape == trial.questions["label"].shape
    assert 256e6 <= cost.peak_device_bytes <= cost.peak_device_reserved_bytes < 2e9
    assert cost.energy_j is not None or "energy_j" in cost.notes
    assert os.environ.get("CUDA_VISIBLE_DEVICES") != ""
