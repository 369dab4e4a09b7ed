import hashlib
import re
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

import slugbench.reports
from slugbench.bench import UsageError
from slugbench.reports import plots
from slugbench.reports._layout import COLUMN, PAGE, canvas, style
from slugbench.reports.figures import FIGURES, PAGE_FIGURES, Figures, page_svg, ranks_of, svg
from slugbench.reports.looks import CONTROLS, KNOWN, PALETTE, REST, look, looks
from slugbench.reports.plots import (
    NothingToDraw,
    critical_difference,
    differences,
    layer_map,
    memory_of,
    profile,
    quality_cost,
    quality_costs,
    relearning,
    trade_off,
)
from slugbench.reports.tables import boards


@pytest.fixture(autouse=True)
def print_style():
    with style():
        yield


@pytest.fixture(scope="module")
def joint(frame, runs):
    return next(b for b in boards(frame, runs) if b.joint)


@pytest.fixture(scope="module")
def crowded(crowd):
    (board,) = boards(crowd, [{}])
    return board


def texts(ax):
    return [t for t in ax.texts if t.get_text()]


def marks(ax):
    """(x, y) of every mark that is drawn by itself."""
    single = [x for x in ax.lines if len(x.get_xdata()) == 1 and x.get_marker() not in {"None", "|"}]
    return {(round(float(x.get_xdata()[0]), 9), round(float(x.get_ydata()[0]), 9)) for x in single}


# ---------------------------------------------------------------- looks


def test_a_look_depends_on_the_name_alone(joint, crowded):
    here, there = looks(joint.lines), looks(crowded.lines)
    assert all(here[m] == there[m] for m in set(here) & set(there))
    digest = int.from_bytes(hashlib.sha256(b"plugin_a").digest()[:8], "big")  # worked out anew, not by the same function
    assert look("plugin_a")[:2] == REST[digest % len(REST)][:2] and look("plugin_a").fill == REST[digest % len(REST)][2]
    assert look("salun (tuned)") == look("salun")._replace(ringed=True)


def test_known_methods_differ_in_their_markers_alone_and_no_other_name_takes_their_look():
    assert len(KNOWN) == 12 == len({marker for _, marker in KNOWN.values()})
    assert not set(KNOWN.values()) & {(color, marker) for color, marker, _ in REST} and len(set(REST)) == len(REST)
    assert look("oracle", control=True).marker == CONTROLS["oracle"]
    assert look("oracle", control=True).color == look("mask", control=True).color not in PALETTE


# Machado, Oliveira and Fernandes, A physiologically-based model for simulation of color vision deficiency, 2009, severity 1
BLINDNESS = {
    "none": np.eye(3),
    "protanopia": [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]],
    "deuteranopia": [[0.3673, 0.8606, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9689]],
    "tritanopia": [[1.2555, -0.0767, -0.1788], [-0.0784, 0.9308, 0.1476], [0.0047, 0.6914, 0.3039]],
}


@pytest.mark.parametrize("kind", BLINDNESS)
def test_no_two_colors_look_alike_to_the_colour_blind(kind):
    def lab(color):
        linear = np.array([c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)])
        seen = np.clip(np.array(BLINDNESS[kind]) @ linear, 0, 1)
        to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
        x, y, z = np.cbrt(to_xyz @ seen / [0.9505, 1, 1.089])  # the linear part below 0.009 changes nothing here
        return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])

    # 2.3 is just noticeable side by side; 15 is far apart even in small marks
    assert min(np.linalg.norm(lab(a) - lab(b)) for a, b in combinations(PALETTE, 2)) > 15


# ---------------------------------------------------------------- points


def test_the_trade_off_shows_every_method_where_its_numbers_are(joint):
    ax = trade_off(joint)
    assert {tuple(round(x.entries[m].estimate.value, 9) for m in ("fa@1", "ra@1")) for x in joint.lines} <= marks(ax)
    named = {t.get_text() for t in texts(ax)} | {t.get_text() for legend in ax.figure.legends for t in legend.texts}
    assert named == {"slug", "salun", "ga", "ft", "svd†", "original", "oracle", "mask", "noise"}


def test_the_front_joins_the_methods_that_no_other_beats(crowded):
    ax = trade_off(crowded)
    points = {x.method: (abs(x.entries["fa@1"].gap), -x.entries["ra@1"].estimate.value) for x in crowded.ranked}
    expected = {m for m, p in points.items() if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points.values())}
    (front,) = [x for x in ax.lines if len(x.get_xdata()) == len(expected) and x.get_linestyle() == "-"]
    where = {x.entries["ra@1"].estimate.value for x in crowded.ranked if x.method in expected}
    assert 1 < len(expected) < len(points) and set(front.get_ydata()) == where


