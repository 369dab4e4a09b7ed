"""Cells on other machines are the same cells: a scheduler and two workers of dask, over TCP, on this one."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pandas as pd
import psutil
import pytest

from slugbench.bench import cluster, runner
from slugbench.bench.cli import main
from slugbench.bench.errors import UsageError
from slugbench.bench.isolate import Limits
from slugbench.bench.plan import Suite, expand

from ..toys import FAILING, ROOT, TOY_TASK, restored_registry
from .test_runner import suite, table

pytest.importorskip("distributed", reason="needs dask's scheduler and workers: pip install 'slugbench[dask]'")

PLUGINS = ["--plugin", str(TOY_TASK), "--plugin", str(FAILING)]
ENVIRONMENT = os.environ | {
    "PYTHONPATH": str(ROOT / ".ci" / "path"),
    "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1",  # of three: every worker that dies takes seconds to come again
}

PATIENCE = 600
"""Seconds that what takes ten may take on a machine that does much else."""


@contextlib.contextmanager
def started(*command, core=None, **options):
    """A process that, with all that descends from it, is gone at the end."""
    process = subprocess.Popen([sys.executable, *command], env=ENVIRONMENT, start_new_session=True, **options)
    try:
        if core is not None:
            psutil.Process(process.pid).cpu_affinity([core])
        yield process
    finally:
        family = [] if process.returncode is not None else psutil.Process(process.pid).children(recursive=True)
        process.kill()  # first: a nanny would start its worker anew
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        process.communicate()
        assert not psutil.wait_procs(family, timeout=30)[1]


@contextlib.contextmanager
def started_cluster(folder, workers):
    """The address of a scheduler with so many workers, each confined to one core."""
    cores = psutil.Process().cpu_affinity()
    file = folder / "scheduler.json"
    options = ["--scheduler-file", str(file), "--dashboard-address", "127.0.0.1:0"]
    of_scheduler = ["--host", "127.0.0.1", "--port", "0", "--idle-timeout", "600 s"]  # it ends itself if this process cannot
    of_worker = ["--nworkers", "1", "--nthreads", "1", "--local-directory", str(folder)]
    with contextlib.ExitStack() as stack, open(folder / "dask.txt", "wb") as log:
        streams = {"stdout": log, "stderr": log}
        stack.enter_context(started("-m", "dask", "scheduler", *options, *of_scheduler, **streams))
        for k in range(workers):
            command = ["-m", "dask", "worker", *options, *of_worker]
            stack.enter_context(started(*command, core=cores[k % len(cores)], **streams))
        address = until(lambda: file.exists() and json.loads(file.read_text())["address"])
        until(lambda: cluster.places(address) == workers)
        yield address


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with started_cluster(tmp_path_factory.mktemp("cluster"), workers=2) as address:
        yield address


@pytest.fixture(autouse=True)
def fresh_registry():
    with restored_registry():
        yield


def until(found, seconds=PATIENCE):
    """What is found when there is something to find."""
    end = time.monotonic() + seconds
    while not (thing := found()):
        assert time.monotonic() < end, f"nothing came of waiting {seconds} s"
        time.sleep(0.1)
    return thing


def arguments(address, folder, suite_file, *options):
    """Of a run in `folder`, whose output goes to `out` there."""
    there = ["--backend", "dask", "--scheduler", address, "--out", "out", "--format", "csv"]
    return ["-m", "slugbench.bench", "run", suite_file, *PLUGINS, *there, *options]


def sleepers(folder):
    """Processes that run the method `sleeps` for a run in this folder: they write to its cell's log."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            paths = [file.path for file in process.open_files()]
            found += [process] if any(path.startswith(str(folder)) and "-sleeps-" in path for path in paths) else []
    return found


# ---------------------------------------------------------------- the same results, whatever dies


