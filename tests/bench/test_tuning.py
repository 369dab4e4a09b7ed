"""Parameters are chosen by one rule, with one budget, on nothing but tuning requests."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tomllib
from itertools import permutations
from math import sqrt

import pandas as pd
import pytest

from slugbench.bench import UsageError
from slugbench.bench.cli import main
from slugbench.bench.plan import Suite, expand, load_suite, resolved, suite_names, task_keys
from slugbench.bench.registry import Spec
from slugbench.bench.tuning import (
    HOW,
    Trace,
    Tried,
    draw,
    only_tuning_requests,
    read_tuned,
    traces,
    tuned_toml,
    untunable,
    variants,
)

from ..toys import FAILING, ROOT, TOY_TASK, restored_registry, toy_trial

TUNABLE = ROOT / "tests" / "plugins" / "tunable.py"
PLUGINS = ["--plugin", str(TOY_TASK), "--plugin", str(FAILING), "--plugin", str(TUNABLE)]
SUITE = 'name = "toy"\ntasks = ["toy"]\nmethods = ["fades", "stumbles", "declines", "noop", "original"]\n'
HEADER = {
    **{"suite": "toy", "budget": 20, "seed": 0, "pool": "tune", "requests": {"toy": ["tune"]}},
    **{"base_seeds": [0], "method_seeds": [0], "device": "cpu", "threads": 1, "version": "0"},
}


@pytest.fixture(autouse=True)
def fresh_registry():
    with restored_registry() as registry:
        for plugin in (TOY_TASK, FAILING, TUNABLE):
            registry.load_plugin(str(plugin))
        yield


def tune(folder, *arguments, task="toy", out="out"):
    (folder / "toy.toml").write_text(SUITE.replace('"toy"]', f'"{task}"]'))
    return ["tune", str(folder / "toy.toml"), "--budget", "20", "--out", str(folder / out), *PLUGINS, *arguments]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A folder with the outcome of tuning, and what was said."""
    folder = tmp_path_factory.mktemp("tuned")
    with restored_registry(), open(folder / "said", "w") as said:
        code = subprocess.run(
            [sys.executable, "-m", "slugbench.bench", *tune(folder, "--base-seeds", "0,1", "--memory", "2")],
            stdout=said,
        ).returncode
    assert code == 3  # some configurations of `stumbles` failed
    return folder


# ---------------------------------------------------------------- what is tried


def test_draws_start_with_the_defaults_and_are_distinct():
    drawn = draw("wide", 10, seed=0)
    assert drawn[0] == {} and len(drawn) == 10
    full = [json.dumps(resolved("method", Spec("wide", params))[1]) for params in drawn]
    assert len(set(full)) == 10


def test_draws_are_the_same_each_time_and_a_larger_budget_only_adds_to_them():
    assert draw("wide", 25, seed=3)[:7] == draw("wide", 7, seed=3)
    assert draw("wide", 7, seed=3) != draw("wide", 7, seed=4)


def test_a_small_grid_is_tried_whole():
    """25 points, one of which is the defaults."""
    drawn = draw("wide", 100, seed=0)
    points = {(params.get("a", 0), params.get("b")) for params in drawn}
    assert len(drawn) == 25 and points == {(a, b) for a in range(5) for b in (None, 0.1, 0.2, 0.3, 0.4)}


