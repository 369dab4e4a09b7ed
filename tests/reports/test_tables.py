import json

import pytest

from slugbench.reports.tables import boards, distance_text, per_request, tidy, troubled, wide


def scored(made, method, request="q0", fa=0.1, ra=0.8, mia=0.6, t=2.0, **changes):
    """A cell measured on the three axes; the oracle has 0.02, 0.85 and 0.5."""
    numbers = [
        ("fa@1", fa, "oracle", 0.02),
        ("ra@1", ra, "higher", 0.85),
        ("mia_sample", mia, "oracle", 0.5),
        ("t_total", t, "lower", None),
    ]
    metrics = [
        {"metric": m, "value": v, "better": b, "oracle_mean": o, "oracle_sd": 0.01 if o else None} for m, v, b, o in numbers
    ]
    return made.cells(changes.pop("task", "identities"), request, method, metrics=metrics, **changes)


def line(board, method):
    return next(x for x in board.lines if x.method == method)


def test_numbers_agree_with_those_worked_by_hand(made):
    rows = scored(made, "slug", "q0", fa=0.10, ra=0.80) + scored(made, "slug", "q1", fa=0.02, ra=0.90, mia=0.4)
    (board,) = boards(made.table(rows), [])
    slug = line(board, "slug")
    assert slug.entries["fa@1"].estimate[:4] == (pytest.approx(0.06), 0.02, 0.10, "range")
    assert slug.entries["ra@1"].gap == pytest.approx((-0.05 + 0.05) / 2)
    # q0: (0.08 + 0.05 + 0.10) / 3; q1: (0 + 0 + 0.10) / 3, for keeping more than the oracle is no fault
    assert slug.distance.value == pytest.approx((0.23 / 3 + 0.10 / 3) / 2)
    assert distance_text(slug) == "0.055 (0.033..0.077)"
    assert board.axes == ("fa@1", "ra@1", "mia_sample")


def test_methods_are_ordered_by_distance_and_controls_never(made):
    rows = (
        scored(made, "ga", fa=0.02, ra=0.1) + scored(made, "slug", fa=0.05) + scored(made, "mask", fa=0.02, ra=0.9, mia=0.5)
    )
    rows += scored(made, "mine", fa=0.02, ra=0.85, mia=0.5)
    (board,) = boards(made.table(rows), [{"controls": ["original", "mine"]}])
    assert [x.method for x in board.ranked] == ["slug"]
    assert [(x.method, x.ranks) for x in board.unranked] == [("ga", None)]  # nearer to the oracle, but it kept nothing
    assert [x.method for x in board.controls] == ["mask", "mine"]
    assert all(x.ranks is None and not any(e.best for e in x.entries.values()) for x in board.controls)


@pytest.mark.parametrize("status", ["skipped", "failed", "timeout", "oom", "crashed", "invalid"])
def test_an_unfinished_cell_is_neither_zero_nor_left_out_of_the_denominator(made, status):
    rows = scored(made, "ga") + scored(made, "ga", "q1") + scored(made, "slug", fa=0.03)
    rows += made.cells("identities", "q1", "slug", status=status, error="X: y")
    (board,) = boards(made.table(rows), [])
    slug = line(board, "slug")
    assert slug.ok == "1/2†" and slug.distance is None and slug.ranks is None
    assert [x.method for x in board.lines] == ["ga", "slug"]
    assert slug.entries["fa@1"].estimate.value == 0.03 and slug.entries["fa@1"].marks == ("†",)
    assert slug.entries["fa@1"].estimate.spread == "none"
    assert f"slug: 1 of 2 cells finished (q1 {status})" in dict(board.notes)["†"]


def test_a_request_that_a_method_never_ran_counts_against_it(made):
    (board,) = boards(made.table(scored(made, "ga") + scored(made, "ga", "q1") + scored(made, "slug")), [])
    assert line(board, "slug").ok == "1/2†" and "q1 not run" in dict(board.notes)["†"]


def test_null_values_are_dashes_with_their_reason(made):
    null = [{"metric": "ks_d", "value": None, "better": "lower", "note": "no null distribution"}]
    rows = scored(made, "slug") + made.cells("identities", "q0", "slug", metrics=null)
    (board,) = boards(made.table(rows), [])
    assert wide(board).set_index("method").loc["slug", "ks_d ↓"] == "—^a"
    assert dict(board.notes) == {"a": "No null distribution."}


