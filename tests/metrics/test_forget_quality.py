import numpy as np
import pytest
from scipy.stats import ks_2samp

from slugbench.bench.intervals import interval
from slugbench.metrics.forget_quality import ForgetQuality
from slugbench.metrics.oracle_distance import null_distances

from .trials import planted

N = 160
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # about scipy's p-value, which is not used


def forgotten(shift, *, original=6.0, n_oracles=5, seed=0, joint=True):
    """Normal scores in eight units; oracles around 0 with a seed's own shift."""
    rng = np.random.default_rng(seed)
    columns = {"split": np.array(["forget"] * N), "unit": np.arange(N) % 8}
    oracles = [rng.normal(0.2 * s, 1, N) for s in range(n_oracles)]
    return planted(columns, rng.normal(shift, 1, N), rng.normal(original, 1, N), oracles, targets=("a", "b"), joint=joint)


@pytest.mark.parametrize("shift", [1.0, 2.0, 4.0])
def test_it_is_the_share_of_scipys_distance_that_was_gone(shift):
    outcome = forgotten(shift)
    oracles = [oracle["score"] for oracle in outcome.oracles]
    pooled = np.concatenate(oracles)
    d_u, d_0 = (ks_2samp(a["score"], pooled).statistic for a in (outcome.answers, outcome.trial.original))
    null = np.median(null_distances(outcome.oracles, np.ones(N, bool)))
    (value,) = ForgetQuality()(outcome)
    assert value.value == pytest.approx((d_0 - d_u) / (d_0 - null))
    assert value.note.startswith(f"D = {d_u:.2f}, above ")
    low, high = interval(value, resamples=200)
    assert 0 <= low <= value.value <= high <= 1


def test_the_original_has_none_and_another_retrained_model_nearly_all():
    (untouched,), (retrained,) = ForgetQuality()(forgotten(6.0)), ForgetQuality()(forgotten(0.4))
    assert untouched.value < 0.05 and retrained.value > 0.9 and retrained.better == "higher"
    assert "above 100%" in untouched.note and "above 100%" not in retrained.note


def test_over_forgetting_is_as_far_off_as_not_forgetting():
    (value,) = ForgetQuality()(forgotten(-6.0))
    assert value.value < 0.05


def test_it_is_clipped():
    assert ForgetQuality()(forgotten(30.0, original=3.0))[0].value == 0  # farther off than the original


@pytest.mark.parametrize(
    ("made", "note"),
    [
        ({"n_oracles": 0}, "there is no oracle"),
        ({"n_oracles": 1}, "one oracle alone"),
        ({"joint": False}, "a single target's oracles differ"),
        ({"original": 0.4}, "the original is at"),
    ],
)
def test_where_there_is_no_scale_it_is_null_with_the_reason(made, note):
    (value,) = ForgetQuality()(forgotten(1.0, **made))
    assert value.value is None and value.note.startswith(note)
