"""What the harness itself costs: a no-op method on a no-op task, against a bare process from the same fork server.

Both are timed in turns within one run, so that the ratio does not depend on the machine's mood.
"""

import dataclasses
import statistics
import subprocess
import sys
import time
from types import ModuleType

import pytest

from slugbench.bench import isolate, plan, runner
from slugbench.bench.registry import REGISTRY, load
from slugbench.bench.store import Store

from ..toys import ROOT, restored_registry

NOTHING = str(ROOT / "tests" / "plugins" / "noop.py")
CELLS = 200
LIMIT = 3.0
"""Times a bare process: generous, against a slow disk and busy neighbours; two is what is usually measured."""


@pytest.fixture
def no_main(monkeypatch):
    """A `__main__` without a file: else every child of either kind first imports pytest."""
    monkeypatch.setitem(sys.modules, "__main__", ModuleType("__main__"))


@pytest.fixture
def jobs(tmp_path):
    """The no-op cell, under another name each time, and its store."""
    with restored_registry():
        load([NOTHING])
        suite = plan.Suite(name="overhead", tasks=["nothing"], methods=["nothing_done"], metrics=[], requests=1)
        (cell,) = plan.expand(suite, device="cpu")
        store = Store(tmp_path / "out", suite="overhead", settings={"threads": 1, "device": "cpu"})
        cells = [dataclasses.replace(cell, method_seed=seed) for seed in range(CELLS + 1)]
        yield [runner.Job(c, (), store.scratch_for(c)) for c in cells], store
        store.close()
        assert REGISTRY.names("method")


def bare() -> float:
    """Seconds from the start of a process of the same server to its end."""
    started = time.perf_counter()
    process = isolate._context().Process(target=print)
    process.start()
    process.join()
    return time.perf_counter() - started


def test_a_cell_costs_less_than_three_bare_processes(benchmark, no_main, jobs):
    jobs, store = jobs
    settings = runner.Settings(isolate.Limits(60, 10**10), plugins=(NOTHING,))
    finished, alone, ours = runner.run(jobs, settings), [], []

    def whole():
        done = next(finished)
        store.commit(done.cell, {**done.record, "provenance": ""}, done.scratch)
        return done.record

    def turn():
        alone.append(bare())
        started = time.perf_counter()
        record = whole()
        ours.append(time.perf_counter() - started)
        assert record["status"] == "ok", record["error"]

    assert whole()["status"] == "ok"  # starts the server
    benchmark.pedantic(turn, rounds=CELLS, iterations=1)
    finished.close()
    ratio = statistics.median(ours) / statistics.median(alone)
    benchmark.extra_info.update(bare_ms=1e3 * statistics.median(alone), cell_ms=1e3 * statistics.median(ours), ratio=ratio)
    print(f"\nbare {1e3 * statistics.median(alone):.1f} ms, cell {1e3 * statistics.median(ours):.1f} ms, ratio {ratio:.2f}")
    assert ratio < LIMIT


def test_help_appears_at_once(benchmark):
    """`slugbench --help` in under half a second, interpreter included."""
    benchmark.pedantic(
        lambda: subprocess.run([sys.executable, "-m", "slugbench.bench", "--help"], check=True, stdout=subprocess.DEVNULL),
        rounds=5,
    )
    assert benchmark.stats.stats.median < 0.5
