"""Measures what a method spends: seconds by phase, samples read, evaluations, memory, energy.

Clocks stop and start with the device synchronised. A quantity that cannot be had here is None with the reason.
"""

from __future__ import annotations

import contextlib
import resource
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from .errors import BudgetExceeded, of_its_data
from .types import Budget, Cost, Scores

if TYPE_CHECKING:
    import torch

    from .types import Batch, Model, Split, Validate

PHASES = ("prepare", "search", "apply")


class Device(Protocol):
    """What the meter asks of an accelerator."""

    def synchronize(self) -> None:
        """Wait until all work given to it is done."""
        ...

    def reset_peaks(self) -> None:
        """Forget the memory peaks so far."""
        ...

    def peaks(self) -> tuple[int, int] | None:
        """Bytes allocated and reserved at the peak since `reset_peaks`; None where there is no such memory."""
        ...

    def energy_joules(self) -> float | None:
        """A running counter of the energy used; None where there is none."""
        ...


class CpuDevice:
    """The processor: nothing to wait for, no memory of its own, energy from the RAPL counter of its packages."""

    def synchronize(self) -> None:
        """Nothing runs ahead."""

    def reset_peaks(self) -> None:
        """No memory of its own."""

    def peaks(self) -> None:
        """No memory of its own."""

    def energy_joules(self) -> float | None:
        """Sum over packages of Linux's powercap counters, which may be absent or readable by root alone."""
        counters = [p / "energy_uj" for p in Path("/sys/class/powercap").glob("intel-rapl:?")]
        try:
            return sum(int(counter.read_text()) for counter in counters) / 1e6 if counters else None
        except OSError:
            return None


class CudaDevice:
    """The current CUDA device: torch's allocator for memory, NVML's total-energy counter."""

    def synchronize(self) -> None:
        """Wait for every stream."""
        import torch

        torch.cuda.synchronize()

    def reset_peaks(self) -> None:
        """Give cached blocks back first, or the reserved peak would be that of what ran before."""
        import torch

        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()

    def peaks(self) -> tuple[int, int]:
        """Of torch's caching allocator; what libraries allocate on their own is not seen."""
        import torch

        return torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()

    def energy_joules(self) -> float | None:
        """Whole-device counter, Volta and later."""
        import pynvml
        import torch

        try:
            pynvml.nvmlInit()
            handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(0).uuid}")
            return pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3
        except (pynvml.NVMLError, AttributeError):
            return None


def device_for(name: str) -> Device:
    """The meter's view of `cpu` or `cuda`."""
    return CudaDevice() if name == "cuda" else CpuDevice()


