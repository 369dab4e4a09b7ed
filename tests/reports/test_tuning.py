"""Tuned variants stand beside the defaults, told apart by what `run.json` knows, and what tuning did is shown."""

import json

import pytest

from slugbench.reports import html, markdown, tidy
from slugbench.reports.figures import Figures
from slugbench.reports.looks import looks
from slugbench.reports.plots import best_of_k
from slugbench.reports.tables import boards, troubled
from slugbench.reports.tuning import by_task, choices, sentence, table

DEFAULT, TUNED = {"keep": 0.5, "alpha": 9.0}, {"keep": 0.3, "alpha": 9.0}
HOW = {
    **{"suite": "standard", "budget": 20, "seed": 0, "pool": "tune", "requests": {"identities": ["t0", "t1"]}},
    **{"base_seeds": [0, 1, 2], "method_seeds": [0], "device": "cpu", "threads": 1, "version": "0", "tried": 6, "chosen": 4},
    "default_scores": {"forget": 0.5, "retain": 0.8, "shortfall": 0.4},
    "chosen_scores": {"forget": 0.01, "retain": 0.82, "shortfall": 0.0},
    "best_of_k": {"shortfall": [0.3, 0.2, 0.1, 0.05, 0.01, 0.0], "retain": [0.6, 0.7, 0.75, 0.8, 0.81, 0.82]},
}


def chosen(method="salun", params=TUNED, default=DEFAULT, task="identities", how=HOW):
    return {"task": task, "task_params": {}, "method": method, "params": params, "default": default, "how": how}


def cell(made, method, params, fa=0.1, request="q0", **changes):
    numbers = [
        {"metric": m, "value": v, "better": b, "oracle_mean": o}
        for m, v, b, o in (("fa@1", fa, "oracle", 0.02), ("ra@1", 0.8, "higher", 0.85))
    ]
    text = json.dumps(params, sort_keys=True)
    who = {"method_params": text, "cell": f"{request}-{method}-{text}", "metrics": numbers}
    return made.cells("identities", request, method, **who | changes)


@pytest.fixture
def both(made):
    """One method with its defaults and tuned, another of which tuning kept the defaults."""
    rows = cell(made, "salun", DEFAULT, fa=0.5) + cell(made, "salun", TUNED) + cell(made, "ga", {"steps": 3}, fa=0.3)
    kept = chosen("ga", {"steps": 3}, {"steps": 3})
    return made.table(rows), [{"tuned": {"a": chosen(), "b": kept}}]


def test_the_tuned_variant_stands_beside_the_default(both):
    (board,) = boards(*both)
    assert [line.method for line in board.ranked] == ["salun (tuned)", "ga", "salun"]
    assert "Tuning kept the defaults of ga, which stands once." in board.order


def test_without_a_word_of_tuning_variants_are_told_apart_by_their_parameters(both):
    (board,) = boards(both[0], [{}])
    assert {line.method for line in board.ranked} == {"salun(keep=0.3)", "salun(keep=0.5)", "ga"}
    assert "tuned" not in board.order


def test_two_tunings_of_one_method_are_not_averaged(both, made):
    other = TUNED | {"keep": 0.1}
    _, (run,) = both
    rows = made.table(cell(made, "salun", DEFAULT) + cell(made, "salun", TUNED) + cell(made, "salun", other))
    (board,) = boards(rows, [run, {"tuned": {"a": chosen(params=other)}}])
    assert {x.method for x in board.ranked} == {"salun", "salun (tuned, keep=0.1)", "salun (tuned, keep=0.3)"}


def test_parameters_tuned_for_one_task_are_not_tuned_on_another(made):
    (board,) = boards(made.table(cell(made, "salun", TUNED)), [{"tuned": {"a": chosen(task="digits")}}])
    assert [line.method for line in board.lines] == ["salun"]


def test_a_tuned_cell_that_failed_is_named_so(made):
    rows = cell(made, "salun", DEFAULT) + cell(made, "salun", TUNED, status="failed", error="E: e", metrics=())
    assert list(troubled(made.table(rows), [{"tuned": {"a": chosen()}}])["method"]) == ["salun (tuned)"]


def test_the_tuned_variant_has_the_methods_color_and_a_ring(both):
    (board,) = boards(*both)
    look = looks(board.lines)
    assert look["salun (tuned)"].ringed and look["salun (tuned)"]._replace(ringed=False) == look["salun"]


def test_the_table_of_tuning_says_what_was_tried_and_gained(both):
    (known,) = by_task(both[1]).values()
    rows = table(known).set_index("method")
    assert rows.loc["salun", "chosen"] == "keep=0.3" and rows.loc["ga", "chosen"] == "the defaults"
    assert rows.loc["salun", "shortfall: default, chosen"] == "0.400, 0.000"
    assert list(rows.loc["salun", ["best of 1", "best of 5", "best of 10"]]) == ["0.300", "0.010", "—"]
    assert "at most 20 configurations" in sentence(known) and "t0, t1 with 3 base models" in sentence(known)


def test_curves_are_drawn_where_their_numbers_are(both):
    (known,) = by_task(both[1]).values()
    shortfall, retain = best_of_k(known).axes
    drawn = {line.get_label(): line.get_xydata().tolist() for line in shortfall.lines}
    assert drawn["salun"] == [[k, v] for k, v in enumerate(HOW["best_of_k"]["shortfall"], 1)]
    assert any(line.get_xydata().tolist() == [[0, 0.8]] for line in retain.lines)  # the defaults


def test_every_report_shows_tuning(both, tmp_path):
    assert "## identities: tuning" in markdown.document(*both)
    page = html.page(*both)
    assert '<section id="tuning">' in page and 'href="#tuning"' in page and page.count("<figure") == page.count("</figure>")
    names = {path.name for path in Figures(dpi=40)(*both, tmp_path)}
    assert {"identities-tuning.pdf", "identities-tuning.svg"} <= names
    leaderboard = tidy.Csv()(*both, tmp_path)[0].read_text()
    assert "tuned" in leaderboard.splitlines()[0]


def test_parameters_written_by_hand_are_labelled_and_have_no_curve(made):
    runs = [{"tuned": {"a": chosen(how=None)}}]
    assert by_task(runs) == {} and len(choices(runs)) == 1
    assert "#tuning" not in html.page(made.table(cell(made, "salun", TUNED)), runs)
