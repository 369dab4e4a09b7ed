import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from slugbench.bench.registry import REGISTRY
from slugbench.reports import facts, html, latex, markdown, text, tidy
from slugbench.reports.figures import Figures


@pytest.fixture(scope="module")
def page(frame, runs):
    return html.page(frame, runs)


class Reader(HTMLParser):
    """Collects tags, attributes that load something, ids, and checks that what is opened is closed."""

    VOID = ("meta", "br", "path", "use", "line", "rect")

    def __init__(self):
        super().__init__()
        self.open, self.loads, self.ids, self.tags = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.ids += [v for k, v in attrs if k == "id"]
        self.loads += [
            v
            for k, v in attrs
            if k in {"src", "srcset", "href", "xlink:href", "data", "poster", "action"} and not v.startswith("#")
        ]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_the_page_loads_nothing_and_is_well_formed(page):
    reader = Reader()
    reader.feed(page)
    assert not reader.open and not reader.loads
    assert not {"script", "link", "img", "iframe", "object", "embed"} & set(reader.tags)
    assert "@import" not in page and not re.search(r"url\((?!#)", page)
    assert len(reader.ids) == len(set(reader.ids))


def test_links_within_the_page_lead_somewhere(page):
    ids = set(re.findall(r'\bid="([^"]+)"', page))
    assert {a for a in re.findall(r'href="#([^"]+)"', page)} <= ids
    assert {a for a in re.findall(r"url\(#([^)]+)\)", page)} <= ids


def test_error_messages_cannot_become_html(page, made):
    assert "<script>" not in page
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; &#34;quotes&#34;" in page


def test_the_page_says_what_a_reader_asks(page):
    for part in ("quick", "2026-01-02", "50 ok", "1 timeout", "1 of 2 gates hold", "slugbench run quick --out results/quick",
                 "joint requests",
                 "single requests", "never ordered",
                 "digits has none", "torch", "nearest to the oracle", "1/2†",
                 "A gate is missed"):  # fmt: skip
        assert part.lower() in page.lower()
    assert page.count("<svg") == 9  # three boards with three figures each


def test_everything_comes_out_the_same_twice(tmp_path, frame, runs):
    shuffled = frame.sample(frac=1, random_state=0)
    assert html.page(frame, runs) == html.page(frame, runs)
    assert markdown.document(frame, runs) == markdown.document(shuffled, runs)
    assert facts.fingerprint(frame) == facts.fingerprint(shuffled) != facts.fingerprint(frame.assign(value=1.0))
    digits = frame[frame["task"] == "digits"]
    first, second = (Figures()(digits, runs, tmp_path / name) for name in "ab")
    assert len(first) == 1 + 5 * 2  # captions; five figures as PDF and SVG
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]


def test_the_text_fits_a_terminal(tmp_path, frame, runs, made):
    long = frame.assign(method=frame["method"].replace("ga", "a_method_whose_name_is_far_longer_than_any_column"))
    long["error"] = long["error"].where(long["error"].isna(), "Error: " + "words and " * 60)
    for table in (frame, long):
        (path,) = text.Text()(table, runs, tmp_path)
        lines = path.read_text().splitlines()
        assert max(map(len, lines)) <= 120
        assert any("fa@1" in x and "ra@1" in x and "t_total" in x for x in lines)
    assert "Gates missed" in path.read_text()


def test_markdown_tables_have_as_many_cells_in_each_row(frame, runs):
    rows = [x for x in markdown.document(frame, runs).splitlines() if x.startswith("|")]
    bars = [len(re.findall(r"(?<!\\)\|", x)) for x in rows]
    rules = [i for i, x in enumerate(rows) if set(x) <= set("|-: ")]
    for start, end in zip(rules, [*[r - 1 for r in rules[1:]], len(rows)], strict=True):
        assert set(bars[start - 1 : end]) == {bars[start]}
    assert "&lt;script>" in markdown.document(frame, runs)


def test_csv_holds_both_tables(tmp_path, frame, runs):
    leaderboard, table = tidy.Csv()(frame, runs, tmp_path)
    assert len(pd.read_csv(table)) == len(frame)
    board = pd.read_csv(leaderboard)
    assert set(board["metric"]) >= {"distance", "fa@1", "acc_forget", "t_total"}
    assert board.loc[board["control"], "rank_low"].isna().all()


def test_runs_that_say_nothing_still_give_reports(tmp_path, frame, made):
    for table in (
        frame[frame["task"] == "digits"],
        made.table(made.cells("t", "q", "slug", status="crashed")),
        frame.iloc[:0],
    ):
        for report in (html.Html(), markdown.Markdown(), tidy.Csv(), text.Text(), latex.Latex(), Figures(dpi=40)):
            written = report(table, [{}], tmp_path)
            assert all(p.is_file() for p in written)
    assert "Nothing is recorded" in html.page(frame[frame["task"] == "digits"], [])


def test_unequal_provenance_is_all_listed(frame, runs):
    mixed = frame.assign(provenance=[("f00d" if i % 2 else "beef") * 16 for i in range(len(frame))])
    assert {o.digest[:4]: bool(o.facts) for o in facts.origins(mixed, runs)} == {"f00d": True, "beef": False}


def test_reports_are_registered_and_import_neither_torch_nor_seaborn():
    assert {"html", "md", "csv", "text", "figures", "latex"} <= set(REGISTRY.names("report"))
    code = "import sys, slugbench.reports.html, slugbench.reports.text, slugbench.reports.tidy, slugbench.reports.markdown; "
    code += "import slugbench.reports.latex, slugbench.reports.figures; "
    code += "print(sorted({'torch', 'seaborn', 'matplotlib', 'scipy'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert done.stdout.strip() == "[]"