@pytest.mark.parametrize(
    ("space", "said"),
    {
        "no parameter": ('{"sized": (1,)}', "has no parameter 'sized' (did you mean 'size'?)"),
        "no values": ('{"size": ()}', "the space of method 'badly' has size=()"),
        "no tuple": ('{"size": 3}', "the space of method 'badly' has size=3"),
        "no plain value": ('{"size": (object,)}', "give a tuple of numbers, texts, truth values or None"),
        "a refused value": ('{"size": ("x",)}', "cannot take size=x"),
        "no mapping": ("[1]", "is no mapping"),
    }.values(),
)
def test_a_bad_space_is_one_sentence(tmp_path, capsys, space, said):
    plugin = tmp_path / "badly.py"
    text = TUNABLE.read_text().replace('"declines"', '"badly"').replace('{"size": (1, 2)}', space)
    plugin.write_text(
        text[: text.index('@method("fades")')] + text[text.index('@method("badly")') : text.index('@method("wide")')]
    )
    assert main([*tune(tmp_path, "--methods", "badly"), "--plugin", str(plugin)]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_tuning_builds_requests_of_its_pool_alone(tmp_path, capsys):
    """A task writes down what is built of it, gates included."""
    text, seen = TOY_TASK.read_text().replace('@task("toy")', '@task("spied")'), tmp_path / "seen"
    spy = f"        print(request_id, file=open({str(seen)!r}, 'a'))\n        targets = self._targets(request_id)\n"
    assert text.count("        targets = self._targets(request_id)\n") == 1
    (tmp_path / "spied.py").write_text(text.replace("        targets = self._targets(request_id)\n", spy))
    arguments = tune(tmp_path, "--methods", "fades", "--plugin", str(tmp_path / "spied.py"), task="spied")
    assert main(arguments) == 0
    assert set(seen.read_text().split()) == {"tune"} and len(seen.read_text().split()) >= 6
    assert not (tmp_path / "out" / "table.parquet").exists() or set(
        pd.read_parquet(tmp_path / "out" / "table.parquet")["pool"]
    ) == {"tune"}


def test_a_request_of_another_pool_is_refused():
    cells = expand(Suite(name="toy", tasks=["toy"], methods=["fades"], metrics=[]), device="cpu")
    with pytest.raises(UsageError, match="request 'single' of task 'toy' is of the pool 'test'"):
        only_tuning_requests(cells)


def test_tuning_evaluates_no_metric(tuned):
    assert pd.read_parquet(tuned / "out" / "table.parquet")["metric"].isna().all()


def test_what_is_not_tuned_and_what_is_tried_less_is_said(tuned):
    said = (tuned / "said").read_text()
    assert "not tuned, no space declared: noop\n" in said and "not tuned, controls: original\n" in said
    assert "fewer than 20 configurations, since their grids have no more: fades 6, stumbles 4, declines 2\n" in said
    assert "declines is not tuned on toy: it knows no blobs.\n" in said


def test_a_task_without_tuning_requests_is_one_sentence(tmp_path, capsys):
    text = TOY_TASK.read_text().replace('@task("toy")', '@task("untuned")')
    (tmp_path / "untuned.py").write_text(text.replace('("blob1",), "tune")', '("blob1",), "dev")'))
    assert main([*tune(tmp_path, task="untuned"), "--plugin", str(tmp_path / "untuned.py")]) == 2
    assert "task 'untuned' has no request of the pool 'tune'" in capsys.readouterr().err


def test_nothing_to_tune_is_one_sentence(tmp_path, capsys):
    assert main(tune(tmp_path, "--methods", "noop,original,fades:spill=0.1")) == 2
    said = capsys.readouterr()
    assert "there is no method to tune" in said.err and "not tuned, parameters given: fades:spill=0.1" in said.out


# ---------------------------------------------------------------- what is chosen


def test_the_planted_best_is_found(tuned):
    assert tomllib.loads((tuned / "out" / "tuned.toml").read_text())["toy"]["fades"] == {"shift": 100.0, "spill": 0.0}
    (row,) = pd.read_csv(tuned / "out" / "trace.csv").query("method == 'fades' and chosen").itertuples()
    assert row.forget == 0 and row.shortfall == 0


def test_a_shortfall_counts_what_is_not_kept(tuned):
    """Of the model whose outputs are all biases, which names one class for everything; the floor is by hand."""
    trace = pd.read_csv(tuned / "out" / "trace.csv").query("method == 'fades'")
    (row,) = (r for r in trace.itertuples() if json.loads(r.params) == {"shift": 100.0, "spill": 1.0})
    floors = []
    for base_seed in (0, 1):
        request = toy_trial("tune", base_seed).request
        floors.append(request.validate(request.model).retain - 0.02)
    assert row.forget == 0 and row.retain < 0.2
    assert row.shortfall == pytest.approx(sum(floors) / 2 - row.retain, abs=1e-9)


def test_a_failed_cell_counts_as_the_worst(tuned):
    trace = pd.read_csv(tuned / "out" / "trace.csv").query("method == 'stumbles'")
    failed = trace[trace["n_ok"] == 0]
    assert len(failed) == 3 and set(failed["shortfall"]) == {2.0} and set(failed["retain"]) == {0.0}
    assert list(trace.loc[trace["chosen"], "params"]) == ['{"how": "not"}']
    noop = trace[trace["chosen"]].iloc[0]  # forget accuracy near 1 on 16 images, goal 1/8
    assert 0.6 < noop["shortfall"] < 0.9 - 0.125 + 2 * sqrt(0.1 / 16)


def tried(shortfall, retain=0.5, **params):
    return Tried(params, 4, 4, 0.1, retain, shortfall, 1.0)


def test_equal_shortfalls_are_parted_by_what_is_kept_and_then_by_order():
    assert Trace("t", "m", [tried(0.2, 0.9), tried(0.1, 0.5), tried(0.1 + 1e-13, 0.7), tried(0.1, 0.7)]).chosen == 2
    assert Trace("t", "m", [tried(0.0, 0.5), tried(0.0, 0.5)]).chosen == 0


def test_best_of_k_agrees_with_all_orders_in_which_five_can_be_tried():
    trace = Trace("t", "m", [tried(0.3, 0.9), tried(0.0, 0.4), tried(2.0, 0.0), tried(0.0, 0.6), tried(0.1, 0.8)])
    orders = list(permutations(range(5)))
    for k in range(1, 6):
        best = [min((trace.tried[i] for i in order[:k]), key=lambda t: (t.shortfall, -t.retain)) for order in orders]
        for name in ("shortfall", "retain"):
            wanted = sum(getattr(one, name) for one in best) / len(orders)
            assert trace.best_of_k(name)[k - 1] == pytest.approx(wanted, abs=1e-12)


def test_a_killed_tuning_goes_on_to_the_same_parameters(tuned):
    command = [sys.executable, "-m", "slugbench.bench", *tune(tuned, "--base-seeds", "0,1", "--memory", "2", out="killed")]
    with subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, text=True) as process:
        next(line for line in process.stdout if line.startswith("[5/"))
        os.killpg(process.pid, signal.SIGKILL)
    assert not (tuned / "killed" / "tuned.toml").exists()
    finished = len(list((tuned / "killed" / "cells").glob("[!.]*")))
    again = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    assert again.returncode == 3 and f" {finished} done before" in again.stdout and finished >= 5
    assert (tuned / "killed" / "tuned.toml").read_text() == (tuned / "out" / "tuned.toml").read_text()


