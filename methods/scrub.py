"""SCRUB: a student that obeys the original on what is kept and disobeys it on what is to be forgotten."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from slugbench.bench import Batch, Model, Request, method

from ._common import Allowance, fine_tune, generator_of

if TYPE_CHECKING:
    import torch


@method("scrub")
@dataclass(frozen=True)
class Scrub:
    """Ascend KL(original, model) over the forget split, then descend gamma L + alpha KL(original, model) over the rest.

    Both in each of the first `max_epochs` epochs, the descent alone in the others. The first ascent starts where KL is 0
    and has no slope: only what the descent then moves lets the next one bite.

    KL is over the answers to the fixed list of candidates, at temperature T: zero-shot names on CLIP, classes else.

    References:
        Kurmanji et al., Towards Unbounded Machine Unlearning, 2023: its algorithm 1.
    """

    gamma: NonNegativeFloat = 1.0  # gamma, alpha, T and both numbers of epochs: the authors' small-scale code
    alpha: NonNegativeFloat = 0.5
    temperature: PositiveFloat = 4.0
    max_epochs: PositiveInt = 3  # its msteps
    epochs: PositiveInt = 5
    learning_rate: PositiveFloat | None = None
    """None: 2e-3 (SGD) for classifiers, between the authors' 5e-4, which forgets no digit of `digits`, and the 5e-3 of Zhao
    et al. (What Makes Unlearning Hard and What to Do About It, 2024); else 1e-3 (Adam)."""
    batch: PositiveInt = 16
    retain_batch: PositiveInt | None = None
    """None: 64 for classifiers, else 128, since small CLIPs have few steps for five epochs; the authors' 32."""
    every: PositiveInt = 5
    weight_decay: NonNegativeFloat = 5e-4  # the authors' code; its drops of the learning rate late on are left out

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
        retain_batch = self.retain_batch or (64 if objective.kind == "classifier" else 128)

        def distance(batch: Batch) -> torch.Tensor:
            import torch

            with torch.no_grad():
                taught = objective.logits(original, batch)
            return divergence(taught, objective.logits(model, batch), self.temperature)

        def losses(allowance: Allowance) -> Iterator[torch.Tensor]:
            for epoch in range(self.epochs):
                if epoch < self.max_epochs:
                    for batch in allowance.batches(request.forget, self.batch, generator):
                        yield -distance(batch)
                for batch in allowance.batches(request.retain, retain_batch, generator):
                    yield self.gamma * objective.loss(model, batch) + self.alpha * distance(batch)

        forget, retain = len(request.forget) / self.batch, len(request.retain) / retain_batch
        return fine_tune(
            request,
            losses,
            learning_rate=self.learning_rate or (2e-3 if objective.kind == "classifier" else 1e-3),
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
