"""l1-sparse: fine-tuning on what is kept under a pull of all weights to zero, which lets the rest fade sooner."""

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


@method("l1_sparse")
@dataclass(frozen=True)
class L1Sparse:
    """Descend L(retain batch) + alpha_t ||theta||_1 over all parameters, alpha_t = alpha (1 - t / steps).

    Nothing is pruned: the penalty alone makes weights small.

    References:
        Jia et al., Model Sparsity Can Simplify Machine Unlearning, 2023: l1-sparse, the linearly decreasing scheduler
        (its code lowers alpha once an epoch).
    """

    alpha: PositiveFloat = 1e-4  # unpublished; the top of an independent grid of 1e-6 to 1e-4
    learning_rate: PositiveFloat | None = None
    """None: .1 (SGD) for classifiers, since the paper's .01 leaves a digit of `digits` untouched in these few steps; else
    1e-3 (Adam), better than 3e-3 on `identities`."""
    epochs: PositiveInt = 10  # the paper
    batch: PositiveInt = 64
    weight_decay: NonNegativeFloat = 5e-4  # the paper's code has both decays

    space: ClassVar[Mapping[str, tuple]] = {
        "alpha": (1e-6, 1e-5, 1e-4, 1e-3),
        "learning_rate": (1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
        "batch": (32, 64, 128),
    }

    def __call__(self, request: Request) -> Model:
        """The model as validation preferred it, of a look every eight steps and at least one an epoch."""
        model, objective, generator = request.model, request.objective, generator_of(request)
        epoch = math.ceil(len(request.retain) / self.batch)
        steps = min(self.epochs * epoch, request.budget.max_steps)

        def losses(allowance: Allowance) -> Iterator[torch.Tensor]:
            for step, batch in enumerate(allowance.forever(request.retain, self.batch, generator)):
                yield objective.loss(model, batch) + self.alpha * (1 - step / steps) * l1_norm(model)

        return fine_tune(
            request,
            losses,
            learning_rate=self.learning_rate or (1e-1 if objective.kind == "classifier" else 1e-3),
            steps=steps,
            every=min(epoch, 8),
            stop=False,
            weight_decay=self.weight_decay,
        )


def l1_norm(model: Model) -> torch.Tensor:
    """Sum of the magnitudes of all parameters, biases and norms included."""
    import torch

    return torch.stack([parameter.abs().sum() for parameter in model.parameters()]).sum()