def test_a_folder_of_tuning_is_not_mixed_with_a_run(tuned, capsys):
    assert main(["run", str(tuned / "toy.toml"), "--out", str(tuned / "out"), *PLUGINS]) == 2
    assert "belongs to suite 'toy-tuning', not 'toy'" in capsys.readouterr().err


# ---------------------------------------------------------------- the file


def test_what_is_written_is_read_back(tmp_path):
    values = {"a": 3, "b": None}
    found = [Trace("toy:kind=clip", "wide", [tried(0.5), tried(0.1, **values)]), Trace("toy", "fades", [tried(0.0)])]
    (tmp_path / "tuned.toml").write_text(tuned_toml(found, HEADER))
    clip, plain = read_tuned(str(tmp_path / "tuned.toml"))
    assert (clip.task, clip.task_params["kind"], clip.method, clip.params) == ("toy", "clip", "wide", values)
    assert clip.how["chosen"] == 1 and clip.how["best_of_k"]["shortfall"] == [pytest.approx(0.3), 0.1]
    assert plain.params == plain.default == {"shift": 0.0, "spill": 0.5}


@pytest.mark.parametrize(
    "value", [True, -3, 1e-05, 1e22, 0.1, 'quo"te\\', "née 🦠", "\x7f\x01\n", [1, 2.5], {"a b": [True]}]
)
def test_plain_values_survive_toml(value):
    text = tuned_toml([], {"value": value})
    assert tomllib.loads(text)[HOW]["value"] == value


