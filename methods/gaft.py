"""Gradient ascent, then fine-tuning, epoch by epoch: forget and repair in turn."""

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


@method("gaft")
@dataclass(frozen=True)
class AscentThenFineTuning:
    """Each epoch ascends the forget loss over the whole forget split, then descends the loss over all that is kept.

    Two phases with one optimiser, not mixed batches; validation is looked at where an epoch ends. In SLUG's comparison
    the phases count their steps apart, so that its learning rate jumps between them; here it is constant.

    References:
        Cai et al., Targeted Unlearning with Single Layer Unlearning Gradient, 2025: GAFT of its comparison.
    """

    learning_rate: PositiveFloat | None = None
    """None: 1e-2 (SGD) for classifiers; 1e-3 (Adam) for CLIP, the best of 1e-3 and 3e-3 on `identities`, and 1e-4 for
    text-to-image models, the best of 1e-4, 3e-4 and 1e-3 on the development requests of `canvas`. SLUG's 1e-6 and 1e-7 are
    for 151 M weights and thousands of steps."""
    epochs: PositiveInt = 10  # SLUG's comparison
    batch: PositiveInt = 32  # SLUG's
    retain_batch: PositiveInt = 128  # as the small models were trained; SLUG's 32
    weight_decay: NonNegativeFloat = 5e-4  # as for the other baselines; SLUG's .1 is nothing at its learning rates

    space: ClassVar[Mapping[str, tuple]] = {
        "learning_rate": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
        "batch": (8, 16, 32),
        "retain_batch": (32, 64, 128),
    }

    def __call__(self, request: Request) -> Model:
        """The model after the epoch that validation prefers."""
        model, objective, generator = request.model, request.objective, generator_of(request)

        def losses(allowance: Allowance) -> Iterator[torch.Tensor]:
            for _ in range(self.epochs):
                for batch in allowance.batches(request.forget, self.batch, generator):
                    yield -objective.forget_loss(model, batch)
                for batch in allowance.batches(request.retain, self.retain_batch, generator):
                    yield objective.loss(model, batch)

        epoch = math.ceil(len(request.forget) / self.batch) + math.ceil(len(request.retain) / self.retain_batch)
        return fine_tune(
            request,
            losses,
            learning_rate=self.learning_rate or {"classifier": 1e-2, "diffusion": 1e-4}.get(objective.kind, 1e-3),
            steps=self.epochs * epoch,
            every=epoch,
            stop=False,
            weight_decay=self.weight_decay,
        )
