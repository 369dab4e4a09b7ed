"""Gradient ascent: undo training on the forget split by training on it backwards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from slugbench.bench import Model, Request, method

from ._common import Allowance, fine_tune, generator_of

if TYPE_CHECKING:
    import torch


@method("ga")
@dataclass(frozen=True)
class GradientAscent:
    """Ascend the forget loss on the forget split, until validation says that the targets are forgotten.

    The loss has no upper end and nothing protects what is kept, so everything lies in when to stop: validation looks
    at the targets all the time.

    References:
        Thudi et al., Unrolling SGD: Understanding Factors Influencing Machine Unlearning, 2022.
        On CLIP the loss is 1 - cos, as in the comparison of Cai et al., Targeted Unlearning with Single Layer
        Unlearning Gradient, 2025.
    """

    learning_rate: PositiveFloat | None = None
    """None: 1e-3 (SGD) for classifiers, the highest of SalUn's 1e-4 to 1e-3; else 1e-4 (Adam). SLUG's 1e-6 and 1e-7 are
    for 151 M weights and thousands of steps."""
    steps: PositiveInt = 100  # at most; papers: 5 to 10 epochs
    batch: PositiveInt = 32
    every: PositiveInt | None = None
    """Steps between two looks at validation. None: 1; for text-to-image models 5, since a look draws pictures."""
    weight_decay: NonNegativeFloat = 5e-4  # SalUn's and Deep Unlearning's code

    space: ClassVar[Mapping[str, tuple]] = {
        "learning_rate": (3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3),
        "batch": (8, 16, 32),
    }

    def __call__(self, request: Request) -> Model:
        """The model at the step where the targets were forgotten."""
        generator = generator_of(request)

        def losses(allowance: Allowance) -> Iterator[torch.Tensor]:
            for batch in allowance.forever(request.forget, self.batch, generator):
                yield -request.objective.forget_loss(request.model, batch)

        return fine_tune(
            request,
            losses,
            learning_rate=self.learning_rate or (1e-3 if request.objective.kind == "classifier" else 1e-4),
            steps=self.steps,
            every=self.every or (5 if request.objective.kind == "diffusion" else 1),
            stop=True,
            weight_decay=self.weight_decay,
        )
