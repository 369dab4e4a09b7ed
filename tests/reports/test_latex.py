import re

import numpy as np
import pytest

from slugbench.bench import UsageError
from slugbench.reports.latex import Latex, document, escaped, shown, table, tied_with_best, worse
from slugbench.reports.statistics import by_request, interval, paired_interval
from slugbench.reports.tables import boards


@pytest.fixture(scope="module")
def crowded(crowd):
    (board,) = boards(crowd, [{}])
    return board


def written(board):
    return table(board, shown(board), "quick")


def body(text):
    """The rows of the tabular as lists of cells, and its rules."""
    inside = re.search(r"\\begin\{tabular\}\{[^\n]*\n(.*?)\\end\{tabular\}", text, re.DOTALL)[1]
    lines = [line for line in inside.splitlines() if "&" in line]
    return [re.split(r"(?<!\\) & ", re.sub(r" \\\\(\[-1pt\])?$", "", line)) for line in lines], inside


def balanced(text):
    """Whether braces and environments close in order; comments and escaped braces left out."""
    plain = re.sub(r"\\[{}%]", "", re.sub(r"(?m)^%.*$", "", text))
    depth = np.cumsum([{"{": 1, "}": -1}.get(c, 0) for c in plain])
    stack = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", plain):
        if kind == "begin":
            stack.append(name)
        elif not stack or stack.pop() != name:
            return False
    return not stack and depth[-1] == 0 and depth.min() >= 0


def test_braces_and_environments_close_and_every_row_has_every_column(frame, runs, crowded):
    for board in [*boards(frame, runs), crowded]:
        text = written(board)
        rows, _ = body(text)
        letters = re.search(r"\\begin\{tabular\}\{@\{\}(\w+)@\{\}\}", text)[1]
        assert balanced(text) and {len(cells) for cells in rows} == {len(letters)} == {3 + len(shown(board))}
        assert all(rf"\{rule}" in text for rule in ("toprule", "midrule", "bottomrule"))


def test_cells_hold_the_boards_means_and_intervals_and_bold_its_best(crowded):
    rows, _ = body(written(crowded))
    place = 3 + [c.name for c in shown(crowded)].index("ra@1")
    for line in crowded.ranked:
        i = next(i for i, cells in enumerate(rows) if re.match(rf"{re.escape(escaped(line.method))}($|\\tnote)", cells[1]))
        e = line.entries["ra@1"].estimate
        assert f"{e.value:.3f}" in rows[i][place] and f"[{e.low:.3f}, {e.high:.3f}]" in rows[i + 1][place]
        assert (r"\textbf" in rows[i][place]) == line.entries["ra@1"].best


def test_underlined_is_what_the_paired_interval_does_not_tell_from_the_best(crowd, crowded):
    column = crowded.column("mia_sample")
    best = next(x.method for x in crowded.ranked if x.entries["mia_sample"].best)
    rng = np.random.default_rng(5)
    picks_R, picks_B = rng.integers(12, size=(4000, 12)), rng.integers(3, size=(4000, 3))

    def means(method):
        mine = crowd[(crowd["method"] == method) & (crowd["metric"] == "mia_sample")]
        gaps_RB = mine.assign(gap=mine["value"] - mine["oracle_mean"]).pivot(
            index="request", columns="base_seed", values="gap"
        )
        return np.abs([gaps_RB.to_numpy()[np.ix_(r, b)].mean() for r, b in zip(picks_R, picks_B, strict=True)])

    lows = {x.method: np.quantile(means(x.method) - means(best), 0.025) for x in crowded.ranked if x.method != best}
    # Within 0.002 of 0 two bootstraps, and the wider tail that few requests ask for, may disagree.
    sure = {m for m, low in lows.items() if abs(low) > 0.002}
    assert {m for m in sure if lows[m] <= 0} == tied_with_best(crowded, column) & sure and len(sure) > 12
    assert 0 < sum(low > 0 for low in lows.values()) < len(lows)


def test_a_metric_on_which_all_are_alike_marks_nearly_all(crowded):
    tied = tied_with_best(crowded, crowded.column("util@1"))  # 0.96 for every method, as it was made
    assert len(tied) >= 0.7 * len(crowded.ranked)
    rows, _ = body(written(crowded))
    place = 3 + [c.name for c in shown(crowded)].index("util@1")
    assert sum(r"\underline" in cells[place] for cells in rows) == len(tied)


