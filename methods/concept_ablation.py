"""Concept ablation: have prompts with the target draw what prompts with another concept do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from slugbench.bench import Model, Request, TextToImage, method

from ._common import Allowance, fine_tune, generator_of
from ._cross_attention import only, reads_text, why_not

if TYPE_CHECKING:
    import torch

    from slugbench.bench import Batch


@method("concept_ablation")
@dataclass(frozen=True)
class ConceptAblation:
    """Fine-tune the U-Net to predict under a prompt with the target what it predicts under the same with an anchor.

        || prediction(x_t, prompt with the target) - prediction(x_t, prompt with the anchor), held fixed ||^2
        + keep * the training loss of the anchor's pictures under their own prompts

    Anchors are the retained concepts of the target's domain, x_t their pictures under noise. The model-based variant of the
    paper, whose anchor's prediction is the model's own.

    References:
        Kumari et al., Ablating Concepts in Text-to-Image Diffusion Models, 2023.
    """

    part: Literal["cross", "all"] = "cross"
    """`cross`: what cross-attention makes keys and values of, the paper's choice for styles; `all` of the U-Net."""
    keep: NonNegativeFloat = 1.0  # the paper's weight of the regularisation
    learning_rate: PositiveFloat = 1e-3
    """Of Adam. The authors' 2e-6 to 8e-6 are for 860 M weights and 100 to 800 steps."""
    steps: PositiveInt = 100  # at most
    batch: PositiveInt = 32
    every: PositiveInt = 10

    space: ClassVar[Mapping[str, tuple]] = {
        "learning_rate": (8e-6, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3),
        "keep": (0.0, 0.3, 1.0, 3.0),
        "part": ("cross", "all"),
    }

    def skips(self, request: Request) -> str | None:
        """Why it does not run on a request."""
        return why_not(request)

    def __call__(self, request: Request) -> Model:
        """The model when validation first finds the targets forgotten, or the best on the way."""
        objective, generator = request.objective, generator_of(request)
        assert isinstance(objective, TextToImage)

        def losses(allowance: Allowance) -> Iterator[torch.Tensor]:
            for step, batch in enumerate(allowance.forever(request.retain, self.batch, generator)):
                yield self.loss(request.model, objective, batch, request.targets[step % len(request.targets)])

        masks = only(request, reads_text) if self.part == "cross" else None
        return fine_tune(
            request,
            losses,
            learning_rate=self.learning_rate,
            steps=self.steps,
            every=self.every,
            stop=True,
            masks=masks,
        )

    def loss(self, model: Model, objective: TextToImage, batch: Batch, target: str) -> torch.Tensor:
        """Of one batch of anchors and one target."""
        from torch.nn.functional import mse_loss

        state = objective.noised(batch)
        assert state.wanted is not None
        anchored = objective.predict(model, state, batch["text"])
        ablated = mse_loss(objective.predict(model, state, objective.said(batch, target)), anchored.detach())
        return ablated + self.keep * mse_loss(anchored, state.wanted)