@pytest.mark.parametrize("width", [COLUMN, PAGE])
@pytest.mark.parametrize("draw", [trade_off, quality_cost])
def test_names_lie_on_no_other_name_and_inside_or_stand_in_a_legend(joint, crowded, draw, width):
    for board in (joint, crowded):
        ax = draw(board, width=width)
        ax.figure.draw_without_rendering()
        renderer = ax.figure.canvas.get_renderer()
        boxes = [t.get_window_extent(renderer) for t in texts(ax)]
        assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
        paper = ax.figure.bbox
        shown = [*boxes, *(legend.get_window_extent(renderer) for legend in ax.figure.legends)]
        assert all(b.x0 >= 0 and b.y0 >= 0 and b.x1 <= paper.x1 and b.y1 <= paper.y1 for b in shown)
        assert ax.figure.get_figwidth() == width and all(t.get_fontsize() >= 7 for t in texts(ax))
    names = [t.get_text() for t in texts(ax)] + [t.get_text() for legend in ax.figure.legends for t in legend.texts]
    assert len(names) == len(set(names)) > 20  # of the crowd: everyone once


def test_costs_have_a_log_axis_where_they_span_a_decade(crowded, joint):
    assert quality_cost(crowded, "t_total").get_xscale() == "log"  # 0.3 to 200 seconds
    assert (
        quality_cost(joint, "t_total").get_xscale() == "log"
        and quality_cost(joint, memory_of(joint)).get_xscale() == "linear"
    )
    names = {t.get_text() for t in texts(quality_cost(joint))}
    assert {"untouched original", "another oracle"} <= names and "svd†" not in names  # it has no distance
    left, right = quality_costs(crowded, ["t_total", memory_of(crowded), "energy_j"]).axes
    assert right.get_xlabel().startswith("host memory (GB)") and left.get_ylim() == right.get_ylim()


def test_memory_is_the_accelerators_where_it_was_measured(crowd, crowded):
    assert memory_of(crowded) == "peak_rss_bytes"
    few = crowd[crowd["method"].isin({"slug", "oracle"})]
    also = few[few["metric"] == "peak_rss_bytes"].assign(metric="peak_device_bytes")
    assert memory_of(boards(pd.concat([few, also], ignore_index=True), [])[0]) == "peak_device_bytes"


