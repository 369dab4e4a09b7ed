"""Bad input gets one sentence and exit code 2, and leaves earlier results alone."""

import json
import shutil
import subprocess
import sys

import pytest

from slugbench.bench.cli import main

from ..toys import FAILING, TOY_TASK, restored_registry

PLUGINS = ["--plugin", str(TOY_TASK), "--plugin", str(FAILING)]
SUITE = 'name = "toy"\ntasks = ["toy"]\nmethods = ["noop"]\nmetrics = ["accuracy"]\n'


@pytest.fixture(autouse=True)
def fresh_registry():
    with restored_registry():
        yield


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A folder with a finished run of one request."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "toy.toml").write_text(SUITE)
    with restored_registry():
        assert main(["run", str(folder / "toy.toml"), "--out", str(folder / "out"), "--requests", "1", *PLUGINS]) == 0
    return folder


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def run(done, *arguments):
    return ["run", str(done / "toy.toml"), "--out", str(done / "out"), *PLUGINS, *arguments]


BAD = {
    "unknown method": (["--methods", "nop"], "there is no method 'nop' (did you mean 'noop'?)"),
    "unknown task": (["--tasks", "toyy"], "there is no task 'toyy' (did you mean 'toy'?)"),
    "unknown metric": (["--metrics", "acuracy"], "there is no metric 'acuracy' (did you mean 'accuracy'?)"),
    "unknown report": (["--format", "htm"], "there is no report 'htm'"),
    "unknown parameter": (["--methods", "sleeps:second=3"], "has no parameter 'second' (did you mean 'seconds'?)"),
    "parameter value": (["--methods", "sleeps:seconds=long"], "cannot take seconds=long"),
    "senseless value": (["--methods", "ga:steps=-5"], "cannot take steps=-5: input should be greater than 0"),
    "senseless share": (["--methods", "salun:keep=nan"], "refuses keep=nan"),
    "no plan": (["--method-seeds", ""], "is not a list of whole numbers"),
    "no request": (["--requests", ""], "it names no request"),
    "no jobs": (["--jobs", "0"], "'0' is not a positive whole number"),
    "no time": (["--timeout", "-1"], "'-1' is not a positive number"),
    "endless time": (["--timeout", "inf"], "'inf' is not a positive number"),
    "too many requests": (["--requests", "99"], "requests = 99 for task 'toy', which has 1 to 2 test requests"),
    "no requests": (["--requests", "0"], "requests = 0 for task 'toy', which has 1 to 2"),
    "unknown request": (["--requests", "singel"], "no task of this run has the request 'singel'"),
    "unknown base seed": (["--base-seeds", "7"], "task 'toy' has no base seed 7; it has 0, 1"),
    "seeds that are none": (["--method-seeds", "one"], "'one' is not a list of whole numbers"),
    "absent device": (["--device", "cuda"], "there is no CUDA device that torch can use"),
    "unknown device": (["--device", "tpu"], "invalid choice: 'tpu'"),
    "unknown backend": (["--backend", "fork"], "invalid choice: 'fork'"),
    "unknown status": (["--retry", "time"], "there is no status 'time' (did you mean 'timeout'?)"),
    "other threads": (["--threads", "2"], "was made with threads=1, this run has threads=2"),
    "unknown option": (["--job", "2"], "unrecognized arguments: --job 2"),
    "missing plug-in": (["--plugin", "nowhere.py"], "plug-in file"),
    "missing plug-in module": (["--plugin", "no.such.module"], "plug-in no.such.module does not load"),
}


@pytest.mark.parametrize(("arguments", "sentence"), BAD.values(), ids=BAD)
def test_a_bad_argument_is_one_sentence(done, capsys, arguments, sentence, monkeypatch):
    monkeypatch.setattr("slugbench.bench.provenance.accelerators", lambda: [])
    before = content(done / "out")
    assert main(run(done, *arguments)) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.startswith("slugbench: ") and error.count("\n") == 1
    assert content(done / "out") == before


SUITES = {
    "unknown key": (SUITE + "job = 3\n", "unknown key 'job'"),
    "unknown key of a part": (SUITE + "[[also]]\nseeds = [1]\n", "unknown key 'seeds'"),
    "request of no task": (SUITE + "[[also]]\nrequests = {digits = 1}\n", "requests names 'digits', which is none of"),
    "no methods": ('name = "toy"\ntasks = ["toy"]\n', "the key 'methods' is missing"),
    "wrong type": (SUITE + 'threads = "two"\n', "threads = 'two' does not do"),
    "no TOML": ("name = toy\n", "is not valid TOML"),
    "other name": (SUITE.replace('"toy"', '"other"', 1), "belongs to suite 'toy', not 'other'; choose another --out"),
}


@pytest.mark.parametrize(("text", "sentence"), SUITES.values(), ids=SUITES)
def test_a_bad_suite_file_is_one_sentence(done, tmp_path, capsys, text, sentence):
    before = content(done / "out")
    (tmp_path / "bad.toml").write_text(text)
    assert main(["run", str(tmp_path / "bad.toml"), "--out", str(done / "out"), *PLUGINS]) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1
    assert content(done / "out") == before


