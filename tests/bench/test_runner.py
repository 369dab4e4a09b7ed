"""Cells cannot hurt each other, and nothing finished is lost."""

import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid

import pandas as pd
import psutil
import pytest

from slugbench.bench import MissingData, UsageError, runner
from slugbench.bench.cell import GAVE_UP, _save_result, judge
from slugbench.bench.cli import main
from slugbench.bench.errors import DiskTrouble
from slugbench.bench.isolate import Ended, Limits, resume, run, tree_bytes

from ..toys import FAILING, FAILURES, TOY_TASK, restored_registry, toy_trial

PLUGINS = ["--plugin", str(TOY_TASK), "--plugin", str(FAILING)]
MEASURED = {"started", "concurrent", "provenance"}
"""Columns in which two equal runs may differ; so may the values of costs that depend on the machine's mood."""
COSTS = ("t_prepare", "t_search", "t_apply", "t_total", "peak_rss_bytes", "energy_j")


@pytest.fixture(autouse=True)
def fresh_registry():
    with restored_registry():
        yield


def suite(folder, methods, **more):
    lines = {"name": "toy", "tasks": ["toy"], "methods": methods, "timeout": 60, "memory": 2.0, **more}
    path = folder / "toy.toml"
    path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in lines.items()))
    return str(path)


def table(folder):
    """The table without what may differ between two equal runs."""
    frame = pd.read_parquet(folder / "table.parquet")
    frame.loc[frame["metric"].isin(COSTS), "value"] = 0.0
    return frame.drop(columns=list(MEASURED)).sort_values(["cell", "metric"], ignore_index=True)


# ---------------------------------------------------------------- statuses


def test_five_ways_to_fail_are_five_statuses_and_hurt_nobody(tmp_path, capsys):
    methods = ["noop", *FAILURES]
    suite_file = suite(tmp_path, methods, timeout=15, memory=1.0, requests=1)
    assert main(["run", suite_file, "--out", str(tmp_path / "out"), *PLUGINS]) == 3
    frame = pd.read_parquet(tmp_path / "out" / "table.parquet")
    status = frame.groupby("method")["status"].first().to_dict()
    assert status == {**FAILURES, "noop": "ok"}
    failed = frame[frame["status"] != "ok"]
    assert failed["metric"].isna().all() and failed["error"].notna().all()
    record = json.loads(
        json.loads((next((tmp_path / "out" / "cells").glob("*raises*")) / "cell.json").read_text())["record"]
    )
    assert "raised on purpose" in record["log_tail"] and "Traceback" in record["log_tail"]


def test_retry_runs_the_statuses_named_and_no_others(tmp_path, capsys):
    arguments = ["run", suite(tmp_path, ["noop", "raises"], requests=1), "--out", str(tmp_path / "out"), *PLUGINS]
    assert main(arguments) == 3
    before = pd.read_parquet(tmp_path / "out" / "table.parquet").groupby("method")["started"].first()
    assert main([*arguments, "--retry", "timeout,failed"]) == 3
    after = pd.read_parquet(tmp_path / "out" / "table.parquet").groupby("method")["started"].first()
    assert after["noop"] == before["noop"] and after["raises"] > before["raises"]


PLUGIN = '''
from dataclasses import dataclass
from slugbench.bench import MissingDependency, method

@method("picky")
@dataclass(frozen=True)
class Picky:
    """Skip by its own sentence."""
    def skips(self, request):
        return "it knows no blobs."
    def __call__(self, request):
        raise AssertionError("never called")

@method("dependent")
@dataclass(frozen=True)
class Dependent:
    """Need what nobody has."""
    def __call__(self, request):
        import a_package_that_nobody_has

@method("leaver")
@dataclass(frozen=True)
class Leaver:
    """End its process without a word."""
    def __call__(self, request):
        import os
        os._exit(5)

@method("greedy")
@dataclass(frozen=True)
class Greedy:
    """Read more than the budget."""
    def __call__(self, request):
        while True:
            for batch in request.retain.batches(64):
                pass

@method("parent")
@dataclass(frozen=True)
class Parent:
    """Leave a child behind, in a session of its own."""
    def __call__(self, request):
        import subprocess, sys
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1234.5)"], start_new_session=False)
        import time
        time.sleep(1000)
'''


