"""A method that does nothing on a task that asks nothing: what is left is the harness."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from slugbench.bench import Budget, Listed, Request, Scores, TensorSplit, Trial, Validation, method, task


class Nothing:
    kind = "classifier"

    def loss(self, model, batch):
        return model(batch["image"]).mean()


@task("nothing")
@dataclass(frozen=True)
class NothingAsked:
    """One image, one weight."""

    base_seeds: ClassVar = (0,)
    preload: ClassVar = ()

    def requests(self):
        return (Listed("nothing", ("0",), "test"),)

    def build(self, request_id, base_seed):
        model, one = (
            torch.nn.Linear(1, 1),
            TensorSplit({"image": torch.zeros(1, 1), "label": torch.zeros(1, dtype=torch.long)}),
        )
        scores = Scores(0.0, 1.0, 0.0)
        request = Request(
            model, ("0",), one, one, Validation(one, one), Nothing(), lambda model, retain=True: scores, Budget(1, 1, 1), 0.0
        )
        answers = {"rank": np.zeros(1, int)}
        questions = {"split": np.array(["forget"])}
        return Trial(request, questions, lambda model: answers, answers, (answers,), lambda s: model, 1, joint=False)

    def fingerprint(self, request_id, base_seed):
        return ""


@method("nothing_done")
@dataclass(frozen=True)
class NothingDone:
    """Give the model back."""

    def __call__(self, request):
        return request.model