WHY = {
    "unknown task": ('[toyy.fades]\nspill=0.1', "there is no task 'toyy' (did you mean 'toy'?)"),
    "unknown method": ('[toy.fade]\nspill=0.1', "there is no method 'fade' (did you mean 'fades'?)"),
    "unknown parameter": ('[toy.fades]\nspil=0.1', "has no parameter 'spil' (did you mean 'spill'?)"),
    "refused value": ('[toy.fades]\nspill="much"', "cannot take spill=much"),
    "control": ('[toy.original]', "method 'original' is a control"),
    "no table of methods": ('toy = 3', "'toy' holds no tables [toy.METHOD] of parameters"),
    "no table of parameters": ('[toy]\nfades = 3', "'toy' holds no tables [toy.METHOD] of parameters"),
    "no TOML": ('[toy', "is not valid TOML"),
    "bad origin": (f'[{HOW}]\nsuite = 3', f"{HOW}.suite does not do"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "said"), WHY.values(), ids=WHY)
def test_a_bad_file_of_parameters_is_one_sentence(tmp_path, capsys, text, said):
    (tmp_path / "toy.toml").write_text(SUITE)
    (tmp_path / "bad.toml").write_text(text)
    assert main(["plan", str(tmp_path / "toy.toml"), "--params", str(tmp_path / "bad.toml"), *PLUGINS]) == 2
    error = capsys.readouterr().err
    assert f"params file {tmp_path / 'bad.toml'}" in error and said in error and error.count("\n") == 1


def test_parameters_that_are_not_there_are_one_sentence(tmp_path, capsys):
    (tmp_path / "toy.toml").write_text(SUITE)
    assert main(["plan", str(tmp_path / "toy.toml"), "--params", str(tmp_path / "no.toml"), *PLUGINS]) == 2
    assert "cannot be read" in capsys.readouterr().err
    assert main(["plan", str(tmp_path / "toy.toml"), "--params", "nosuite", *PLUGINS]) == 2
    assert "no tuned parameters ship for a suite 'nosuite'" in capsys.readouterr().err


def test_files_of_tuned_parameters_are_no_suites():
    assert not [name for name in suite_names() if name.endswith(".tuned")]


# ---------------------------------------------------------------- runs with tuned parameters


def by_hand(folder):
    """Other parameters for each of two tasks; of one of them the defaults."""
    (folder / "hand.toml").write_text(
        '[toy.fades]\nshift = 100.0\nspill = 0.0\n["toy:kind=clip".fades]\nshift = 50.0\n[toy.wide]\na = 0\n'
    )
    return str(folder / "hand.toml")


def test_each_task_is_run_with_the_defaults_and_with_its_own_parameters(tmp_path, capsys):
    (tmp_path / "toy.toml").write_text(SUITE)
    command = [
        "run",
        str(tmp_path / "toy.toml"),
        "--methods",
        "fades,noop",
        "--tasks",
        "toy,toy:kind=clip",
        "--requests",
        "1",
    ]
    command += ["--metrics", "accuracy", "--params", by_hand(tmp_path), "--out", str(tmp_path / "out"), *PLUGINS]
    assert main(command) == 0
    cells = pd.read_parquet(tmp_path / "out" / "table.parquet").drop_duplicates("cell")
    found = sorted(
        (json.loads(c.task_params)["kind"], json.loads(c.method_params).get("shift"))
        for c in cells.itertuples()
        if c.method == "fades"
    )
    assert found == [("classifier", 0.0), ("classifier", 100.0), ("clip", 0.0), ("clip", 50.0)]
    assert len(cells) == 4 + 2
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert {choice["method"] for choice in run["tuned"].values()} == {"fades"}  # `wide` did not run
    assert "fades (tuned)" in capsys.readouterr().out
    assert main(command) == 0 and "nothing to do" in capsys.readouterr().out


