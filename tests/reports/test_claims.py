import json

import numpy as np
import pandas as pd
import pytest

from slugbench.reports.claims import GAP, TIMES, Claim, Claims, verdicts

from .conftest import cells, table

RUN = [{"suite": {"name": "s"}, "controls": ["original", "oracle", "noise", "mask"]}]


def run_of(values, *, requests=8, seeds=(0, 1), metric="ra@1", spread=0.01, **facts):
    """A table in which each method has its value, and requests differ from each other by `spread`."""
    rng = np.random.default_rng(0)
    rows = []
    for request in range(requests):
        for seed in seeds:
            for method, value in values.items():
                row = {
                    "metric": metric,
                    "value": value + spread * rng.standard_normal(),
                    "better": "higher",
                    "oracle_mean": 0.5,
                }
                rows += cells("identities", f"r{request}", method, base_seed=seed, metrics=[row], **facts)
    return table(rows)


def claim(side, margin=0.0, **changes):
    return Claim(**{"source": "p", "says": "s", "joint": False, "metric": "ra@1", "left": "slug", "right": "ga"} | changes,
                 side=side, margin=margin)  # fmt: skip


@pytest.mark.parametrize(
    ("side", "margin", "verdict"),
    [("above", 0.0, "holds"), ("below", 0.0, "does not hold"), ("above", 0.1, "not resolved"), ("below", 0.3, "holds")],
)
def test_a_verdict_needs_the_whole_interval_on_one_side(side, margin, verdict):
    found = verdicts(run_of({"slug": 0.8, "ga": 0.7}), RUN, [claim(side, margin)])
    assert found["verdict"].tolist() == [verdict]
    assert found["low"].item() < 0.1 < found["high"].item() and found["n_requests"].item() == 8


def test_differences_are_paired_by_request_and_base_model():
    frame = run_of({"slug": 0.8, "ga": 0.7}, spread=0)
    shift = frame["request"].map({f"r{n}": n / 10 for n in range(8)}).astype(float)
    found = verdicts(frame.assign(value=frame["value"] + shift), RUN, [claim("above")])
    assert found[["difference", "low", "high"]].to_numpy() == pytest.approx(0.1)


def test_few_requests_resolve_nothing():
    found = verdicts(run_of({"slug": 0.9, "ga": 0.1}, requests=2), RUN, [claim("above")])
    assert found["verdict"].tolist() == ["not resolved"] and np.isnan(found["low"].item())


def test_a_missing_cell_on_either_side_resolves_nothing():
    frame = run_of({"slug": 0.9, "ga": 0.1})
    for method in ("slug", "ga"):
        part = frame[(frame["method"] != method) | (frame["request"] != "r3") | (frame["base_seed"] != 1)]
        found = verdicts(part, RUN, [claim("above")])
        assert found["verdict"].tolist() == ["not resolved"] and found["n_missing"].tolist() == [1]


def tuned_run():
    """SLUG, whose tuned batch is 16, and GA, whose tuning kept the defaults; and what run.json says of it."""
    default, tuned = run_of({"slug": 0.8, "ga": 0.7}, spread=0), run_of({"slug": 0.9}, spread=0)
    frame = pd.concat([default.assign(method_params='{"batch": 8}'), tuned.assign(method_params='{"batch": 16}')])
    frame["cell"] += frame["method_params"]
    return frame.reset_index(drop=True)


def test_tuning_that_kept_the_defaults_is_compared_with_tuned_and_default_alike(monkeypatch):
    from slugbench.reports import claims

    def marked(frame, controls, tuned=()):
        rows = labelled(frame, controls)
        chosen = (rows["method"] == "slug") & (rows["method_params"] == '{"batch": 16}')
        rows = rows.assign(tuned=chosen, kept=rows["method"] == "ga")
        return rows.assign(label=rows["method"] + np.where(chosen, " (tuned)", ""))

    labelled = claims.tables.labelled
    monkeypatch.setattr(claims.tables, "labelled", marked)
    found = verdicts(tuned_run(), RUN, [claim("above"), claim("below", left="ga", right="slug")])
    assert list(zip(found["left"], found["right"], strict=True)) == [
        ("slug", "ga"), ("slug (tuned)", "ga"), ("ga", "slug"), ("ga", "slug (tuned)"),
    ]  # fmt: skip


def test_a_claim_about_methods_that_did_not_run_is_left_out():
    assert verdicts(run_of({"slug": 0.8}), RUN, [claim("above")]).empty


def test_the_oracle_and_nothing_are_references_too():
    frame = run_of({"slug": 0.8}, spread=0)
    found = verdicts(frame, RUN, [claim("above", right="oracle"), claim("above", 0.7, right="")])
    assert found["difference"].tolist() == pytest.approx([0.3, 0.8]) and set(found["verdict"]) == {"holds"}


def test_times_are_ratios_and_gaps_average_the_distances_to_the_oracle():
    times = run_of({"slug": 2.0, "ga": 8.0}, metric="t_total", spread=0)
    found = verdicts(times, RUN, [claim("below", metric=TIMES)])
    assert np.exp(found["difference"].item()) == pytest.approx(0.25)
    both = pd.concat([run_of({"slug": 0.7}, spread=0), run_of({"slug": 0.1}, metric="fa@1", spread=0)], ignore_index=True)
    gap = verdicts(both, RUN, [claim("below", 0.9, metric=GAP, right="")])
    assert gap["difference"].item() == pytest.approx((0.2 + 0.4) / 2)


def test_settings_of_methods_are_compared_with_their_like():
    default, tuned = run_of({"slug": 0.8, "ga": 0.7}, spread=0), run_of({"slug": 0.9, "ga": 0.5}, spread=0)
    tuned = tuned.assign(method_params=json.dumps({"batch": 16}), cell=tuned["cell"] + "-t")
    frame = pd.concat([default.assign(method_params=json.dumps({"batch": 8})), tuned], ignore_index=True)
    found = verdicts(frame, RUN, [claim("above")])
    assert sorted(found["difference"]) == pytest.approx([0.1, 0.4])


def test_the_report_writes_what_it_found(tmp_path):
    paths = Claims()(run_of({"slug": 0.8, "ga": 0.7, "original": 0.88}), RUN, tmp_path)
    text = paths[0].read_text()
    assert "SLUG keeps more of other identities than ga" in text and "| holds" in text
    assert "identities: single requests: the numbers" in text and "ra_near@1" not in text
    found = pd.read_csv(paths[1])
    assert len(found) == text.count("ra@1: ")
    assert sorted(found["verdict"]) == ["does not hold", "holds", "not resolved"]
    assert "In all: does not hold 1, holds 1, not resolved 1." in text
