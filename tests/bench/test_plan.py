"""What a suite and its further crossings come to."""

import pytest

from slugbench.bench.plan import Suite, expand, load_suite

from ..toys import TOY_TASK, restored_registry

FACTS = {"name": "s", "tasks": ["toy"], "methods": ["ft", "original"], "metrics": ["accuracy"], "requests": 1}


@pytest.fixture(autouse=True)
def toy_task():
    with restored_registry() as registry:
        registry.load_plugin(str(TOY_TASK))
        yield


def planned(suite):
    return {
        (cell.request, cell.method, cell.base_seed, cell.method_seed): [judge.spec for judge in cell.judges]
        for cell in expand(suite, device="cpu")
    }


def test_a_further_crossing_adds_cells_and_metrics_and_runs_no_cell_twice():
    also = {"method_seeds": [0, 1], "methods": ["ft"], "metrics": ["undoing"]}
    found = planned(Suite(**FACTS, base_seeds=[0, 1], also=[also | {"base_seeds": [0]}]))
    once = {("single", method, base, 0): ["accuracy"] for method in ("ft", "original") for base in (0, 1)}
    assert found == once | {("single", "ft", 0, 0): ["accuracy", "undoing"], ("single", "ft", 0, 1): ["undoing"]}


def test_what_a_command_line_changes_is_changed_in_further_crossings_too():
    suite = Suite(**FACTS, also=[{"base_seeds": [1], "metrics": ["undoing"]}]).with_changes({"base_seeds": [0]})
    assert planned(suite) == {("single", method, 0, 0): ["accuracy", "undoing"] for method in ("ft", "original")}


def test_metrics_that_need_weights_are_taken_only_by_name():
    (judges, *_) = planned(Suite(**FACTS | {"metrics": None})).values()
    assert "accuracy" in judges and "relearning" not in judges


def test_a_cell_and_its_crossings_share_a_key_whatever_the_metrics():
    plain, more = (
        {cell.name: (cell.key, cell.trial_key) for cell in expand(suite, device="cpu")}
        for suite in (Suite(**FACTS), Suite(**FACTS, also=[{"metrics": ["undoing"]}]))
    )
    assert plain == more


def test_trials_differ_in_their_key_and_methods_do_not():
    cells = expand(Suite(**FACTS, base_seeds=[0, 1]), device="cpu")
    assert len({cell.trial_key for cell in cells}) == 2 < len({cell.key for cell in cells}) == 4
    assert {cell.trial_key for cell in cells if cell.base_seed} != {cell.trial_key for cell in cells if not cell.base_seed}


@pytest.mark.parametrize("name", ["quick", "standard", "full"])
def test_shipped_suites_name_what_there_is(name):
    assert expand(load_suite(name), device="cpu")