def test_parameters_given_win_over_tuned_ones_and_chosen_defaults_run_once(tmp_path):
    suite = Suite(name="toy", tasks=["toy"], methods=["fades", "fades:spill=0.1", "wide", "noop"], metrics=[], requests=1)
    cells = expand(suite, device="cpu", variants=variants(read_tuned(by_hand(tmp_path))))
    found = [(cell.method, cell.method_params.get("shift"), cell.method_params.get("spill")) for cell in cells]
    assert found == [
        ("fades", 0.0, 0.5), ("fades", 100.0, 0.0), ("fades", 0.0, 0.1), ("wide", None, None), ("noop", None, None),
    ]  # fmt: skip


def test_what_tuning_wrote_is_run(tuned, tmp_path, capsys):
    shutil.copy(tuned / "out" / "tuned.toml", tmp_path / "tuned.toml")
    command = ["run", str(tuned / "toy.toml"), "--methods", "fades", "--requests", "1", "--metrics", "accuracy", *PLUGINS]
    assert main([*command, "--out", str(tmp_path / "run")]) == 0
    assert "(tuned)" not in capsys.readouterr().out
    assert main([*command, "--out", str(tmp_path / "run"), "--params", str(tmp_path / "tuned.toml")]) == 0
    said = capsys.readouterr().out
    assert "2 cells, 1 done before, 1 to run" in said and "fades (tuned)" in said
    (choice,) = json.loads((tmp_path / "run" / "run.json").read_text())["tuned"].values()
    assert choice["how"]["budget"] == 20 and len(choice["how"]["best_of_k"]["retain"]) == 6
    page = (tmp_path / "run" / "report" / "index.html").read_text()
    assert '<section id="tuning">' in page


# ---------------------------------------------------------------- what ships


@pytest.mark.parametrize("name", ["quick", "standard"])
def test_every_method_of_a_shipped_suite_that_can_be_tuned_is(name):
    """But on `canvas`, which is measured with defaults."""
    suite, tasks = load_suite(name), load_suite("standard").tasks
    wanted = {(spec, method) for spec in tasks for method in suite.methods if untunable(Spec(method, {})) is None}
    assert wanted <= {(choice.task, choice.method) for choice in read_tuned(name)}


def test_what_ships_is_what_the_shipped_trace_chose():
    """`quick` has the parameters of `standard`, whose methods and tasks hold its own."""
    suites = ROOT / "bench" / "suites"
    chosen = pd.read_csv(suites / "standard.trace.csv").query("chosen")
    traced = {(row.task, row.method): json.loads(row.params) for row in chosen.itertuples()}
    for name in ("quick", "standard"):
        found = tomllib.loads((suites / f"{name}.tuned.toml").read_text())
        assert {(task, m): p for task in found.keys() - {HOW} for m, p in found[task].items()} == traced
    assert chosen["number"].between(0, 19).all() and set(found[HOW]["requests"]) == {"identities", "digits"}


# ---------------------------------------------------------------- what is skipped


def test_requests_that_all_configurations_skip_count_for_none_and_what_one_skips_counts_against_it():
    """Of three requests the first is skipped by both configurations, the second by the defaults alone."""
    suite = Suite(name="s", tasks=["toy"], methods=["fades"], metrics=[], requests={"toy": ["dev", "tune", "single"]})
    further = {key: {"fades": [{"shift": 100.0}]} for key in task_keys(suite)}
    cells = expand(suite, device="cpu", variants=further)
    scores = {"forget": 0.0, "retain": 0.9, "shortfall": 0.0}
    ok = {"status": "ok", "validation": scores, "wall_seconds": 1.0}
    skipped = {"status": "skipped", "validation": None, "wall_seconds": 0.0, "error": "no."}

    def record_of(cell):
        tuned = cell.method_params["shift"] == 100.0
        return ok if cell.request == "single" or (cell.request == "tune" and tuned) else skipped

    (trace,), left_out = traces(["toy"], {"fades": [{}, {"shift": 100.0}]}, cells, record_of)
    defaults, tuned = trace.tried
    assert not left_out and (defaults.n_cells, defaults.n_ok) == (2, 1) and (tuned.n_cells, tuned.n_ok) == (2, 2)
    assert defaults.shortfall == 1.0 and tuned.shortfall == 0.0 and trace.chosen == 1