def made_up_layers(n=60):
    rng = np.random.default_rng(3)
    scores = pd.DataFrame({"tower": ["vision", "text"] * (n // 2), "alignment": rng.uniform(0, 1, n).round(2)})
    scores["importance"] = 10 ** rng.uniform(-3, 0, n).round(2)
    scores["layer"] = [f"visual.transformer.resblocks.{i}.mlp.c_fc.weight" for i in range(n)]
    return scores.assign(forget_norm=1.0, param_norm=1.0)


def test_the_layer_map_joins_each_towers_front():
    scores = made_up_layers()
    ax = layer_map(scores)
    fronts = [set(zip(x.get_xdata(), x.get_ydata(), strict=True)) for x in ax.lines if x.get_linestyle() == "-"]
    for tower, front in zip(("text", "vision"), fronts, strict=True):
        points = scores.loc[scores["tower"] == tower, ["importance", "alignment"]].to_numpy()
        brute = {tuple(p) for p in points if not any(q[0] > p[0] and q[1] < p[1] for q in points)}
        assert front == brute and 1 < len(brute) < len(points)
    assert ax.get_xscale() == "log" and {t.get_text() for t in ax.figure.legends[0].texts} == {"text", "vision"}
    assert len({x.get_color() for x in ax.lines if x.get_linestyle() == "-"}) == 2
    assert all(re.fullmatch(r"visual\.\d+\.mlp\.c_fc", t.get_text()) for t in texts(ax)) and texts(ax)


def test_layers_that_tie_in_one_score_both_stay_as_in_the_method():
    scores = pd.DataFrame(
        {"layer": list("abc"), "tower": "model", "importance": [2.0, 2.0, 1.0], "alignment": [0.1, 0.3, 0.1]}
    )
    front = next(x for x in layer_map(scores).lines if x.get_linestyle() == "-")
    assert len(front.get_xdata()) == 3  # neither tie is beaten on both
    with pytest.raises(UsageError, match="lack the columns tower"):
        layer_map(scores.drop(columns="tower"))
    with pytest.raises(NothingToDraw, match="no layer"):
        layer_map(scores.iloc[:0])


# ---------------------------------------------------------------- curves


def test_relearning_shows_means_with_intervals_beside_the_oracles_band(crowd, crowded):
    ax = relearning(crowded)
    mine = crowd[(crowd["method"] == "slug") & crowd["metric"].str.startswith("relearn@5+", na=False)]
    means = mine.groupby(mine["metric"].str.removeprefix("relearn@5+").astype(int))["value"].mean()  # balanced: a plain mean
    lines = [x for x in ax.lines if x.get_color() == look("slug").color and x.get_marker() == "o"]
    assert any(np.allclose(x.get_xdata(), means.index) and np.allclose(x.get_ydata(), means) for x in lines)
    bands = [c.get_paths()[0].vertices for c in ax.collections]
    assert len(bands) == 1 + sum(x.complete and x.method != "oracle" for x in crowded.lines)
    oracle = 0.01 + 0.3 * (1 - np.exp(-50 / 20))  # as the rows were made, with a standard deviation of 0.03
    end = bands[0][bands[0][:, 0] == 50, 1]
    assert end.min() == pytest.approx(oracle - 0.03) and end.max() == pytest.approx(oracle + 0.03)


def test_few_curves_are_named_at_their_ends(made):
    rows = made.large(6, (0,), 2)
    ax = relearning(rows[~rows["method"].isin({"mask", "noise"})])
    named = {t.get_text() for t in texts(ax)} | {t.get_text() for legend in ax.figure.legends for t in legend.texts}
    assert named == {"slug", "salun", "original", "oracle"}


# ---------------------------------------------------------------- grids


def test_differences_are_the_metric_less_the_oracle_by_request(crowd, crowded):
    ax = differences(crowded, "ra@1")
    mine = crowd[(crowd["metric"] == "ra@1") & (crowd["method"] != "oracle")]
    gaps = mine.assign(gap=mine["value"] - mine["oracle_mean"]).pivot_table("gap", "method", "request")
    names = [t.get_text().rstrip("†") for t in ax.get_yticklabels()]
    assert np.allclose(ax.collections[0].get_array(), gaps.loc[names].to_numpy())
    low, high = ax.collections[0].get_clim()
    methods = [x.method for x in crowded.lines if not x.control]
    assert low == -high == -np.abs(gaps.loc[methods].to_numpy()).max()  # white is 0, and the noise does not use colours up


def test_what_was_not_measured_is_left_grey(crowd):
    few = crowd[crowd["method"].isin({"slug", "salun", "oracle"})]
    lost = few[~((few["method"] == "slug") & (few["request"] == "person-01"))]
    values = differences(lost, "fa@1").collections[0].get_array()
    assert np.ma.count_masked(values) == 1


def test_the_profile_has_a_panel_for_each_metric_and_a_dash_where_there_is_nothing(frame, runs):
    single = next(b for b in boards(frame, runs) if b.task == "identities" and not b.joint)
    figure = profile(single)
    shown = [ax.get_title(loc="left") for ax in figure.axes if ax.get_visible()]
    assert len(shown) == 8 and not any("ks_d" in title for title in shown)  # null on single requests
    assert figure.get_figwidth() == PAGE


def test_ranks_say_how_many_requests_they_need(crowded, made):
    with pytest.raises(NothingToDraw, match=r"190 pairs at once: not resolvable, n = 12, 13 are needed"):
        ranks_of(crowded)  # 20 methods: 2 * 2 ** -12 * 190 = 0.093, 2 * 2 ** -13 * 190 = 0.046
    (enough,) = boards(made.large(9, (0,), 4, trouble=False), [])  # 2 * 2 ** -9 * 6 = 0.02
    assert ranks_of(enough)[0].sum() == pytest.approx(1 + 2 + 3 + 4)
    (alike,) = boards(made.large(6, (0,), 1, trouble=False), [])
    with pytest.raises(NothingToDraw, match="three complete methods"):
        ranks_of(alike)


def test_the_critical_difference_diagram_has_room_for_long_names():
    names = [f"{name} (tuned)" for name in ("neggrad_plus", "random_label", "salun_slug", "l1_sparse", "scrub", "slug")]
    ranks = pd.Series(np.linspace(1.5, 12.0, len(names)), names)
    with style():
        ax = critical_difference(ranks, pd.DataFrame(0.01, names, names))
        frame, renderer = ax.figure.bbox, ax.figure.canvas.get_renderer()
        boxes = [text.get_window_extent(renderer) for text in ax.texts]
    assert len(boxes) >= len(names) and all(box.x0 >= 0 and box.x1 <= frame.x1 for box in boxes)


def test_the_critical_difference_diagram_names_everyone_and_joins_what_is_not_told_apart():
    ranks = pd.Series({"slug": 1.2, "salun": 1.9, "ga": 2.9})
    p = pd.DataFrame(1.0, index=ranks.index, columns=ranks.index)
    p.loc["ga", ["slug", "salun"]] = p.loc[["slug", "salun"], "ga"] = 0.01
    ax = critical_difference(ranks, p)
    assert {t.get_text() for t in texts(ax)} == {"slug 1.2", "salun 1.9", "2.9 ga"}
    bars = [x for x in ax.lines if x.get_linewidth() == 2]
    assert [sorted(x.get_xdata()) for x in bars] == [[1.2, 1.9]]
    assert marks(ax) == {(1.2, 0), (1.9, 0), (2.9, 0)}
    with pytest.raises(UsageError, match="different methods"):
        critical_difference(ranks, p.rename(columns={"ga": "ft"}))


# ---------------------------------------------------------------- the interface


def test_rows_or_a_board_go_in_and_axes_come_out(joint, frame):
    figure, (left, right) = canvas(PAGE, 3, 1, 2)
    rows = joint.rows
    assert trade_off(rows, ax=left) is left and quality_cost(joint, ax=right) is right and figure.axes == [left, right]
    assert marks(left) == marks(trade_off(joint))
    with pytest.raises(UsageError, match=r"make 3 boards .*identities: joint requests"):
        trade_off(frame)
    with pytest.raises(UsageError, match=r"no metric 'fa'; they have fa@1"):
        trade_off(rows, x="fa")


def test_a_style_of_ones_own_works_as_well(joint, crowded):
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # sizes are words there, such as medium
        assert all(t.get_fontsize() == 10 for t in texts(trade_off(joint)))
        assert relearning(crowded).figure.legends and profile(joint).axes


def test_a_board_without_metrics_has_no_figures_and_says_why(made, tmp_path):
    rows = made.table(made.cells("t", "q", "slug", status="failed", error="E: e"))
    (board,) = boards(rows, [])
    for kind in FIGURES.values():
        with pytest.raises(NothingToDraw):
            kind.draw(board)
    assert all(page_svg(lambda draw=draw: draw(board), "x") is None for draw in PAGE_FIGURES.values())
    (captions,) = Figures()(rows, [{}], tmp_path)
    assert captions.read_text().count("\n- `t-single-requests-") == len(FIGURES)


def test_figures_are_vectors_of_fixed_bytes_at_the_widths_of_print(made, tmp_path):
    rows = made.large(9, (0,), 3, trouble=False)
    first, second = (Figures()(rows, [{}], tmp_path / name) for name in "ab")
    assert len(first) == 1 + 2 * len(FIGURES) and [p.read_bytes() for p in first] == [p.read_bytes() for p in second]
    for path in first:
        if path.suffix == ".svg":
            width = float(re.search(r'<svg [^>]*?width="([\d.]+)pt"', path.read_text())[1]) / 72
            assert width <= PAGE + 0.01 and (width > COLUMN - 0.01 or "quality" in path.name)
    assert b"CreationDate" not in next(p for p in first if p.suffix == ".pdf").read_bytes()
    captions = first[0].read_text()
    assert "9 requests" in captions and "Not drawn" not in captions


def test_svg_takes_the_pages_colors_and_has_ids_of_its_own(joint):
    drawn = svg(trade_off(joint).figure, "one")
    assert "var(--ink)" in drawn and "#1f2430" not in drawn and "<metadata" not in drawn and 'id="one-' in drawn
    css = (Path(slugbench.reports.__file__).parent / "templates" / "page.css").read_text()
    assert all(f"{name}:" in css for name in set(re.findall(r"var\((--\w+)\)", drawn)))


def test_drawing_leaves_no_figure_open_and_no_setting_changed(joint):
    before = dict(matplotlib.rcParams)
    with style(12):
        profile(joint)
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert (pyplot is None or not pyplot.get_fignums()) and dict(matplotlib.rcParams) == before


def test_the_functions_are_at_hand_without_loading_anything_first():
    assert set(slugbench.reports.PLOTS) | {"memory_of"} == set(plots.__all__)
    assert slugbench.reports.trade_off is trade_off
    code = "import sys, slugbench.reports; print({'pandas', 'matplotlib'} & set(sys.modules)); slugbench.reports.layer_map; "
    code += "print('matplotlib' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["set()", "False", "False"]