def test_a_null_on_some_requests_is_said_and_takes_the_place_in_the_order(made):
    rows = scored(made, "slug") + scored(made, "slug", "q1", mia=None) + scored(made, "ga") + scored(made, "ga", "q1")
    (board,) = boards(made.table(rows), [])
    slug = line(board, "slug")
    assert slug.entries["mia_sample"].marks == ("a",) and slug.distance is None
    assert "on 1 of 2 finished cells, left out of the mean" in dict(board.notes)["a"]


def test_reasons_that_differ_in_their_numbers_alone_are_one_footnote(made):
    notes = [f"the original's own AUC is {auc} (95 % 0.4 to 0.6)" for auc in (0.5, 0.51, 0.52)] + ["no oracles"]
    rows = [
        row
        for i, note in enumerate(notes)
        for row in made.cells("identities", f"q{i}", "slug", metrics=[{"metric": "mia_sample", "value": None, "note": note}])
    ]
    (board,) = boards(made.table(rows), [])
    assert line(board, "slug").entries["mia_sample"].marks == ("a", "b")
    assert dict(board.notes) == {"a": "No oracles.", "b": "The original's own AUC is 0.5 (95 % 0.4 to 0.6), and 2 the like."}


def test_methods_that_lack_the_same_cells_share_a_footnote(made):
    rows = [x for m in ("ga", "slug") for x in scored(made, m)] + scored(made, "ft") + scored(made, "ft", "q1")
    (board,) = boards(made.table(rows), [])
    assert dict(board.notes)["†"].startswith("ga, slug: 1 of 2 cells finished (q1 not run); ")


def test_part_of_a_board_has_its_own_footnotes_lettered_from_the_first(made):
    null = [{"metric": metric, "value": None, "note": f"no {metric}"} for metric in ("mia_sample", "ks_d")]
    (board,) = boards(made.table(made.cells("identities", "q0", "ga", metrics=null)), [])
    part = board.showing(["ks_d"])
    assert dict(board.notes) == {"a": "No mia_sample.", "b": "No ks_d."} and dict(part.notes) == {"a": "No ks_d."}
    assert line(part, "ga").entries["ks_d"].marks == ("a",) and [c.name for c in part.columns] == ["ks_d"]


def test_a_board_of_some_methods_has_their_lines_as_they_were(made):
    (board,) = boards(made.table([x for m in ("ga", "slug", "ft", "oracle") for x in scored(made, m)]), [])
    few = board.only(["oracle", "slug"])
    assert few.lines == (line(board, "slug"), line(board, "oracle")) and few.columns == board.columns


def test_an_axis_without_values_on_a_request_is_not_ordered_on(made):
    rows = [x for m in ("slug", "ga") for q in ("q0", "q1") for x in scored(made, m, q, mia=None if q == "q1" else 0.6)]
    (board,) = boards(made.table(rows), [])
    assert board.axes == ("fa@1", "ra@1") and len(board.ranked) == 2


def test_unknown_metrics_of_unknown_tasks_are_shown_and_can_carry_the_order(made):
    metrics = [
        {"metric": "vanish", "value": 0.3, "better": "oracle", "oracle_mean": 0.1},
        {"metric": "charm", "value": 0.7, "better": "higher", "oracle_mean": 0.9},
        {"metric": "whim", "value": 5.0, "better": "lower"},
    ]
    (board,) = boards(made.table(made.cells("canvas", "q", "slug", metrics=metrics)), [])
    assert board.axes == ("vanish", "charm")
    assert line(board, "slug").distance.value == pytest.approx(0.2)
    assert {c.name for c in board.quality()} == {"vanish", "charm", "whim"}


def test_without_oracles_nothing_is_ordered(made):
    rows = made.cells("real", "q", "slug", metrics=[{"metric": "fa@1", "value": 0.3, "better": "oracle"}])
    (board,) = boards(made.table(rows), [])
    assert board.axes == () and not board.ranked and "listed by name" in board.order


def test_joint_and_single_requests_pools_devices_and_variants_stand_apart(made):
    rows = scored(made, "slug", "single") + scored(made, "slug", "joint", targets=json.dumps(["a", "b"]))
    rows += scored(made, "slug", "tuning", pool="tune") + scored(made, "slug", "fast", device="cuda")
    settings = [b.setting for b in boards(made.table(rows), [])]
    assert (
        len(settings) == 4 and settings[0] == "joint requests, pool test, on cpu" and any("pool tune" in s for s in settings)
    )