def test_the_paired_interval_is_that_of_the_differences():
    rng = np.random.default_rng(2)
    one, other = rng.normal(size=(8, 3)), rng.normal(0.3, 1, size=(8, 3))
    assert paired_interval(one, other) == pytest.approx(interval(other - one))  # the same draws, and a mean is linear
    low, high = paired_interval(one - 9, other + 9, sizes=True)
    assert (low, high) == pytest.approx(interval(other + one))  # |m + 9| - |n - 9| = m + n


def test_few_requests_tell_nothing_apart_and_the_table_says_so(frame, runs):
    board = next(b for b in boards(frame, runs) if b.joint)
    for column in board.quality():
        ordered = {x.method for x in board.ranked if x.entries[column.name].estimate.value is not None}
        best = {x.method for x in board.ranked if x.entries[column.name].best}
        assert tied_with_best(board, column) == (ordered - best if best else set())
    assert "2 requests tell none apart, 6 are the least" in written(board)


def test_gaps_are_never_called_worse(crowd):
    rows = crowd[(crowd["metric"] == "ra@1") & (crowd["method"] == "slug")]
    best = by_request(rows)
    assert worse(best, best + 1) and not worse(best, best) and not worse(best, (best + 1).iloc[1:])


def test_controls_stand_below_a_rule_and_failures_below_the_table(frame, runs, crowded):
    _, inside = body(written(crowded))
    methods, controls = inside.split(r"\midrule")[1:]
    assert all(x.method in controls for x in crowded.controls) and "slug" in methods and "slug" not in controls
    joint = written(next(b for b in boards(frame, runs) if b.joint))
    assert r"svd\tnote{$\dagger$}" in joint and "svd: 1 of 2 cells finished (joint-1 timeout)" in joint
    assert r"ga\tnote{$\ddagger$}" in joint and "ga: destroyed (2/2)" in joint


def test_every_mark_in_the_table_has_its_note(frame, runs, crowded):
    for board in [*boards(frame, runs), crowded]:
        text = written(board)
        used = {mark for found in re.findall(r"\\tnote\{((?:[^{}]|\{[^}]*\})*)\}", text) for mark in found.split(",")}
        assert used <= set(re.findall(r"\\item\[([^]]*)\]", text))


def test_the_caption_says_what_was_measured(crowded):
    (caption,) = re.findall(r"\\caption\{(.*)\}\n", written(crowded))
    for part in ("Suite quick", "identities: single requests", "12 requests", "base seeds 0, 1, 2", r"95 \% bootstrap"):
        assert part in caption


def test_special_characters_are_set_as_they_stand(made):
    assert escaped("a_b & 50 % #1 {x} $~^ \\ <>|") == (
        r"a\_b \& 50 \% \#1 \{x\} \$\textasciitilde{}\textasciicircum{} \textbackslash{} \textless{}\textgreater{}\textbar{}"
    )
    assert escaped("naïve\nŁ †→中") == r"naïve Ł $\dagger$$\rightarrow$U+4E2D"
    values = [{"metric": "x_{1} & %", "value": -0.5, "better": "higher", "unit": "#"}]
    (board,) = boards(made.table(made.cells("t_$", "q", r"evil\input{&%}", metrics=values)), [])
    text = written(board)
    rows, _ = body(text)
    assert balanced(text) and {len(cells) for cells in rows} == {4} and r"evil\textbackslash{}input\{\&\%\}" in text
    assert "$-$0.500" in text


def test_the_document_inputs_every_table(tmp_path, frame, runs):
    first, *rest = Latex()(frame, runs, tmp_path)
    text = first.read_text()
    assert first.name == "leaderboard.tex" and balanced(text) and len(rest) == 3
    assert re.findall(r"\\input\{(.*)\}", text) == [p.stem for p in rest] and all(p.is_file() for p in rest)
    needed = set(re.search(r"\\usepackage\{(\S+?)\}", rest[0].read_text().splitlines()[0])[1].split(","))
    assert needed <= {name for found in re.findall(r"\\usepackage(?:\[.*\])?\{(.*)\}", text) for name in found.split(",")}
    assert balanced(document([]))


def test_metrics_can_be_chosen_and_unknown_ones_are_refused(tmp_path, frame, runs, crowded):
    assert [c.name for c in shown(crowded, "ra@1 t_total")] == ["ra@1", "t_total"]
    assert len(shown(crowded, "all")) == len(crowded.quality()) + 1
    with pytest.raises(UsageError, match="no board has the metrics nonsense"):
        Latex(metrics="fa@1 nonsense")(frame, runs, tmp_path)
