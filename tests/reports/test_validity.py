import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from slugbench.reports import order
from slugbench.reports.tables import boards, control_names, labelled
from slugbench.reports.validity import RULES, auc, audits, classified, surprises, validity

ORACLE = {"fa@1": 0.02, "ra@1": 0.85, "ra_near@1": 0.85, "ra_far@1": 0.85, "near_gap": 0.0, "util@1": 0.9, "ks_d": 0.2,
          "relearn@5": 0.3, "quant_w4": 0.02, "fa_w4": 0.02}  # fmt: skip
BETTER = {"ra@1": "higher", "ra_near@1": "higher", "ra_far@1": "higher", "util@1": "higher", "ks_d": "lower"}
ORIGINAL = {"fa@1": 0.9, "ra@1": 0.87, "ra_near@1": 0.87, "ra_far@1": 0.87, "near_gap": 0.0, "util@1": 0.9, "ks_d": 0.9,
            "relearn@5": 0.9, "bytes_delta": 0.0}  # fmt: skip


def cell(made, method, request="q", half=0.02, sd=0.01, base_seed=0, **values):
    """One cell; what is not given is as the oracle has it, `None` is left out."""
    values = {k.replace("_at_", "@"): v for k, v in values.items()}
    wanted = {
        k: v
        for k, v in (ORACLE | {"bytes_delta": 1e4} | values).items()
        if k in values or k in ("fa@1", "ra@1", "bytes_delta")
    }
    metrics = [
        {"metric": m, "value": v, "better": BETTER.get(m, "oracle"), "oracle_mean": ORACLE.get(m), "oracle_sd": sd,
         "chance": 0.04, "ci_low": v - half, "ci_high": v + half}
        for m, v in wanted.items() if v is not None
    ]  # fmt: skip
    return made.cells("identities", request, method, base_seed, metrics=metrics)


def failure(made, *rows, of="slug"):
    found = classified(made.table([*cell(made, "original", **{k.replace("@", "_at_"): v for k, v in ORIGINAL.items()}),
                                   *(row for part in rows for row in part)]))  # fmt: skip
    return found.loc[found["method"] == of, "failure"].iloc[0]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, None),
        ({"ra_at_1": 0.74}, "destroyed"),  # 11 points lost
        ({"ra_at_1": 0.76}, None),  # 9 points: under the gate, but no class of its own
        ({"util_at_1": 0.46}, "destroyed"),  # (0.46 - 0.04) / (0.90 - 0.04) = 0.49 of what lies above chance
        ({"util_at_1": 0.50}, None),
        ({"fa_at_1": 0.70}, "no effect"),  # (0.9 - 0.7) / (0.9 - 0.02) = 0.23 of the way
        ({"fa_at_1": 0.66}, None),
        ({"fa_at_1": 0.66, "half": 0.23}, "no effect"),  # up to 0.89, and the original from 0.88: the intervals meet
        ({"bytes_delta": 0.0}, "masked"),
        ({"bytes_delta": 0.0, "ks_d": 1.0}, "masked"),
        ({"bytes_delta": 0.0, "ks_d": 0.21}, None),  # inside the oracles' own distances
        ({"relearn_at_5": 0.88}, "masked"),  # the original has 0.90
        ({"ra_near_at_1": 0.70, "ra_far_at_1": 0.85}, "over-generalised"),
        ({"near_gap": 0.15, "ra_far_at_1": 0.85}, "over-generalised"),
        ({"ra_near_at_1": 0.70, "ra_far_at_1": 0.85, "sd": 0.08}, None),  # 15 points are less than two deviations
        ({"relearn_at_5": 0.7}, "recoverable"),  # 40 points above the oracles after the same attack
        ({"relearn_at_5": 0.5}, None),
        ({"quant_w4": 0.2}, "recoverable"),
        ({"fa_w4": 0.2}, "recoverable"),
        ({"quant_w4": 0.2, "fa_at_1": 0.3}, None),  # it was not forgotten, so nothing has come back
    ],
)
def test_each_failure_class_begins_where_its_rule_says(made, values, expected):
    assert failure(made, cell(made, "slug", **values)) == expected


def test_rules_whose_metrics_are_missing_do_not_apply(made):
    bare = made.cells("identities", "q", "slug", metrics=[{"metric": "whim", "value": 1.0}])
    assert classified(made.table(bare))["failure"].isna().all()
    without_original = cell(made, "slug", bytes_delta=0.0)
    assert classified(made.table(without_original))["failure"].isna().all()


def test_a_class_that_the_run_recorded_stands_and_unfinished_cells_have_none(made):
    given = cell(made, "slug", ra_at_1=0.1)
    given = made.table(given).assign(failure="recoverable")
    assert set(classified(given)["failure"]) == {"recoverable"}
    failed = made.cells("identities", "q", "ga", status="oom", error="X: y")
    assert failure(made, failed, of="ga") is None


def test_controls_come_out_as_they_have_to_or_are_pointed_out(made):
    rows = cell(made, "original", **{k.replace("@", "_at_"): v for k, v in ORIGINAL.items()})
    rows += cell(made, "oracle") + cell(made, "mask", bytes_delta=0.0) + cell(made, "noise", ra_at_1=0.1)
    assert surprises(classified(made.table(rows))) == []
    (found,) = surprises(classified(made.table(rows + cell(made, "noise", "q1") + cell(made, "noise", "q2"))))
    assert found == "The control noise should come out as destroyed and came out as none."