@pytest.mark.slow
def test_threads_loky_and_workers_elsewhere_give_the_same_table(address, tmp_path, capsys):
    suite_file = suite(tmp_path, ["noop", "nans", "raises"], requests=1)
    for backend in ("threads", "loky"):
        local = ["--jobs", "2", "--backend", backend, "--out", str(tmp_path / backend), "--format", "csv"]
        assert main(["run", suite_file, *PLUGINS, *local]) == 3
    with started(*arguments(address, tmp_path, suite_file), cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        said = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == 3 and "3 to run, 2 at a time" in said
    for other in ("loky", "out"):
        pd.testing.assert_frame_equal(table(tmp_path / other), table(tmp_path / "threads"))
    facts = json.loads((tmp_path / "out" / "run.json").read_text())["provenance"]
    made_by = pd.read_parquet(tmp_path / "out" / "table.parquet")["provenance"].unique()
    assert {facts[mark]["hardware"]["cores"] for mark in made_by} == {1}  # the workers', to which they are confined
    assert {facts[mark]["command"].split()[1] for mark in made_by} == {"run"}


PLUGIN = '''
import time
from dataclasses import dataclass
import psutil
from beside import count
from slugbench.bench import method

@method("assassin")
@dataclass(frozen=True)
class Assassin:
    """Kill the worker it runs on, the first times."""
    tally: str
    times: int
    def __call__(self, request):
        if count(self.tally) <= self.times:
            psutil.Process().parent().parent().kill()  # of the server that cells are forked from
            time.sleep(600)
        return request.model
'''
BESIDE = """
import os
def count(file):
    with open(file, "a") as tally:
        tally.write("x")
    return os.path.getsize(file)
"""


@pytest.mark.slow
def test_a_worker_killed_in_the_middle_loses_nothing(address, tmp_path):
    for name, text in (("plugin.py", PLUGIN), ("beside.py", BESIDE)):
        (tmp_path / name).write_text(text)
    tallies = {times: tmp_path / f"tally{times}" for times in (1, 9)}
    assassins = [f"assassin:tally={tally},times={times}" for times, tally in tallies.items()]
    command = arguments(address, tmp_path, suite(tmp_path, ["noop", *assassins], requests=1), "--plugin", "plugin.py")
    with started(*command, cwd=tmp_path, stdout=subprocess.DEVNULL) as process:
        assert process.wait(timeout=PATIENCE) == 3
    rows = pd.read_parquet(tmp_path / "out" / "table.parquet").drop_duplicates("cell").set_index("method_params")
    status = {json.loads(params).get("times"): (row["status"], row["error"]) for params, row in rows.iterrows()}
    tries = {times: len(tally.read_text()) for times, tally in tallies.items()}
    assert status[None][0] == "ok" and status[1][0] == "ok" and tries[1] >= 2  # again, if it shared a worker with the other
    assert status[9] == ("crashed", f"Crash: {tries[9]} workers died while they ran it") and tries[9] >= 2


@pytest.mark.slow
def test_an_interrupt_stops_cells_elsewhere_and_keeps_those_that_are_done(address, tmp_path):
    suite_file = suite(tmp_path, ["noop", "sleeps:seconds=600"], requests=1, timeout=1000)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with started(*arguments(address, tmp_path, suite_file), cwd=tmp_path, **streams) as process:
        next(line for line in process.stdout if "noop s0 ok" in line)
        until(lambda: sleepers(tmp_path))
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 130 and "finished cells are kept" in said and said.count("\n") == 1
    until(lambda: not sleepers(tmp_path), seconds=30)
    assert pd.read_parquet(tmp_path / "out" / "table.parquet")["method"].unique().tolist() == ["noop"]


@pytest.mark.slow
def test_a_scheduler_that_dies_ends_the_run_with_a_sentence(tmp_path):
    suite_file = suite(tmp_path, ["sleeps:seconds=600"], requests=1, timeout=1000)
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    with (
        started_cluster(tmp_path, workers=1) as address,
        started(*arguments(address, tmp_path, suite_file), cwd=tmp_path, **streams) as process,
    ):
        until(lambda: sleepers(tmp_path))
        for scheduler in psutil.process_iter(["cmdline"]):
            if {"scheduler", str(tmp_path / "scheduler.json")} <= set(scheduler.info["cmdline"] or []):
                scheduler.kill()
        said = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 2 and f"scheduler at {address} is gone" in said and said.count("\n") == 1


# ---------------------------------------------------------------- what cannot work is said


@pytest.mark.parametrize("answer", ["refused", "silent"])
def test_a_scheduler_that_does_not_answer_is_one_sentence_soon(tmp_path, capsys, monkeypatch, answer):
    monkeypatch.setattr(cluster, "PATIENCE_SECONDS", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        if answer == "refused":
            server.close()
        before = time.monotonic()
        with pytest.raises(UsageError, match=f"scheduler at {address} does not answer"):
            cluster.places(address)
    assert time.monotonic() - before < 15  # of which most is the import


BAD = {
    "no scheduler": (["--backend", "dask"], "--backend dask and --scheduler ADDRESS need each other"),
    "no backend": (["--scheduler", "tcp://127.0.0.1:1"], "--backend dask and --scheduler ADDRESS need each other"),
    "no address": (["--backend", "dask", "--scheduler", "here"], "the scheduler at here does not answer"),
}


@pytest.mark.parametrize(("options", "sentence"), BAD.values(), ids=BAD)
def test_bad_options_are_one_sentence(tmp_path, capsys, options, sentence):
    assert main(["run", suite(tmp_path, ["noop"]), *PLUGINS, "--out", str(tmp_path / "out"), *options]) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_missing_package_is_one_sentence(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    options = ["--out", str(tmp_path / "out"), "--backend", "dask", "--scheduler", "tcp://127.0.0.1:1"]
    assert main(["run", suite(tmp_path, ["noop"]), *PLUGINS, *options]) == 2
    assert "pip install 'slugbench[dask]'" in capsys.readouterr().err


def test_a_worker_without_the_runs_folder_or_its_code_says_so(tmp_path, registry):
    registry.load_plugin(str(TOY_TASK))
    registry.load_plugin(str(FAILING))
    [cell] = expand(Suite(name="toy", tasks=["toy"], methods=["noop"], requests=1), device="cpu")
    job = runner.Job(cell, cell.judges, tmp_path / "elsewhere" / "cells" / ".unfinished" / cell.name)
    settings, sources = runner.Settings(Limits(60, 10**10)), cluster.sources([])
    with pytest.raises(UsageError, match=r"cannot write to .*elsewhere \(No such file"):
        runner.run_there(job, settings, False, sources)
    old = sources._replace(versions=(("torch", "0.1"), *sources.versions[1:]))
    with pytest.raises(UsageError, match=r"has torch \S+, this run 0\.1"):
        runner.run_there(job, settings, False, old)


def test_plugins_travel_as_text_with_what_they_import_from_beside(tmp_path):
    for name, text in (("plugin.py", PLUGIN), ("beside.py", BESIDE), ("unused.py", "")):
        (tmp_path / name).write_text(text)
    sources = cluster.sources([str(tmp_path / "plugin.py"), "a.module"])
    assert json.loads(json.dumps(sources))  # plain data
    file, module = cluster.unpacked(sources.plugins, tmp_path / "there")
    written = {path.name: path.read_text() for path in (tmp_path / "there").rglob("*.py")}
    assert written == {"plugin.py": PLUGIN, "beside.py": BESIDE} and module == "a.module"
    assert file.startswith(str(tmp_path / "there")) and file.endswith("plugin.py")
