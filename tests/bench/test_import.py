"""`slugbench import`: what authors' code measured gives the table and the reports that a run gives, apart from the run's."""

import json
import shutil

import pandas as pd
import pytest

from slugbench.bench.cli import main
from slugbench.bench.frame import read_run
from slugbench.reports.tables import boards

from ..slug_files import LAYER, ORIGINAL, write_gradients, write_log, write_results


def take(folder, *arguments):
    """Take over what is in `results` into `out`."""
    places = [str(folder / "results"), "--out", str(folder / "out")]
    return main(["import", "slug-results", *places, "--format", "md", *arguments])


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("taken")
    write_results(folder / "results")
    assert take(folder) == 0
    return folder


@pytest.fixture
def taken(once, tmp_path):
    """A folder of results, taken over, of the test's own."""
    return shutil.copytree(once, tmp_path / "taken")


def test_results_become_rows_that_say_where_they_are_from(taken):
    frame, run = pd.read_parquet(taken / "out" / "table.parquet"), json.loads((taken / "out" / "run.json").read_text())
    assert set(frame.task) == {"celeba"} and set(frame.status) == {"ok"} and set(frame.pool) == {"test"}
    assert set(frame.method_params) == {'{"imported": "slug-results"}'}
    (mark,) = set(frame.provenance)
    assert run["provenance"][mark]["imported"]["from"] == "slug-results" and "hardware" not in run["provenance"][mark]
    value = frame.query("request == 'Elon_Musk' and method == 'slug' and metric == 'util@1'").iloc[0]
    assert value.value == 0.5996 and "evaluation 2 of 3" in value.note and pd.isna(value.ci_low)


def test_the_other_tables_lie_beside_it(taken):
    assert len(pd.read_csv(taken / "out" / "searches.csv")) == 9 and not (taken / "out" / "layers.csv").exists()
    assert take(taken, "--weights", str(taken / "results" / "weights.pt")) == 0
    assert {"layer", "tower", "importance", "alignment"} < set(pd.read_csv(taken / "out" / "layers.csv"))


def test_taking_over_again_does_nothing_and_a_changed_log_replaces_its_result(taken, capsys):
    before = (taken / "out" / "table.parquet").read_bytes()
    assert take(taken) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert (taken / "out" / "table.parquet").read_bytes() == before
    write_log(taken / "results", "Taylor_Swift", LAYER, [(-0.5, (0.04, *ORIGINAL[1:]))])
    assert take(taken) == 0
    frame = pd.read_parquet(taken / "out" / "table.parquet")
    assert frame.query("request == 'Taylor_Swift' and method == 'slug' and metric == 'fa@1'").value.tolist() == [0.04]


def test_imported_lines_never_merge_with_measured_ones(taken):
    frame, run = read_run(taken / "out")
    ours = frame.assign(method_params='{"batch": 16}', cell="our-" + frame["cell"], value=0.5)
    (board,) = boards(pd.concat([frame, ours], ignore_index=True), [run])
    assert {line.method for line in board.lines} == {"slug", "original", "slug (imported)", "original (imported)"}
    assert {line.method for line in board.controls} == {"original", "original (imported)"}
    by = {line.method: line.entries["util@1"].estimate.value for line in board.lines}
    assert by["slug"] == 0.5 and by["slug (imported)"] == pytest.approx(0.5996)


def test_reports_show_them_as_imported(taken):
    assert "| slug (imported) |" in (taken / "out" / "report" / "leaderboard.md").read_text()
    assert take(taken, "--format", "text") == 0
    assert "slug (imported)" in (taken / "out" / "report" / "leaderboard.txt").read_text()


def test_gradients_alone_give_the_layers_table(tmp_path, capsys):
    write_gradients(tmp_path / "results", "Elon_Musk")
    assert take(tmp_path, "--weights", str(tmp_path / "results" / "weights.pt")) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out' / 'layers.csv'}\n"


BAD = {
    "unknown importer": (["slug-result", "results"], "there is no importer 'slug_result' (did you mean 'slug_results'?)"),
    "no folder": (["slug-results", "nowhere"], "there is no folder nowhere"),
    "other model": (
        ["slug-results", "results", "--task", "celeba:model=ViT-L-14"],
        "these results are of model=ViT-B-32, and celeba:model=ViT-L-14 has model=ViT-L-14",
    ),
    "other task": (
        ["slug-results", "results", "--task", "identities"],
        "are of model=ViT-B-32, and identities has model=None",
    ),
}


@pytest.mark.parametrize(("arguments", "sentence"), BAD.values(), ids=BAD)
def test_a_bad_argument_is_one_sentence(tmp_path, monkeypatch, capsys, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    write_results(tmp_path / "results")
    assert main(["import", *arguments, "--out", "out"]) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.startswith("slugbench: ") and error.count("\n") == 1
    assert not (tmp_path / "out" / "table.parquet").exists()


def test_somebody_whom_the_task_does_not_know_is_named(tmp_path, capsys):
    write_log(tmp_path / "results", "Elon_Mask", LAYER, [(-0.5, ORIGINAL)])
    assert take(tmp_path) == 2
    assert "has no request 'Elon_Mask' (did you mean 'Elon_Musk'?)" in capsys.readouterr().err