def test_the_gate_is_five_points_by_the_lower_end_of_the_interval(made):
    of = lambda **values: validity(made.table(cell(made, "slug", **values)), 1)  # noqa: E731  # three calls read better so
    assert of(ra_at_1=0.83).valid  # 0.81 >= 0.85 - 0.05
    assert of(ra_at_1=0.81) == (None, "ra@1 may lie 0.060 under the oracles, 0.05 are allowed; too few requests to say")
    assert of(ra_at_1=0.70) == (False, "ra@1 lies 0.150 under the oracles")
    assert of(ra_at_1=None, fa_at_1=0.1) == (None, "no oracle says what should be kept")


def test_a_method_with_unfinished_cells_is_not_valid(made):
    assert validity(made.table(cell(made, "slug")), 3) == (False, "2 of 3 cells did not finish")


def test_with_twelve_requests_the_gate_reads_the_interval_over_requests(made):
    rows = [x for i in range(12) for x in cell(made, "slug", f"q{i}", ra_at_1=0.83, half=0.2)]
    assert validity(made.table(rows), 12).valid  # all alike: the interval has no width, whatever the cells' own


def test_base_models_that_know_unequally_much_are_no_methods_doing(made):
    """Two of them 0.1 apart, and a method that loses 0.01 on each: the interval of the one difference is narrow, of the
    values wide. The mean gap to the oracles, 0.85, is 0.03 either way."""
    known = {0: 0.84, 1: 0.94}
    places = [(f"q{i}", base) for i in range(12) for base in known]
    own = made.table([x for q, b in places for x in cell(made, "slug", q, base_seed=b, ra_at_1=known[b] - 0.01)])
    before = made.table([x for q, b in places for x in cell(made, "original", q, base_seed=b, ra_at_1=known[b])])
    assert validity(own, 24).valid is False
    assert validity(own, 24, before).valid
    assert validity(own, 24, before[before["base_seed"] == 0]).valid is False  # not known of all
    lost = own.assign(value=own["value"] - 0.1)
    assert validity(lost, 24, before) == (False, "ra@1 lies 0.070 under the oracles")


def test_the_auc_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    good, bad = rng.integers(0, 9, 12) / 9, rng.integers(3, 12, 7) / 9  # with ties
    expected = roc_auc_score([0] * 12 + [1] * 7, np.concatenate([good, bad]))
    assert auc(good, bad) == pytest.approx(expected, abs=1e-12)


def audited(made, n=3, **changes):
    rows = []
    for i in range(n):
        facts = {"oracle": {}, "original": {"fa_at_1": 0.9, "ra_at_1": 0.87}, "mask": {"fa_at_1": 0.0, "ra_at_1": 0.87},
                 "noise": {"fa_at_1": 0.1, "ra_at_1": 0.1}, "slug": {"fa_at_1": 0.05}}  # fmt: skip
        for method, values in facts.items():
            rows += cell(made, method, f"q{i}", **values | changes.get(method, {}))
    return made.table(rows)


def test_metrics_are_judged_by_what_they_are_there_to_find(made):
    found = {a.metric: a for a in audits(audited(made))}
    assert found["fa@1"].auc == 1.0 and found["ra@1"].auc == 1.0
    assert found["ra@1"].against == {"original": 0.0, "noise": 1.0, "mask": 0.0}  # blind to who did not forget
    assert "bytes_delta" not in found


def test_too_few_cells_are_not_audited(made):
    assert all(a.auc is None and not a.grey for a in audits(audited(made, n=2)))


def test_a_metric_that_cannot_tell_is_shown_and_not_ranked_on(made):
    table = audited(made, original={"fa_at_1": 0.02})
    (board,) = boards(table, [])
    assert board.axes == ("ra@1",) and board.column("fa@1")
    assert "fa@1 (AUC 0.500)" in order.audit_sentence(board)
    assert boards(audited(made), [])[0].axes == ("fa@1", "ra@1")


def test_a_status_names_classes_and_the_gate(made):
    rows = cell(made, "slug", "q0", ra_at_1=0.7) + cell(made, "slug", "q1") + cell(made, "ft", "q0") + cell(made, "ft", "q1")
    (board,) = boards(made.table(rows), [])
    assert {line.method: line.status for line in board.lines} == {"slug": "destroyed 1/2, not valid", "ft": "valid"}
    assert order.validity_sentence(board) == "Valid: ft. Not valid: slug (destroyed 1/2)."


def test_every_rule_names_a_class_of_the_table_a_threshold_and_a_source():
    assert [rule.failure for rule in RULES] == ["destroyed", "no effect", "masked", "over-generalised", "recoverable"]
    assert all(rule.says.endswith(".") and rule.source for rule in RULES)


def test_the_controls_of_the_made_up_run_come_out_right(frame, runs):
    rows = labelled(frame.assign(failure=None), control_names(runs))
    found = classified(rows[rows["joint"] & (rows["task"] == "identities")]).drop_duplicates("cell")
    classes = {method: set(part["failure"].dropna()) for method, part in found.groupby("method")}
    assert [classes[m] for m in ("noise", "original", "oracle")] == [{"destroyed"}, {"no effect"}, set()]
    assert classes["mask"] == set()  # the maker gives it an edit of a megabyte
