"""SalUn: random labels for what is to be forgotten, learned only by the weights that matter to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from slugbench.bench import Batch, Model, Request, TextToImage, method

from ._common import Allowance, Tensors, differentiable, mean_gradients
from ._cross_attention import crosses, only, why_not
from .random_label import Labels, RandomLabel, Schedule, everywhere, is_temperature

if TYPE_CHECKING:
    import torch


@method("salun")
@dataclass(frozen=True)
class SalUn:
    """Saliency unlearning: mask = top half of |gradient of the forget loss|, then random labels learned within it.

        mask = 1(|sum over batches of grad loss_f(original)| >= gamma)
        unlearned = mask * (original + change) + (1 - mask) * original

    gamma is the quantile that lets the share `keep` through, over all weights together: layers get unequal shares. What
    is learned, and when, is `random_label`'s; a CLIP's temperature is neither ranked nor changed. On CLIP the mask comes
    from 1 - cos: the contrastive loss of a batch that shows one concept alone is constant, so its gradient says nothing.
    Of a text-to-image model it comes from the loss of the guided prediction, as in the code.

    References:
        Fan et al., SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency, 2024.
    """

    keep: float = 0.5  # share of weights that may change: the paper's 50 % threshold
    labels: Labels = RandomLabel.labels
    schedule: Schedule | None = RandomLabel.schedule
    alpha: PositiveFloat | None = RandomLabel.alpha
    learning_rate: PositiveFloat | None = RandomLabel.learning_rate
    weight_decay: NonNegativeFloat | None = RandomLabel.weight_decay
    steps: PositiveInt | None = RandomLabel.steps
    batch: PositiveInt = RandomLabel.batch
    retain_batch: PositiveInt | None = RandomLabel.retain_batch
    every: PositiveInt | None = RandomLabel.every
    part: Literal["all", "cross"] = "all"
    """`cross`: of a text-to-image model's U-Net rank and change cross-attention alone (UnlearnCanvas's row)."""
    guidance: NonNegativeFloat = 7.5
    """Of the prediction by whose loss a text-to-image model's weights are ranked: the code's; 0 is the training loss."""
    legacy: bool = False
    """Mask the gradient alone, as the code did until 2026: weight decay then shrinks what is masked, too. After 1,760
    steps of its SGD by a factor of .892 at learning rate .013, of .415 at .1."""

    space: ClassVar[Mapping[str, tuple[Any, ...]]] = {"keep": (0.1, 0.5, 0.9), **RandomLabel.space}

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep={self.keep} is the share of weights that may change; give a number above 0, at most 1.")

    def skips(self, request: Request) -> str | None:
        """Why it does not run on a request."""
        return f"part=cross: {why}" if self.part == "cross" and (why := why_not(request)) else None

    def __call__(self, request: Request) -> Model:
        """The fine-tuned model; unless `legacy`, a share 1 - `keep` of its weights are the original's, bit for bit."""
        allowance = Allowance(request)
        request.progress("prepare")
        gradients = forget_gradients(request, allowance, self.batch, self.guidance)
        masks = everywhere(request)
        if self.part == "cross":
            masks = only(request, crosses)
            gradients = {name: gradient for name, gradient in gradients.items() if masks[name].any()}
        masks |= saliency_mask(gradients, self.keep)
        del gradients  # as large as the model
        training = RandomLabel(**{field.name: getattr(self, field.name) for field in fields(RandomLabel)})
        if not self.legacy:
            return training.learn(request, allowance, masks)
        with masked_gradients(request.model, masks):
            return training.learn(request, allowance, None)


def forget_gradients(
    request: Request, allowance: Allowance, batch: int, guidance: float = SalUn.guidance
) -> dict[str, torch.Tensor]:
    """Of the forget loss, at the original weights: one pass in eval mode over batches in the stored order, signs kept.

    The order is fixed since a contrastive loss depends on what shares a batch.
    """
    model, objective = request.model, request.objective
    names = [name for tower in objective.weights(model).values() for name in tower if not is_temperature(name)]
    loss = partial(guided_loss, objective, guidance) if isinstance(objective, TextToImage) else objective.forget_loss
    return mean_gradients(model, names, loss, allowance.batches(request.forget, batch))


def guided_loss(objective: TextToImage, guidance: float, model: Model, batch: Batch) -> torch.Tensor:
    """Mean squared error of (1 + guidance) prediction(x_t, prompt) - guidance prediction(x_t, nothing)."""
    from torch.nn.functional import mse_loss

    state = objective.noised(batch)
    assert state.wanted is not None
    under = objective.predict(model, state, batch["text"])
    if not guidance:
        return mse_loss(under, state.wanted)
    without = objective.predict(model, state, objective.nothing.to(batch["text"].device))
    return mse_loss((1 + guidance) * under - guidance * without, state.wanted)


def saliency_mask(gradients: Mapping[str, torch.Tensor], keep: float) -> dict[str, torch.Tensor]:
    """Which weights are salient: the largest |gradients|, ranked globally, over all tensors together.

    Args:
        gradients: name -> gradient summed (or averaged) over batches with its sign, whatever the scale.
        keep: in (0, 1], the share to mark.

    Returns:
        name -> bool tensor of that shape, a byte a weight; exactly int(P x keep) entries are True, P being the number of
        weights. Of weights that tie at the threshold the first are taken.

    Raises:
        ValueError: a gradient is not a number, so that there is no ranking.
    """
    import torch

    magnitude_P = torch.cat([gradient.flatten() for gradient in gradients.values()]).abs_()
    if magnitude_P.sum().isnan():
        raise ValueError("a gradient of the forget loss is not a number, so weights cannot be ranked by it.")
    n = int(len(magnitude_P) * keep)
    # the n-th largest is selected once; the code's two sorts of everything take eight times as long, and 16 bytes a weight
    threshold = magnitude_P.kthvalue(len(magnitude_P) - n + 1).values if n else torch.inf
    mask_P = magnitude_P > threshold
    tied = (magnitude_P == threshold).nonzero()[:, 0]  # a threshold keeps too many: unused embeddings all tie at 0
    mask_P[tied[: n - int(mask_P.sum())]] = True
    parts = mask_P.split([gradient.numel() for gradient in gradients.values()])
    return {name: part.view_as(gradients[name]) for name, part in zip(gradients, parts, strict=True)}


@contextmanager
def masked_gradients(model: Model, masks: Tensors) -> Iterator[None]:
    """Inside, all gradients of the named parameters are zero where the mask is False."""
    with differentiable(model, masks) as parameters:
        hooks = [p.register_hook(lambda gradient, mask=masks[name]: gradient * mask) for name, p in parameters.items()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
