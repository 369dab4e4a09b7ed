"""Fine-tuning on what is to be kept, in the hope that the rest fades: the mildest baseline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from slugbench.bench import Model, Request, method

from ._common import Allowance, fine_tune, generator_of

if TYPE_CHECKING:
    import torch


@method("ft")
@dataclass(frozen=True)
class FineTuning:
    """Go on training on the retain split alone; how long is chosen on validation data.

    References:
        Warnecke et al., Machine Unlearning of Features and Labels, 2021; a baseline of SalUn's and of SLUG's papers.
    """

    learning_rate: PositiveFloat | None = None
    """None: .1 (SGD) for classifiers, the top of the range that SalUn's authors search, since the .01 to .04 of the papers
    leave a digit of `digits` untouched in these few steps; else 1e-3 (Adam), the best of 1e-3, 2e-3 and 3e-3 on
    `identities`. SLUG's 1e-6 and 1e-7 are for 151 M pre-trained weights."""
    steps: PositiveInt = 80  # papers: 10 epochs
    batch: PositiveInt = 64  # papers: 256; 128 forgets no digit in these steps
    every: PositiveInt = 5
    weight_decay: NonNegativeFloat = 5e-4  # SalUn's and Deep Unlearning's code

    space: ClassVar[Mapping[str, tuple]] = {
        "learning_rate": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
        "batch": (16, 32, 64, 128),
    }

    def __call__(self, request: Request) -> Model:
        """The fine-tuned model."""
        generator = generator_of(request)

        def losses(allowance: Allowance) -> Iterator[torch.Tensor]:
            for batch in allowance.forever(request.retain, self.batch, generator):
                yield request.objective.loss(request.model, batch)

        return fine_tune(
            request,
            losses,
            learning_rate=self.learning_rate or (1e-1 if request.objective.kind == "classifier" else 1e-3),
            steps=self.steps,
            every=self.every,
            stop=False,
            weight_decay=self.weight_decay,
        )
