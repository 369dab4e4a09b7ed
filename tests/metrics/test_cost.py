from dataclasses import fields

from slugbench.bench import Cost, Outcome
from slugbench.metrics.cost import UNITS, Spent


def outcome(cost):
    return Outcome(trial=None, answers={}, oracles=(), cost=cost)


def test_every_cost_has_a_unit():
    assert [f.name for f in fields(Cost) if f.name != "notes"] == list(UNITS)


def test_known_costs_are_passed_on_and_unknown_ones_are_null_with_the_meters_reason():
    values = {v.name: v for v in Spent()(outcome(Cost(t_total=1.5, n_evals=0, notes={"energy_j": "no counter"})))}
    assert (values["t_total"].value, values["t_total"].unit, values["t_total"].better) == (1.5, "s", "lower")
    assert (values["n_evals"].value, values["n_evals"].note) == (0, "")
    assert (values["energy_j"].value, values["energy_j"].note) == (None, "no counter")
    assert (values["t_apply"].value, values["t_apply"].note) == (None, "not measured")


def test_a_model_no_method_made_has_no_costs():
    assert Spent()(outcome(None)) == []
