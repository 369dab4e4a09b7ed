"""Outcomes made of columns alone: no task, no model."""

from types import SimpleNamespace

import numpy as np

from slugbench.bench import Outcome, Trial


def planted(columns, model, original=None, oracles=(), *, targets=("one",), joint=None):
    """An outcome of answers as given.

    Args:
        columns: the questions; `near`, `index` and `label` are made up where missing.
        model, original, oracles: answers; arrays alone are the column `score`.
        targets: () for a request for samples.
        joint: by default whether there are several targets.
    """

    def answers(given):
        given = given if isinstance(given, dict) else {"score": np.asarray(given, float)}
        return {"rank": np.zeros(n, int), "predicted": np.zeros(n, int), **given}

    columns = {name: np.asarray(column) for name, column in columns.items()}
    n = len(columns["split"])
    columns = {"near": np.zeros(n, bool), "index": np.arange(n), "label": np.zeros(n, int)} | columns
    request = SimpleNamespace(objective=SimpleNamespace(kind="clip"), targets=targets)
    oracles = tuple(answers(oracle) for oracle in oracles)
    original = answers(model if original is None else original)
    joint = len(targets) > 1 if joint is None else joint
    trial = Trial(request, columns, lambda model: {}, original, oracles, lambda s: None, 10, joint)
    return Outcome(trial, answers(model), oracles)


def blocks(**sizes):
    """`split` of so many questions each, in this order; a name may end in `_` and a number to appear more than once."""
    names = [name.rstrip("0123456789").removesuffix("_") for name in sizes]
    return np.repeat(names, list(sizes.values()))
