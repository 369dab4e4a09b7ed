"""NegGrad+: descend on what is kept and ascend on what is to be forgotten, in one step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from slugbench.bench import Model, Request, method

from ._common import Allowance, fine_tune, generator_of

if TYPE_CHECKING:
    import torch


@method("neggrad_plus")
@dataclass(frozen=True)
class NegGradPlus:
    """Each step descends a L(retain batch) - (1 - a) L_f(forget batch); the forget split is cycled.

    On CLIP L is the contrastive loss and L_f is 1 - cos.

    References:
        Kurmanji et al., Towards Unbounded Machine Unlearning, 2023 (a baseline of it); Zhao et al., What Makes
        Unlearning Hard and What to Do About It, 2024.
    """

    a: float = 0.95  # copies of SCRUB's code have .9999; in these few steps .99 already forgets no digit
    learning_rate: PositiveFloat | None = None
    """None: both papers' .01 (SGD) for classifiers; else 3e-4 (Adam), better than 1e-3 on `identities`."""
    epochs: PositiveInt = 5  # of the retain split; both papers' codes
    batch: PositiveInt = 32
    retain_batch: PositiveInt = 32  # with this rate and a, 64 is too few steps to forget a digit in
    every: PositiveInt = 5
    weight_decay: NonNegativeFloat = 5e-4  # SCRUB's code

    space: ClassVar[Mapping[str, tuple]] = {
        "a": (0.5, 0.8, 0.9, 0.95, 0.99),
        "learning_rate": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
        "retain_batch": (32, 64, 128),
    }

    def __post_init__(self) -> None:
        if not 0 < self.a < 1:
            raise ValueError(f"a={self.a} is the weight of what is kept; give a number above 0 and below 1.")

    def __call__(self, request: Request) -> Model:
        """The model at the step that validation prefers."""
        model, objective, generator = request.model, request.objective, generator_of(request)

        def losses(allowance: Allowance) -> Iterator[torch.Tensor]:
            pairs = zip(
                allowance.forever(request.retain, self.retain_batch, generator),
                allowance.forever(request.forget, self.batch, generator),
                strict=False,  # either ends where the budget does
            )
            for retain, forget in pairs:
                yield self.a * objective.loss(model, retain) - (1 - self.a) * objective.forget_loss(model, forget)

        return fine_tune(
            request,
            losses,
            learning_rate=self.learning_rate or (1e-2 if objective.kind == "classifier" else 3e-4),
            steps=self.epochs * math.ceil(len(request.retain) / self.retain_batch),
            every=self.every,
            stop=False,
            weight_decay=self.weight_decay,
        )