@dataclass
class Meter:
    """Clock and counters of one method's run; hands out counted splits and a counted `validate`."""

    device: Device
    budget: Budget
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    counts: Counter[str] = field(default_factory=Counter)
    phase: str = "apply"
    since: float | None = None
    energy: float | None = None

    # ------------------------------------------------------------ clock

    def progress(self, phase: str, done: int = 0, total: int | None = None) -> None:
        """Enter a phase: `prepare`, `search` or `apply`."""
        if phase not in PHASES:
            raise ValueError(f"progress names the phase {phase!r}; it is one of {', '.join(PHASES)}.")
        if phase != self.phase:
            self.lap()
            self.phase = phase

    def lap(self) -> None:
        """Book the time since the last lap under the present phase."""
        self.device.synchronize()
        now = time.perf_counter()
        if self.since is not None:
            self.seconds[self.phase] += now - self.since
        self.since = now

    @contextlib.contextmanager
    def searching(self) -> Iterator[None]:
        """Whatever happens inside is search."""
        before = self.phase
        self.progress("search")
        try:
            yield
        finally:
            self.progress(before)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """The method's run, from first to last moment."""
        self.device.reset_peaks()
        self.energy = self.device.energy_joules()
        self.since = None
        self.lap()
        try:
            yield
        finally:
            self.lap()

    # ------------------------------------------------------------ counters

    def read(self, what: str, n: int) -> None:
        """Count `n` samples read from the train split `what`.

        Raises:
            BudgetExceeded: more than the budget allows.
        """
        self.counts[what] += n
        total = self.counts["forget"] + self.counts["retain"]
        if total > self.budget.max_reads:
            raise BudgetExceeded(f"read {total} training samples; the budget allows {self.budget.max_reads}.")

    def evaluate(self) -> None:
        """Count one evaluation on validation data.

        Raises:
            BudgetExceeded: more than the budget allows.
        """
        self.counts["evals"] += 1
        if self.counts["evals"] > self.budget.max_evals:
            raise BudgetExceeded(f"evaluated {self.counts['evals']} times; the budget allows {self.budget.max_evals}.")

    # ------------------------------------------------------------ the sum

    def cost(self, *, concurrent: bool) -> Cost:
        """Everything measured, with a reason for what could not be."""
        cost = Cost(
            t_prepare=self.seconds["prepare"],
            t_search=self.seconds["search"],
            t_apply=self.seconds["apply"],
            t_total=sum(self.seconds.values()),
            n_forget_read=self.counts["forget"],
            n_retain_read=self.counts["retain"],
            n_evals=self.counts["evals"],
            peak_rss_bytes=peak_rss_bytes(),
        )
        self._memory(cost)
        self._energy(cost, concurrent)
        return cost

    def _memory(self, cost: Cost) -> None:
        peaks = self.device.peaks()
        if peaks is not None:
            cost.peak_device_bytes, cost.peak_device_reserved_bytes = peaks
            return
        for name in ("peak_device_bytes", "peak_device_reserved_bytes"):
            cost.notes[name] = "ran on a CPU, which has no memory of its own; see peak_rss_bytes"

    def _energy(self, cost: Cost, concurrent: bool) -> None:
        after = self.device.energy_joules()
        if after is None or self.energy is None:
            cost.notes["energy_j"] = "this machine shows no energy counter to us"
        elif concurrent:
            cost.notes["energy_j"] = "the counter is the whole device's and other cells ran beside; use --jobs 1"
        elif after < self.energy:
            cost.notes["energy_j"] = "the energy counter overflowed meanwhile"
        else:
            cost.energy_j = after - self.energy


def peak_rss_bytes() -> int:
    """Largest resident set of this process or of one of its ended children, shared pages included."""
    kilobytes = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return kilobytes * 1024  # Linux's unit is KiB


# ---------------------------------------------------------------- counted data


class CountedSplit:
    """A train split that counts what is read and hands it out on the request's device."""

    def __init__(self, split: Split, meter: Meter, what: str, device: str) -> None:
        self.split, self.meter, self.what, self.device = split, meter, what, device

    def __len__(self) -> int:
        return len(self.split)

    def batches(self, size: int, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """As `Split.batches`."""
        with of_its_data():
            for batch in self.split.batches(size, generator):
                self.meter.read(self.what, len(batch["index"]))
                yield {name: column.to(self.device) for name, column in batch.items()}

    def of(self, target: str) -> CountedSplit:
        """As `Split.of`."""
        return CountedSplit(self.split.of(target), self.meter, self.what, self.device)


class SearchedSplit(CountedSplit):
    """A validation split: one pass over it is one evaluation, and all that happens meanwhile is search."""

    def batches(self, size: int, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """As `Split.batches`."""
        self.meter.evaluate()
        with self.meter.searching(), of_its_data():
            for batch in self.split.batches(size, generator):
                yield {name: column.to(self.device) for name, column in batch.items()}

    def of(self, target: str) -> SearchedSplit:
        """As `Split.of`."""
        return SearchedSplit(self.split.of(target), self.meter, self.what, self.device)


@dataclass(frozen=True)
class CountedValidate:
    """`validate`, counted and clocked as search."""

    validate: Validate
    meter: Meter

    def __call__(self, model: Model, *, retain: bool = True) -> Scores:
        """As `Validate`."""
        self.meter.evaluate()
        with self.meter.searching(), of_its_data():
            return self.validate(model, retain=retain)