def test_random_samples_stand_apart_after_the_classes_and_failed_cells_do_with_them(made):
    rows = scored(made, "slug", "class") + scored(made, "slug", "random", targets="[]")
    rows += made.cells("identities", "random", "svd", status="skipped", error="svd forgets classes.", targets="[]")
    of_class, of_samples = boards(made.table(rows), [])
    assert [of_class.title, of_samples.title] == ["identities: single requests", "identities: random samples"]
    assert [line.ok for line in of_class.lines] == ["1/1"]
    assert {line.method: line.ok for line in of_samples.lines} == {"slug": "1/1", "svd": "0/1†"}
    assert tidy(of_samples)["samples"].all() and "targets" not in of_samples.extent


def test_a_control_that_would_lead_is_pointed_out(made):
    rows = scored(made, "slug") + scored(made, "mask", fa=0.02, ra=0.9, mia=0.5) + scored(made, "noise", ra=0.1)
    (board,) = boards(made.table(rows), [])
    assert "The control mask would come first" in board.order and board.ranked[0].method == "slug"


def test_parameters_that_differ_only_between_tasks_stay_out_of_the_name(made):
    rows = scored(made, "slug", method_params='{"steps": 5}')
    rows += scored(made, "slug", method_params='{"steps": 9}', task="digits", cell="other")
    assert [b.ranked[0].method for b in boards(made.table(rows), [])] == ["slug", "slug"]


def test_variants_of_a_method_are_named_by_what_differs(made):
    params = [json.dumps({"keep": keep, "steps": 5}) for keep in (0.3, 0.5)]
    rows = scored(made, "salun", cell="c0", method_params=params[0]) + scored(
        made, "salun", cell="c1", method_params=params[1], fa=0.5
    )
    (board,) = boards(made.table(rows), [])
    assert [x.method for x in board.ranked] == ["salun(keep=0.3)", "salun(keep=0.5)"]


def test_the_best_is_nearest_to_the_oracle_and_ties_are_all_best(made):
    rows = scored(made, "a", fa=0.0, ra=0.87) + scored(made, "b", fa=0.1, ra=0.87) + scored(made, "c", fa=0.035, ra=0.85)
    (board,) = boards(made.table(rows), [])
    assert [m for m in "abc" if line(board, m).entries["fa@1"].best] == ["c"]
    assert [m for m in "abc" if line(board, m).entries["ra@1"].best] == ["a", "b"]


def test_times_measured_beside_other_cells_are_marked(made):
    (board,) = boards(made.table(scored(made, "slug", concurrent=True)), [])
    assert "beside it" in dict(board.notes)[line(board, "slug").entries["t_total"].marks[0]]


def test_the_front_holds_who_is_not_beaten_everywhere(made):
    rows = scored(made, "good") + scored(made, "slow", t=9.0) + scored(made, "quick", fa=0.5, t=0.1)
    assert set(boards(made.table(rows), [])[0].front) == {"good", "quick"}


def test_twelve_requests_have_intervals(made):
    requests = {"identities": {f"q{i:02d}": ["a"] for i in range(12)}}
    (board,) = boards(made.plausible(base_seeds=(0, 1), requests=requests, trouble=False), [])
    slug = line(board, "slug")
    assert slug.entries["ra@1"].estimate.spread == "interval" and "12 requests and 2 base models" in board.few
    assert slug.entries["ra@1"].estimate.low < 0.79 < slug.entries["ra@1"].estimate.high  # the maker's mean
    assert slug.entries["ks_d"].estimate.value is None


def test_tidy_rows_carry_every_number_and_its_denominator(frame, runs):
    rows = [tidy(b) for b in boards(frame, runs)]
    joint = rows[1][(rows[1]["method"] == "svd") & (rows[1]["metric"] == "fa@1")].iloc[0]
    assert (joint["n_ok"], joint["n_cells"], joint["n_values"], joint["spread"]) == (1, 2, 1, "none")
    assert not joint["control"] and "timeout" in joint["note"]


def test_every_cell_is_listed_with_its_request(frame, runs):
    listed = sum(len(per_request(b)) for b in boards(frame, runs))
    assert listed == frame["cell"].nunique() == 54
    assert list(troubled(frame)["status"]) == ["skipped", "skipped", "failed", "timeout"]
