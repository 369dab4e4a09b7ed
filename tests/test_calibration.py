"""The script behind docs/calibration.md: its rules on tables whose answer is known."""

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest


@pytest.fixture(scope="module")
def calibration():
    spec = importlib.util.spec_from_file_location("calibration", Path(__file__).parent.parent / "docs" / "calibration.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def gaps(better, shift, requests=8):
    """A metric's rows of a control that is `shift` above the oracles on average, on two base models."""
    spread = np.linspace(-0.05, 0.05, requests)
    return pd.DataFrame(
        [
            {"request": f"q{r}", "base_seed": b, "method_seed": 0, "better": better, "value": 0.5 + shift + spread[r],
             "oracle_mean": 0.5, "ci_low": np.nan, "ci_high": np.nan, "cell": f"{r}-{b}"}
            for r in range(requests) for b in (0, 1)
        ]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("better", "shift", "worse"),
    [("higher", -0.3, True), ("higher", 0.3, False), ("lower", 0.3, True), ("oracle", 0.3, True), ("oracle", -0.3, True),
     ("oracle", 0.0, False), ("higher", 0.0, False)],
)  # fmt: skip
def test_a_control_is_caught_on_the_wrong_side_of_the_oracles_only(calibration, better, shift, worse):
    assert calibration._worse(gaps(better, shift)) is worse


def test_too_few_requests_catch_nobody(calibration):
    assert not calibration._worse(gaps("oracle", 0.3, requests=5))


def test_a_further_draw_of_the_oracles_distribution_is_seldom_called_unlike(calibration):
    shares = calibration.simulated_null()["called unlike"].str.split().str[0].astype(float)
    assert len(shares) == 8 and shares.between(0.03, 0.065).all()  # 0.05, and three standard errors of 2,000 draws


def test_a_coverage_beside_the_band_is_not_called_within_it(calibration):
    assert [calibration._line("", held, 500)["0.93 to 0.97"] for held in (475, 460, 430)] == ["yes", "not excluded", "no"]


def test_false_alarms_are_counted_for_each_metric_and_in_all(calibration):
    found = pd.DataFrame({"metric": ["a"] * 20 + ["b"] * 20, "unlike": [True] + [False] * 39})
    lines = calibration.null_table(found).set_index("metric")
    assert list(lines["called unlike"]) == ["0.050", "0.000", "0.025"] and list(lines["oracles"]) == [20, 20, 40]
    assert lines.loc["mean of all", "95 %"] == ""
    assert lines.loc["b", "95 %"] == f"0.000 to {1 - 0.025 ** (1 / 20):.3f}"  # Clopper and Pearson's bound for none of 20