def test_skips_budgets_and_silent_ends_are_told_apart(tmp_path, capsys):
    (tmp_path / "plugin.py").write_text(PLUGIN)
    suite_file = suite(tmp_path, ["picky", "dependent", "leaver", "greedy", "parent"], requests=1, timeout=5)
    plugins = ["--plugin", str(tmp_path / "plugin.py"), *PLUGINS]
    assert main(["run", suite_file, *plugins, "--out", str(tmp_path / "out")]) == 3
    rows = pd.read_parquet(tmp_path / "out" / "table.parquet").set_index("method")
    assert rows["status"].to_dict() == {
        "picky": "skipped", "dependent": "skipped", "leaver": "crashed", "greedy": "failed", "parent": "timeout",
    }  # fmt: skip
    assert rows["error"]["picky"] == "it knows no blobs." and "a_package_that_nobody_has" in rows["error"]["dependent"]
    assert "code 5" in rows["error"]["leaver"] and "BudgetExceeded" in rows["error"]["greedy"]
    assert not [p for p in psutil.process_iter(["cmdline"]) if "1234.5" in " ".join(p.info["cmdline"] or [])]


def test_an_oracle_is_judged_by_the_answers_at_hand_unless_a_metric_needs_its_weights(tmp_path, capsys):
    """Which may take minutes to train."""
    found = {}
    for name, metrics in (("answers", ["accuracy", "cost"]), ("weights", ["accuracy", "cost", "quantised"])):
        out = tmp_path / name
        assert main(["run", suite(tmp_path, ["oracle"], requests=1, metrics=metrics), *PLUGINS, "--out", str(out)]) == 0
        found[name] = pd.read_parquet(out / "table.parquet").set_index("metric")
    assert found["answers"]["value"]["acc_forget"] == found["weights"]["value"]["acc_forget"]
    assert pd.isna(found["answers"]["value"]["t_total"]) and "no model was made" in found["answers"]["note"]["t_total"]
    assert found["weights"]["value"]["t_total"] > 0 and found["weights"]["value"]["ra_w4"] > 0


# ---------------------------------------------------------------- nothing lost


def test_a_truncated_cell_is_noticed_and_run_again(tmp_path, capsys):
    arguments = ["run", suite(tmp_path, ["noop"]), "--out", str(tmp_path / "out"), *PLUGINS]
    assert main(arguments) == 0
    whole = table(tmp_path / "out")
    for victim in [
        *sorted((tmp_path / "out" / "cells").glob("*/cell.json"))[:1],
        *sorted((tmp_path / "out" / "arrays").iterdir())[1:],
    ]:
        victim.write_bytes(victim.read_bytes()[:-20])
    capsys.readouterr()
    assert main(arguments) == 0
    assert "0 done before, 2 to run" in capsys.readouterr().out
    pd.testing.assert_frame_equal(table(tmp_path / "out"), whole)


def test_a_stale_metric_is_judged_anew_from_the_arrays_and_a_stale_method_run_again(tmp_path, capsys):
    metric = tmp_path / "metric.py"
    text = (
        "from dataclasses import dataclass\nfrom slugbench.bench import Value, metric\n"
        '@metric("mine")\n@dataclass(frozen=True)\nclass Mine:\n    """A number."""\n    def __call__(self, outcome):\n'
        '        return [Value("mine", FACTOR * float(outcome.answers["rank"].mean()))]\n'
    )
    metric.write_text(text.replace("FACTOR", "1"))
    command = ["run", suite(tmp_path, ["noop"], requests=1), "--out", str(tmp_path / "out"), *PLUGINS]
    arguments = [*command, "--plugin", str(metric), "--metrics", "mine,cost"]
    with restored_registry():
        assert main(arguments) == 0
    before = pd.read_parquet(tmp_path / "out" / "table.parquet").set_index("metric")
    metric.write_text(text.replace("FACTOR", "2"))
    with restored_registry():
        assert main(arguments) == 0
    after = pd.read_parquet(tmp_path / "out" / "table.parquet").set_index("metric")
    assert after["value"]["mine"] == 2 * before["value"]["mine"] != 0
    assert after["started"]["mine"] == before["started"]["mine"] and after["value"]["t_total"] == before["value"]["t_total"]


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--jobs", "2"], ["--jobs", "2", "--backend", "loky"]], ids=" ".join)
def test_kill_9_at_any_moment_loses_only_the_cells_then_running(tmp_path, capsys, options):
    methods = ["noop", "nans", "sleeps:seconds=1", "raises"]
    suite_file = suite(tmp_path, methods, base_seeds=[0, 1], method_seeds=[0, 1])
    assert main(["run", suite_file, *PLUGINS, "--jobs", "1", "--out", str(tmp_path / "undisturbed")]) == 3
    command = [
        sys.executable,
        "-m",
        "slugbench.bench",
        "run",
        suite_file,
        *PLUGINS,
        *options,
        "--out",
        str(tmp_path / "killed"),
    ]
    pause, started = random.Random(0), {}
    for _ in range(5):
        process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(pause.uniform(3, 6))
        if process.poll() is not None:  # finished before the last kills
            continue
        family = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        _, orphans = psutil.wait_procs(family, timeout=10)
        assert not orphans
        for cell in (tmp_path / "killed" / "cells").glob("[!.]*/cell.json"):
            facts = json.loads(json.loads(cell.read_text())["record"])
            assert started.setdefault(cell.parent.name, facts["started"]) == facts["started"]
    assert subprocess.run(command, stdout=subprocess.DEVNULL).returncode == 3
    pd.testing.assert_frame_equal(table(tmp_path / "killed"), table(tmp_path / "undisturbed"))
    frame = pd.read_parquet(tmp_path / "killed" / "table.parquet").groupby("cell")["started"].first()
    assert {cell: frame[cell] for cell in started} == started


