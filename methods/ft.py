"""Fine-tuning on what is to be kept, in the hope that the rest fades: the mildest baseline."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slugbench.bench import Model, Request, method

from ._common import Allowance, fine_tune, generator_of

if TYPE_CHECKING:
    import torch


@method("ft")
@dataclass(frozen=True)
class FineTuning:
    """Go on training on the retain split alone, until validation says that the targets are forgotten, if ever.

    References:
        Warnecke et al., Machine Unlearning of Features and Labels, 2021; a baseline of SalUn's and of SLUG's papers.
    """

    learning_rate: float = 3e-4  # SalUn's papers use .01 to .04 (SGD), SLUG's 1e-6 on a CLIP of 151 M weights
    tries: int = 1  # more would raise the rate until the model breaks, which is forgetting but no fine-tuning
    steps: int = 60  # of a try; papers: 10 epochs
    batch: int = 128
    every: int = 5

    def __call__(self, request: Request) -> Model:
        """The fine-tuned model."""
        generator = generator_of(request)

        def losses(allowance: Allowance) -> Iterator[torch.Tensor]:
            for batch in allowance.forever(request.retain, self.batch, generator):
                yield request.objective.loss(request.model, batch)

        return fine_tune(
            request, losses, learning_rate=self.learning_rate, tries=self.tries, steps=self.steps, every=self.every
        )
