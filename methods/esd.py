"""Erased Stable Diffusion: teach the model to draw away from the concept, by its own predictions."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from slugbench.bench import Model, Request, TextToImage, method

from ._common import Allowance, fine_tune, generator_of
from ._cross_attention import crosses, only, why_not

if TYPE_CHECKING:
    import torch


def is_rest(name: str) -> bool:
    """Whether ESD-u changes a parameter of the U-Net, by the authors' names for what it leaves."""
    return not crosses(name) and not name.startswith(("unet.time_embedding", "unet.conv_out", "unet.conv_norm_out"))


@method("esd")
@dataclass(frozen=True)
class ErasedStableDiffusion:
    """Fine-tune the U-Net so that under a prompt with the target it predicts what is opposite to the target.

        prediction(x_t, c) <- p0(x_t, nothing) - strength (p0(x_t, c) - p0(x_t, nothing))

    p0 is the original's prediction, and x_t comes from the model being trained, guided to c, so that no picture is used:
    of the forget split only prompts are read.

    References:
        Gandikota et al., Erasing Concepts from Diffusion Models, 2023.
    """

    part: Literal["cross", "rest", "all"] = "cross"
    """`cross`: cross-attention alone (ESD-x, for styles, and what UnlearnCanvas compares); `rest`: all but cross-attention,
    the embedding of time and the last layer (ESD-u, for objects); `all` of the U-Net."""
    strength: NonNegativeFloat = 1.0
    """The paper's negative guidance."""
    guidance: PositiveFloat = 3.0  # of the drawing that x_t is from: the authors' code
    learning_rate: PositiveFloat = 1e-3
    """Of Adam. The authors' 1e-5 is for 860 M weights and 1,000 steps."""
    steps: PositiveInt = 60  # at most; the authors: 1,000
    batch: PositiveInt = 8  # the authors: 1
    every: PositiveInt = 10

    space: ClassVar[Mapping[str, tuple]] = {
        "learning_rate": (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3),
        "strength": (0.5, 1.0, 2.0),
        "part": ("cross", "rest", "all"),
    }

    def skips(self, request: Request) -> str | None:
        """Why it does not run on a request."""
        return why_not(request)

    def __call__(self, request: Request) -> Model:
        """The model when validation first finds the target forgotten, or the best on the way."""
        objective, generator = request.objective, generator_of(request)
        assert isinstance(objective, TextToImage)
        original = copy.deepcopy(request.model)

        def losses(allowance: Allowance) -> Iterator[torch.Tensor]:
            for batch in allowance.forever(request.forget, self.batch, generator):
                yield self.loss(request.model, original, objective, batch["text"], generator)

        masks = None if self.part == "all" else only(request, crosses if self.part == "cross" else is_rest)
        return fine_tune(
            request,
            losses,
            learning_rate=self.learning_rate,
            steps=self.steps,
            every=self.every,
            stop=True,
            masks=masks,
        )

    def loss(
        self, model: Model, original: Model, objective: TextToImage, text: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        """Mean squared distance of the model's prediction from where it is to go."""
        import torch
        from torch.nn.functional import mse_loss

        state = objective.drawn(model, text, generator, guidance=self.guidance)
        with torch.no_grad():
            under, without = (objective.predict(original, state, said) for said in (text, objective.nothing.to(text.device)))
        return mse_loss(objective.predict(model, state, text), without - self.strength * (under - without))
