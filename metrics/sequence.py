"""What becomes of earlier requests, and of what is kept, when people are forgotten one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from slugbench.bench import Model, Outcome, Value, metric

from .accuracy import average
from .representation import on_device_of
from .robustness import right


@metric("sequence")
@dataclass(frozen=True)
class Sequence:
    """The method on one target of a joint request after the other, each time on the model it made the time before.

    Set it beside `fa@1` and `ra@1`, which are of all targets at once. Targets still to come are retained until it is their
    turn, those gone are in no split; nobody trains on them, and nothing keeps them forgotten.

    An oracle lacks all targets from the beginning; its values are what it says of the same pictures.

    References:
        Shi et al., MUSE: Machine Unlearning Six-Way Evaluation for Language Models, 2024 (sustainability).
    """

    needs_model: ClassVar[bool] = True

    def __call__(self, outcome: Outcome) -> list[Value]:
        """Values, after 1, 2, 4, ... m requests: `seq_fa@m`, forget accuracy on the m targets so far, and `seq_ra@m`, retain
        accuracy, in [0, 1]; `seq_rebound`, forget accuracy on each target in the end less that right after its request,
        and `seq_slope`, the retain accuracy a request adds, both in [-1, 1]. None but for joint requests."""
        trial = outcome.trial
        if trial.alone is None or trial.original_model is None or outcome.model is None:
            return []
        label_M = [int(next(iter(trial.request.forget.of(t).batches(1)))["label"][0]) for t in trial.request.targets]
        label = trial.questions["label"][trial.questions["split"] == "forget"]
        last = len(label_M)
        forget, retain = [], []  # after 0, 1, 2, ... requests
        for model in self._models(outcome, last):
            named, unit = right(trial, model)
            kept, kept_unit = right(trial, model, "retain")
            forget.append(named)
            retain.append(kept)
        values = []
        for m in (m for m in range(1, last + 1) if m & (m - 1) == 0 or m == last):  # powers of two, and the end
            so_far = np.isin(label, label_M[:m])
            values.append(average(f"seq_fa@{m}", forget[m][so_far], unit[so_far], "oracle"))
            values.append(average(f"seq_ra@{m}", retain[m], kept_unit, "higher"))
        turn = np.array([label_M.index(number) for number in label]) + 1
        after_its_own = np.choose(turn, forget)
        values.append(average("seq_rebound", forget[last] - after_its_own, unit, "oracle"))
        values.append(average("seq_slope", (retain[last] - retain[0]) / last, kept_unit, "higher"))
        return values

    def _models(self, outcome: Outcome, count: int) -> Iterator[Model]:
        """The model before the first request and after each; an oracle is the same at all times."""
        trial, model = outcome.trial, outcome.model
        assert model is not None and trial.alone is not None and trial.original_model is not None
        if outcome.unlearn is None:
            yield from [model] * (count + 1)
            return
        model = on_device_of(model, trial.original_model())
        yield model
        for place in range(count):
            model = outcome.unlearn(trial.alone(place, model))
            yield model