@pytest.mark.parametrize("backend", ["threads", "loky"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_keeps_finished_cells_and_leaves_no_process(tmp_path, backend, number):
    suite_file = suite(tmp_path, ["noop", "sleeps:seconds=600"], requests=1, timeout=1000)
    command = [sys.executable, "-m", "slugbench.bench", "run", suite_file, *PLUGINS, "--out", str(tmp_path / "out")]
    with open(tmp_path / "error", "w") as error:
        process = subprocess.Popen(
            [*command, "--jobs", "2", "--backend", backend], stdout=subprocess.PIPE, stderr=error, text=True
        )
    next(line for line in process.stdout if "noop s0 ok" in line)
    time.sleep(1)  # by now the runner waits for the sleeper
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    process.communicate(timeout=60)
    said = (tmp_path / "error").read_text()
    assert process.returncode == 130 and "finished cells are kept" in said and said.count("\n") == 1
    assert not psutil.wait_procs(family, timeout=10)[1]
    assert pd.read_parquet(tmp_path / "out" / "table.parquet")["method"].unique().tolist() == ["noop"]


@pytest.mark.slow
def test_jobs_and_backends_give_the_same_values(tmp_path, capsys):
    suite_file = suite(tmp_path, ["noop", "nans", "raises"], base_seeds=[0, 1])
    tables = []
    for k, options in enumerate((["--jobs", "1"], ["--jobs", "2"], ["--jobs", "2", "--backend", "loky"])):
        assert main(["run", suite_file, *PLUGINS, *options, "--out", str(tmp_path / f"out{k}")]) == 3
        tables.append(table(tmp_path / f"out{k}"))
    for other in tables[1:]:
        pd.testing.assert_frame_equal(other, tables[0])


def test_a_full_disk_ends_the_run_with_a_sentence_and_keeps_what_is_done(tmp_path, capsys, monkeypatch):
    from slugbench.bench import store

    arguments = ["run", suite(tmp_path, ["noop"]), "--out", str(tmp_path / "out"), *PLUGINS, "--jobs", "1"]
    with monkeypatch.context() as full:
        written, write = [], store.write_through

        def no_room_for_the_second_cell(path):
            written.append(path)
            if path.name == "cell.json" and sum(p.name == "cell.json" for p in written) == 2:
                raise OSError(28, "No space left on device")
            write(path)

        full.setattr(store, "write_through", no_room_for_the_second_cell)
        assert main(arguments) == 2
    assert "No space left on device); make room" in capsys.readouterr().err
    assert main(arguments) == 0
    assert "1 done before, 1 to run" in capsys.readouterr().out


# ---------------------------------------------------------------- what no method is to blame for

KEEPING = '''

def kept(answer, model):
    """Answers, through the cache; a file beside this one says what is wrong there."""
    from pathlib import Path
    from slugbench.bench import cached

    def make(path):
        if (Path(__file__).parent / "full").exists():
            path.symlink_to("/dev/full")
        if (Path(__file__).parent / "broken").exists():
            raise UsageError("1 of 24 blobs cannot be decoded: 7; get it again.")
        np.save(path, answer(model)["rank"])

    cached("toy-ranks", {"of": "NAME"}, make, suffix=".npy")
    return answer(model)
'''
BLAMED = '''
from dataclasses import dataclass
from slugbench.bench import UsageError, method

@method("writes")
@dataclass(frozen=True)
class Writes:
    """Write what there is no room for."""
    def __call__(self, request):
        with open("/dev/full", "w") as file:
            file.write("x")

@method("refuses")
@dataclass(frozen=True)
class Refuses:
    """Refuse the task."""
    def __call__(self, request):
        raise UsageError("it takes no blobs.")
'''


@pytest.fixture
def keeping(tmp_path):
    """Plug-ins: the toy task, whose answers are kept in the cache, and two methods that fail by themselves."""
    text = TOY_TASK.read_text().replace('@task("toy")', '@task("keeping")')
    asked = "            answer,\n            answer(model),"
    assert asked in text
    text = text.replace(asked, "            partial(kept, answer),\n            answer(model),")
    (tmp_path / "keeping.py").write_text(text + KEEPING.replace("NAME", uuid.uuid4().hex))
    (tmp_path / "blamed.py").write_text(BLAMED)
    files = (tmp_path / "keeping.py", tmp_path / "blamed.py", FAILING)
    return [argument for file in files for argument in ("--plugin", str(file))]


@pytest.mark.parametrize(
    ("wrong", "sentences"),
    [
        ("full", ["cannot write to the cache in ", "No space left on device); make room there, or set SLUGBENCH_CACHE to"]),
        ("broken", ["slugbench: task 'keeping' cannot run: 1 of 24 blobs cannot be decoded: 7; get it again.\n"]),
    ],
)
def test_a_full_cache_and_broken_data_are_no_methods_fault(tmp_path, capsys, keeping, wrong, sentences):
    suite_file = suite(tmp_path, ["noop", "writes", "refuses"], tasks=["keeping"], requests=1)
    arguments = ["run", suite_file, "--out", str(tmp_path / "out"), "--jobs", "1", *keeping]
    (tmp_path / wrong).touch()
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert all(sentence in said for sentence in sentences) and said.count("\n") == 1
    assert not list((tmp_path / "out" / "cells").glob("[!.]*"))
    (tmp_path / wrong).unlink()
    assert main(arguments) == 3  # and a method's own faults are
    assert "3 cells, 0 done before" in capsys.readouterr().out
    rows = pd.read_parquet(tmp_path / "out" / "table.parquet").groupby("method")[["status", "error"]].first()
    assert rows["status"].to_dict() == {"noop": "ok", "writes": "failed", "refuses": "failed"}
    assert "No space left" in rows["error"]["writes"] and rows["error"]["refuses"] == "UsageError: it takes no blobs."


def test_gates_that_meet_broken_data_end_the_run_with_the_same_sentence(tmp_path, capsys):
    text = TOY_TASK.read_text().replace('@task("toy")', '@task("broken")')
    refusal = '        raise UsageError("the blobs are not there; get them.")\n'
    head = "    def build(self, request_id: str, base_seed: int) -> Trial:\n"
    assert head in text
    (tmp_path / "broken.py").write_text(text.replace(head, head + refusal))
    plugins = ["--plugin", str(tmp_path / "broken.py"), "--plugin", str(FAILING)]
    suite_file = suite(tmp_path, ["noop"], tasks=["broken"], requests=1)
    assert main(["run", suite_file, "--out", str(tmp_path / "out"), *plugins]) == 2
    assert capsys.readouterr().err == "slugbench: task 'broken' cannot run: the blobs are not there; get them.\n"


def test_a_metric_that_meets_broken_data_ends_the_cell_and_one_that_fails_is_a_note(cache):
    trial = toy_trial()

    def judged(error):
        def metric(outcome):
            raise error

        keys = {"mine": {"metric": "mine", "trial": "toy"}}
        return judge(trial, trial.original, {"mine": metric}, keys=keys, model=None, cost=None, own=None)

    assert "ArithmeticError" in judged(ArithmeticError("on purpose"))["mine"][0]["note"]
    for error in (MissingData("a picture is broken."), DiskTrouble("the disk is full.")):
        with pytest.raises(type(error), match=str(error)):
            judged(error)


def test_results_that_cannot_be_written_are_the_disks_fault(tmp_path):
    with pytest.raises(DiskTrouble, match=r"a cell cannot write results to .*No such file.*; make room"):
        _save_result({"status": "ok"}, tmp_path / "absent")


def test_a_cell_that_could_not_even_say_what_it_met_ends_the_run(tmp_path):
    (tmp_path / "log.txt").write_text("epoch 3\n")  # and then there was no room
    with pytest.raises(UsageError, match="cannot write its log; make room"):
        runner._raise_what_it_gave_up_for(Ended("exited", GAVE_UP, 0), tmp_path)
    runner._raise_what_it_gave_up_for(Ended("exited", 1, 0), tmp_path)


@pytest.mark.parametrize(
    "end", ["return request.model", "os.kill(os.getpid(), 9)", "time.sleep(60)"], ids=["returns", "crashes", "hangs"]
)
def test_no_child_outlives_its_cell(tmp_path, capsys, end):
    mark = f"time.sleep(54321.{os.getpid()})"
    child = f"[sys.executable, '-c', 'import time; {mark}']"
    (tmp_path / "plugin.py").write_text(
        "import os, subprocess, sys, time\nfrom dataclasses import dataclass\nfrom slugbench.bench import method\n"
        '@method("parent")\n@dataclass(frozen=True)\nclass Parent:\n    """Leave a child in a session of its own."""\n'
        f"    def __call__(self, request):\n        subprocess.Popen({child}, start_new_session=True)\n"
        f"        time.sleep(1)\n        {end}\n"
    )
    arguments = [
        "run",
        suite(tmp_path, ["parent"], requests=1, timeout=6),
        "--plugin",
        str(tmp_path / "plugin.py"),
        *PLUGINS,
    ]
    main([*arguments, "--out", str(tmp_path / "out")])
    time.sleep(0.5)
    assert not [p for p in psutil.process_iter(["cmdline"]) if mark in " ".join(p.info["cmdline"] or [])]


def test_a_metric_that_dies_when_judging_anew_is_a_row_and_is_tried_again(tmp_path, capsys):
    metric = tmp_path / "metric.py"
    metric.write_text(
        "import os\nfrom dataclasses import dataclass\nfrom slugbench.bench import metric\n"
        '@metric("mine")\n@dataclass(frozen=True)\nclass Mine:\n    """No number."""\n    def __call__(self, outcome):\n'
        "        os.kill(os.getpid(), 9)\n"
    )
    command = ["run", suite(tmp_path, ["noop"], requests=1), "--out", str(tmp_path / "out"), *PLUGINS]
    assert main([*command, "--metrics", "cost"]) == 0
    log = next((tmp_path / "out" / "cells").glob("[!.]*/log.txt")).read_bytes()
    arguments = [*command, "--metrics", "cost,mine", "--plugin", str(metric)]
    assert main(arguments) == 0
    row = pd.read_parquet(tmp_path / "out" / "table.parquet").set_index("metric").loc["mine"]
    assert pd.isna(row["value"]) and "could not be judged anew: Crash: ended by SIGKILL" in row["note"]
    assert next((tmp_path / "out" / "cells").glob("[!.]*/log.txt")).read_bytes() == log
    capsys.readouterr()
    main(arguments)
    assert "0 done before, 1 to run" in capsys.readouterr().out


def test_what_a_kill_left_between_the_last_cell_and_the_report_is_made_up_for(tmp_path, capsys):
    command = ["run", suite(tmp_path, ["noop"], requests=1), "--out", str(tmp_path / "out"), *PLUGINS]
    assert main(command) == 0
    run_file = tmp_path / "out" / "run.json"
    run_file.write_text(run_file.read_text().replace('"reported": "html,md,csv"', '"reported": null'))
    (tmp_path / "out" / "table.parquet").unlink()
    assert main(command) == 0
    assert (tmp_path / "out" / "table.parquet").exists() and main(command) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_two_runs_do_not_write_into_one_folder(tmp_path, capsys):
    import filelock

    (tmp_path / "out").mkdir()
    with filelock.FileLock(tmp_path / "out" / ".lock"):
        assert main(["run", suite(tmp_path, ["noop"]), "--out", str(tmp_path / "out"), *PLUGINS]) == 2
    assert "another slugbench run is writing" in capsys.readouterr().err


# ---------------------------------------------------------------- isolation itself


def test_output_goes_to_the_log_and_an_exception_is_an_exit_code(tmp_path):
    resume()  # where a run has ended, cells are stopped until the next one
    log, limits = tmp_path / "log.txt", Limits(30, 10**10)
    assert run("builtins:print", {"a": 1}, log=log, limits=limits)[:2] == ("exited", 0)
    assert run("operator:length_hint", {"a": 1}, log=log, limits=limits)[:2] == ("exited", 0)
    assert run("operator:neg", {"a": 1}, log=log, limits=limits)[:2] == ("exited", 1)
    assert log.read_text().startswith("{'a': 1}\nProcess") and "TypeError: bad operand" in log.read_text()


def test_memory_of_a_tree_is_that_of_its_processes():
    child = "x = b'x' * 50_000_000; input()"
    code = f"import subprocess, sys; x = b'x' * 50_000_000; subprocess.run([sys.executable, '-c', {child!r}])"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as process:
        while not (seen := tree_bytes(process.pid)) > 100e6:
            assert process.poll() is None
        process.stdin.close()
    assert seen < 150e6 and tree_bytes(process.pid) == 0
