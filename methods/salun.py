"""SalUn: random labels for what is to be forgotten, learned only by the weights that matter to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import PositiveFloat, PositiveInt

from slugbench.bench import Batch, Model, Request, method

from ._common import Allowance, fine_tune, generator_of, mean_gradients

if TYPE_CHECKING:
    import torch


@method("salun")
@dataclass(frozen=True)
class SalUn:
    """Saliency unlearning: mask = top half of |gradient of the forget loss|, then random-label fine-tuning within it.

    Each step descends E_forget[CE(y')] + alpha E_retain[loss] with y' != y drawn anew (the paper's equation 5; its code
    for classifiers takes forget and retain batches in turn instead, which two kinds of data of one size do not need).

    On CLIP, where the paper has no form, CE is that of zero-shot classification over the candidate names, the retain
    loss is the contrastive one, and the mask comes from 1 - cos: the contrastive loss of a batch that shows one concept
    alone is constant, so its gradient says nothing.

    References:
        Fan et al., SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency, 2024.
    """

    keep: float = 0.5  # share of weights that may change: the paper's 50 % threshold
    alpha: PositiveFloat = 9.0  # weight of what is kept: the ratio of retain to forget batches in the paper's 10 % case
    learning_rate: PositiveFloat | None = None
    """None: the paper's .013 (SGD) for classifiers, else 1e-3 (Adam)."""
    steps: PositiveInt = 40  # the paper: 10 epochs
    batch: PositiveInt = 32
    retain_batch: PositiveInt = 96
    every: PositiveInt = 5

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep={self.keep} is the share of weights that may change; give a number above 0, at most 1.")

    def __call__(self, request: Request) -> Model:
        """The fine-tuned model; at least a share 1 - `keep` of its weights are the original's, bit for bit."""
        model, objective, allowance = request.model, request.objective, Allowance(request)
        generator = generator_of(request)
        request.progress("prepare")
        names = [name for tower in objective.weights(model).values() for name in tower]
        gradients = mean_gradients(model, names, objective.forget_loss, allowance.batches(request.forget, self.batch))
        masks = saliency_mask(gradients, self.keep)

        def losses(allowance: Allowance) -> Iterator[torch.Tensor]:
            pairs = zip(
                allowance.forever(request.forget, self.batch, generator),
                allowance.forever(request.retain, self.retain_batch, generator),
                strict=False,  # either ends where the budget does
            )
            for forget, retain in pairs:
                relabelled = objective.relabel(forget, generator)
                yield random_label_loss(request, relabelled) + self.alpha * objective.loss(model, retain)

        return fine_tune(
            request,
            losses,
            learning_rate=self.learning_rate or (0.013 if objective.kind == "classifier" else 1e-3),
            steps=self.steps,
            every=self.every,
            stop=False,
            masks=masks,
            allowance=allowance,
        )


def saliency_mask(gradients: Mapping[str, torch.Tensor], keep: float) -> dict[str, torch.Tensor]:
    """Which weights are salient: the largest |gradients|, ranked globally, over all tensors together.

    Args:
        gradients: name -> gradient summed (or averaged) over batches with its sign, whatever the scale.
        keep: in (0, 1], the share to mark.

    Returns:
        name -> bool tensor of that shape; exactly int(P x keep) entries are True, P being the number of weights.
    """
    import torch

    magnitude_P = torch.cat([gradient.flatten() for gradient in gradients.values()]).abs()
    mask_P = torch.zeros_like(magnitude_P, dtype=torch.bool)
    # ranks instead of a threshold: a threshold keeps too many where magnitudes tie, and unused embeddings tie at 0
    mask_P[magnitude_P.topk(int(len(magnitude_P) * keep), sorted=False).indices] = True
    parts = mask_P.split([gradient.numel() for gradient in gradients.values()])
    return {name: part.view_as(gradients[name]) for name, part in zip(gradients, parts, strict=True)}


def random_label_loss(request: Request, relabelled: Batch) -> torch.Tensor:
    """Cross-entropy with the labels drawn; on CLIP its zero-shot classifier's, so that the true name is pushed away."""
    from torch.nn.functional import cross_entropy

    if request.objective.kind == "clip":
        return cross_entropy(request.objective.logits(request.model, relabelled), relabelled["label"])
    return request.objective.loss(request.model, relabelled)
