import sys
from itertools import combinations

import pytest

from slugbench.reports.figures import CONTROL_MARKERS, FIGURES, looks, profile, quality_time, svg, trade_off
from slugbench.reports.tables import boards


@pytest.fixture(scope="module")
def joint(frame, runs):
    return next(b for b in boards(frame, runs) if b.joint)


def labels(figure):
    return {t.get_text(): t for t in figure.axes[0].texts if t.get_text()}


def test_the_trade_off_shows_every_method_where_its_numbers_are(joint):
    figure = trade_off(joint)
    spots = {
        (round(float(x.get_xdata()[0]), 9), round(float(x.get_ydata()[0]), 9))
        for x in figure.axes[0].lines
        if x.get_marker() != "None"
    }
    values = {tuple(round(x.entries[m].estimate.value, 9) for m in ("fa@1", "ra@1")) for x in joint.lines}
    assert values <= spots
    assert set(labels(figure)) == {"slug", "salun", "ga", "ft", "svd†", "original", "oracle", "mask", "noise"}


def test_names_do_not_lie_on_each_other(joint):
    figure = trade_off(joint)
    boxes = [t.get_window_extent(figure.canvas.get_renderer()) for t in labels(figure).values()]
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))


def test_time_leaves_out_what_has_none_and_names_both_ends(joint):
    names = set(labels(quality_time(joint)))
    assert {"slug", "salun", "ga", "ft", "untouched original", "another oracle"} <= names and "svd†" not in names


def test_the_profile_has_a_panel_for_each_metric_and_a_dash_where_there_is_nothing(frame, runs):
    single = next(b for b in boards(frame, runs) if b.task == "identities" and not b.joint)
    shown = [ax.get_title(loc="left") for ax in profile(single).axes if ax.get_visible()]
    assert len(shown) == 8 and not any("ks_d" in title for title in shown)  # null on single requests


def test_looks_are_stable_and_distinct(joint):
    everyone, few = looks(joint.lines), looks([x for x in joint.lines if x.method in {"slug", "mask"}])
    assert all(everyone[m] == few[m] for m in few)
    assert len({(x.color, x.marker, x.size) for x in everyone.values()}) == len(everyone)
    assert everyone["oracle"].marker == CONTROL_MARKERS["oracle"]


def test_a_board_without_metrics_has_no_figures(made):
    (board,) = boards(made.table(made.cells("t", "q", "slug", status="failed", error="E: e")), [])
    assert all(draw(board) is None for draw in FIGURES.values())


def test_svg_takes_the_pages_colors_and_has_ids_of_its_own(joint):
    drawn = svg(trade_off(joint), "one")
    assert "var(--ink)" in drawn and "#1f2430" not in drawn and "<metadata" not in drawn and 'id="one-' in drawn


def test_drawing_leaves_no_figure_open(joint):
    trade_off(joint)
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()
