import csv
import io
from types import SimpleNamespace

import pytest

from slugbench.bench import forecast
from slugbench.bench.forecast import MIN_DONE, Sort, expected
from slugbench.bench.plan import expand, load_suite
from slugbench.bench.registry import load


def sort(method="ga", kind="single", metrics="", task="identities"):
    return Sort(task, kind, method, metrics)


def cell(name, method="ga", targets=("a",), task="identities", judges=("cost",)):
    return SimpleNamespace(
        name=name, task=task, method=method, targets=targets, judges=[SimpleNamespace(name=judge) for judge in judges]
    )


def record(seconds, method="ga", targets=("a",), task="identities", values=("cost",)):
    facts = {"task": task, "method": method, "targets": list(targets)}
    return {"wall_seconds": seconds, "facts": facts, "values": dict.fromkeys(values), "concurrent": True}


@pytest.fixture
def shipped(monkeypatch):
    def use(known):
        monkeypatch.setattr(forecast, "shipped", lambda: known)

    load()
    return use


def test_a_cell_takes_what_its_sort_does_else_what_comes_nearest():
    known = {
        sort("ga"): 4.0,
        sort("ft"): 6.0,
        sort("ga", metrics="relearning"): 14.0,
        sort("ga", "joint"): 20.0,
    }
    assert expected(sort("ga"), known) == 4
    assert expected(sort("ft", metrics="relearning"), known) == 6 + (14 - 4)  # its own, and what the attack adds to ga
    assert expected(sort("new"), known) == 5  # other methods
    assert expected(sort("new", metrics="relearning"), known) == 14
    assert expected(sort("ga", "samples"), known) == 11  # anything of the task
    assert expected(sort(task="other"), known) is None
    assert expected(sort("ga", metrics="relearning+shadow_models"), known) is None  # nobody knows what the latter takes


def test_what_is_left_is_the_sum_of_what_is_not_done(shipped):
    shipped({sort("ga"): 4.0, sort("ft"): 6.0})
    cells = [cell("one"), cell("two", "ft"), cell("three", task="other")]
    assert forecast.forecast(cells, {}) == (10.0, 1, False)
    assert forecast.forecast(cells, {"one": record(4.0)}) == (6.0, 1, False)


def test_a_slower_machine_is_known_by_its_cells(shipped):
    """Ten cells that took three times as long: so will those of a sort that has not run here."""
    shipped({sort("ga"): 4.0, sort("ft"): 6.0})
    done = {str(i): record(12.0) for i in range(MIN_DONE)}
    cells = [*(cell(name) for name in done), cell("more"), cell("ft", "ft")]
    found = forecast.forecast(cells, done)
    assert found.measured and found.seconds == pytest.approx(12 + 18) and found.unknown == 0


def test_costly_metrics_are_told_apart_and_cheap_ones_are_not(shipped):
    shipped({sort("ga"): 4.0, sort("ga", metrics="quantised+relearning"): 20.0})
    cells = [cell("one", judges=("cost", "tow")), cell("two", judges=("relearning", "cost", "quantised"))]
    assert forecast.forecast(cells, {}).seconds == 24


def test_what_ships_is_written_from_records_and_read_back(monkeypatch, tmp_path):
    done = {"a": record(1.0), "b": record(3.0), "c": record(8.0, "slug", ("a", "b"), values=("cost", "relearning:steps=3"))}
    monkeypatch.setattr(forecast, "records", lambda folder: done)
    text = io.StringIO()
    forecast.write(tmp_path, text)
    first, *rows = text.getvalue().splitlines()
    assert first.startswith("# mean seconds a cell took, two or more at a time, on ")
    assert list(csv.reader(rows))[1:] == [
        ["identities", "joint", "slug", "relearning", "8.00", "1"],
        ["identities", "single", "ga", "", "2.00", "2"],
    ]


@pytest.mark.parametrize("name", ["quick", "standard", "standard-canvas"])
def test_the_time_of_every_cell_of_the_shipped_suites_is_known(name):
    load()
    found = forecast.forecast(expand(load_suite(name), device="cpu"), {})
    assert found.seconds > 0 and found.unknown == 0 and not found.measured
