"""SSD: shrink the weights that matter far more to the forget split than to all data; no training, no search.

This is the paper's form. SLUG's comparison on CLIP deviates from it: it has I_r for I_D, takes the two importances from
different losses, leaves tensors of one element out, and dampens the dampened model again for every lambda of its grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, ClassVar

from pydantic import PositiveFloat, PositiveInt

from slugbench.bench import Batch, Model, Request, method

from ._common import Allowance, differentiable, generator_of

if TYPE_CHECKING:
    import torch


@method("ssd")
@dataclass(frozen=True)
class SelectiveSynapticDampening:
    """Where I_f > alpha I_D: theta *= min(lambda I_D / I_f, 1), once, I being importances at the original weights.

    I is the mean over batches of the squared gradient of a batch's mean loss, as in the paper's code. That is no
    per-sample Fisher information: in large batches the gradients of D cancel more than those of one concept, and more
    weights pass the threshold. D is all training data, D_f included. Both importances are of the forget loss, on CLIP
    1 - cos: the threshold compares them, so they need one scale.

    References:
        Foster et al., Fast Machine Unlearning without Retraining through Selective Synaptic Dampening, 2024.
    """

    alpha: PositiveFloat | None = None
    """None: the paper's 10 for classifiers; else 100. At 10 retained accuracy on `identities` falls from .88 to .03, at
    100 to .60; at 200 only one of four people is forgotten. The paper has 50 for its one task of faces."""
    strength: PositiveFloat = 1.0  # the paper's lambda
    batch: PositiveInt = 32

    space: ClassVar[Mapping[str, tuple]] = {
        "alpha": (5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0),
        "strength": (0.1, 0.5, 1.0, 3.0),
        "batch": (16, 32, 64),
    }

    def __call__(self, request: Request) -> Model:
        """The model with the weights of the targets dampened."""
        model, loss, allowance, generator = (
            request.model,
            request.objective.forget_loss,
            Allowance(request),
            generator_of(request),
        )
        request.progress("prepare")
        names = [name for tower in request.objective.weights(model).values() for name in tower]
        # D first: where the budget ends in between, nothing matters to the forget split, and nothing is dampened
        of_all = importances(model, names, loss, everything(request, allowance, self.batch, generator))
        of_forget = importances(model, names, loss, allowance.batches(request.forget, self.batch, generator))
        request.progress("apply")
        alpha = self.alpha or (10.0 if request.objective.kind == "classifier" else 100.0)
        for name in names:
            model.get_parameter(name).data *= dampening(of_forget[name], of_all[name], alpha, self.strength)
        return model.eval()


def everything(request: Request, allowance: Allowance, size: int, generator: torch.Generator) -> Iterator[Batch]:
    """Batches of all training data, each with its share of forget samples, as a random order gives in the mean.

    One split after the other would not do: the batches of the forget split would put all of I_f into I_D, and no
    weight's I_f could exceed I_D by more than the share of those batches, 7 in `digits`.
    """
    import torch

    count = math.ceil((len(request.forget) + len(request.retain)) / size)
    streams = (
        allowance.batches(split, math.ceil(len(split) / count), generator) for split in (request.retain, request.forget)
    )
    for parts in zip_longest(*streams):
        found = [part for part in parts if part is not None]
        yield {name: torch.cat([part[name] for part in found]) for name in found[0]}


def importances(
    model: Model, names: Sequence[str], loss: Callable[[Model, Batch], torch.Tensor], batches: Iterable[Batch]
) -> dict[str, torch.Tensor]:
    """name -> mean over batches of the squared gradient of a batch's loss; zeros where there is no batch."""
    import torch

    with differentiable(model, names) as parameters:
        total, count = {name: torch.zeros_like(p) for name, p in parameters.items()}, 0
        for batch in batches:
            count += 1
            found = torch.autograd.grad(loss(model, batch), list(parameters.values()), allow_unused=True)
            for name, gradient in zip(parameters, found, strict=True):
                if gradient is not None:
                    total[name] += gradient.square()
        return {name: squares / max(count, 1) for name, squares in total.items()}


def dampening(of_forget: torch.Tensor, of_all: torch.Tensor, alpha: float, strength: float) -> torch.Tensor:
    """What each weight is to be multiplied by: min(strength I_D / I_f, 1) where I_f > alpha I_D, 1 elsewhere."""
    import torch

    factor = (strength * of_all / of_forget).clamp(max=1)  # not a number where both are 0, and not selected there
    return torch.where(of_forget > alpha * of_all, factor, 1.0)
