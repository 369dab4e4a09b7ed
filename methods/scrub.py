"""SCRUB: a student that obeys the original on what is kept and disobeys it on what is to be forgotten."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from slugbench.bench import Model, Request, method

from ._common import Allowance, fine_tune, generator_of

if TYPE_CHECKING:
    import torch


@method("scrub")
@dataclass(frozen=True)
class Scrub:
    """Each of the first `max_epochs` epochs ascends KL(original, model) over the forget split; every epoch then descends
    gamma L + alpha KL(original, model) over what is kept.

    KL is over the answers to the fixed list of candidates, at temperature T: zero-shot names on CLIP, classes else.

    References:
        Kurmanji et al., Towards Unbounded Machine Unlearning, 2023: its algorithm 1.
    """

    gamma: NonNegativeFloat = 1.0
    alpha: NonNegativeFloat = 0.5
    temperature: PositiveFloat = 4.0
    max_epochs: PositiveInt = 3
    epochs: PositiveInt = 5
    learning_rate: PositiveFloat | None = None
    batch: PositiveInt = 16
    retain_batch: PositiveInt = 64
    every: PositiveInt = 5
    weight_decay: NonNegativeFloat = 5e-4

    space: ClassVar[Mapping[str, tuple]] = {
        "alpha": (0.001, 0.1, 0.5),
        "max_epochs": (2, 3, 4),
        "learning_rate": (3e-4, 5e-4, 1e-3, 2e-3, 5e-3),
        "batch": (8, 16, 32),
    }

    def __call__(self, request: Request) -> Model:
        """The model at the step that validation prefers."""
        model, objective, generator = request.model, request.objective, generator_of(request)
        original = copy.deepcopy(model)

        def obedience(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
            import torch

            with torch.no_grad():
                taught = objective.logits(original, dict(batch))
            return divergence(taught, objective.logits(model, dict(batch)), self.temperature)

        def losses(allowance: Allowance) -> Iterator[torch.Tensor]:
            for epoch in range(self.epochs):
                if epoch < self.max_epochs:
                    for batch in allowance.batches(request.forget, self.batch, generator):
                        yield -obedience(batch)
                for batch in allowance.batches(request.retain, self.retain_batch, generator):
                    yield self.gamma * objective.loss(model, batch) + self.alpha * obedience(batch)

        forget, retain = len(request.forget) / self.batch, len(request.retain) / self.retain_batch
        return fine_tune(
            request,
            losses,
            learning_rate=self.learning_rate or (5e-3 if objective.kind == "classifier" else 1e-3),
            steps=self.epochs * (math.ceil(forget) + math.ceil(retain)),
            every=self.every,
            stop=False,
            weight_decay=self.weight_decay,
        )


def divergence(original_BC: torch.Tensor, logits_BC: torch.Tensor, temperature: float) -> torch.Tensor:
    """T^2 times the mean over samples of KL(softmax(original / T), softmax(logits / T)), in nats.

    The factor keeps the gradient's size whatever the temperature.
    """
    from torch.nn.functional import kl_div, log_softmax

    taught, given = (log_softmax(logits / temperature, dim=1) for logits in (original_BC, logits_BC))
    return temperature**2 * kl_div(given, taught, reduction="batchmean", log_target=True)