def test_an_unknown_suite_is_one_sentence(tmp_path, capsys):
    assert main(["run", "quik", "--out", str(tmp_path / "out")]) == 2
    assert "there is no suite 'quik' (did you mean 'quick'?)" in capsys.readouterr().err
    assert main(["run", str(tmp_path / "none.toml"), "--out", str(tmp_path / "out")]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_a_plug_in_with_a_syntax_error_is_one_sentence(done, tmp_path, capsys):
    (tmp_path / "broken.py").write_text("def method(:\n")
    assert main(run(done, "--plugin", str(tmp_path / "broken.py"))) == 2
    error = capsys.readouterr().err
    assert "does not load: SyntaxError" in error and error.count("\n") == 1


@pytest.mark.parametrize("command", ["status", "report"])
def test_a_folder_that_is_no_run_is_one_sentence(tmp_path, capsys, command):
    assert main([command, str(tmp_path)]) == 2
    assert "is no run of slugbench: it has no run.json" in capsys.readouterr().err
    (tmp_path / "run.json").write_text("{")
    assert main([command, str(tmp_path)]) == 2
    assert "run.json cannot be read" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_one_sentence(done, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["run", str(done / "toy.toml"), "--out", str(tmp_path / "file" / "out"), *PLUGINS]) == 2
    assert "cannot write to" in capsys.readouterr().err


def test_a_finished_run_is_left_alone_and_extended(done, tmp_path, capsys):
    shutil.copytree(done / "out", tmp_path / "out")
    before = content(tmp_path / "out")
    same = ["run", str(done / "toy.toml"), "--out", str(tmp_path / "out"), *PLUGINS]
    assert main([*same, "--requests", "1"]) == 0
    assert content(tmp_path / "out") == before and "nothing to do" in capsys.readouterr().out
    assert main(same) == 0
    assert len(list((tmp_path / "out" / "cells").iterdir())) == 2
    kept = {
        path: text for path, text in content(tmp_path / "out" / "cells").items() if path in content(done / "out" / "cells")
    }
    assert kept == content(done / "out" / "cells")


@pytest.mark.parametrize("command", ["list", "run"])
def test_a_reader_who_leaves_is_no_success(done, tmp_path, command):
    """As `slugbench run ... | head`: 141 is 128 and the number of SIGPIPE."""
    run_ = ["run", str(done / "toy.toml"), "--out", str(tmp_path / "out"), "--methods", "raises", *PLUGINS]
    arguments = [sys.executable, "-m", "slugbench.bench", *(run_ if command == "run" else ["list"])]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        said = process.stderr.read()
    assert process.returncode == 141
    assert said == ("" if command == "list" else f"slugbench: stopped, as nobody reads what it prints; {AGAIN}\n")


AGAIN = "the same command goes on from here."


def test_status_counts_cells_and_says_what_went_wrong(done, tmp_path, capsys):
    shutil.copytree(done / "out", tmp_path / "out")
    suite = str(done / "toy.toml")
    assert main(["run", suite, "--out", str(tmp_path / "out"), *PLUGINS, "--methods", "raises", "--requests", "1"]) == 3
    capsys.readouterr()
    assert main(["status", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "suite toy, 2 finished cells" in said and "ArithmeticError: raised on purpose" in said


def test_plan_says_what_is_done(done, capsys):
    assert main(["plan", str(done / "toy.toml"), "--out", str(done / "out"), *PLUGINS]) == 0
    assert "suite toy: 2 cells on cpu, 1 done" in capsys.readouterr().out


def test_list_shows_controls_and_broken_plug_ins(capsys):
    assert main(["list", "methods", *PLUGINS]) == 0
    said = capsys.readouterr().out
    assert "noop" in said and "seconds=" in said


def test_a_failed_gate_stops_the_run_before_any_method(tmp_path, capsys):
    text = TOY_TASK.read_text()
    assert '@task("toy")' in text
    plugin = tmp_path / "gated.py"
    gate = "    def gates(self, request_ids, base_seeds):\n        return [Gate('known', 0.5, 'at least 0.9', False)]\n\n"
    text = text.replace('@task("toy")', '@task("gated")').replace("    def gates(", "    def old_gates(")
    plugin.write_text(text.replace("    def build(", f"{gate}    def build(", 1))
    suite = tmp_path / "gated.toml"
    suite.write_text(SUITE.replace('tasks = ["toy"]', 'tasks = ["gated"]'))
    arguments = ["run", str(suite), "--out", str(tmp_path / "out"), "--plugin", str(plugin), "--plugin", str(FAILING)]
    assert main(arguments) == 4
    assert "'known' of gated: 0.5 (allowed: at least 0.9) failed" in capsys.readouterr().err
    assert not list((tmp_path / "out" / "cells").glob("gated*"))
    assert json.loads((tmp_path / "out" / "run.json").read_text())["gates"][0]["ok"] is False
    assert main(["doctor", "gated", "--plugin", str(plugin)]) == 4
    assert "FAILED 'known'" in capsys.readouterr().out


FULL = (2 + 12 + 5 + 6) * (18 * 3 + 14 * 2)
"""Cells: joint and single identities, classes and random samples of digits; methods and controls, further seeds."""

STANDARD = (2 + 12 + 5 + 6) * 18 * 3 + (3 + 4) * 14 * 2
"""Here further seeds are for the first requests alone."""


@pytest.mark.parametrize(
    ("name", "cells"), {"quick": (4 + 2 + 2) * 9, "standard": STANDARD, "standard-canvas": 15 * 14 * 2, "full": FULL}.items()
)
def test_shipped_suites_can_be_planned(capsys, name, cells):
    assert main(["plan", name]) == 0
    assert f"suite {name}: {cells} cells" in capsys.readouterr().out
