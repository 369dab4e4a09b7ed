"""What SLUG's comparison calls SalUn: gradient ascent, then fine-tuning, within a mask. It has no random labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from slugbench.bench import Model, Request, method

from ._common import Allowance, fine_tune, generator_of, mean_gradients
from .salun import saliency_mask

if TYPE_CHECKING:
    import torch


@method("salun_slug")
@dataclass(frozen=True)
class SalUnSlug:
    """Masked gradient ascent and fine-tuning, an epoch each in turn: the rows "SalUn" of SLUG's tables.

        mask = top half of |grad loss_f(original)|, over both towers together
        epoch: ascend loss_f on all forget batches, then descend the training loss on all retain batches

    It differs from SalUn proper in its forget term and says little about it. Unlike that code, which ranks the
    temperature too and lets weight decay move what is masked, masked weights keep their bits here, and the temperature
    stands outside 1 - cos, so that its gradient is 0 and the last to be taken.

    References:
        Cai et al., Targeted Unlearning with Single Layer Unlearning Gradient, 2025: its comparison on CLIP.
    """

    keep: float = 0.5  # share of weights that may change: the paper's 50 % threshold
    learning_rate: PositiveFloat | None = None
    """None: 3e-3 (SGD) for classifiers, of 1e-3 to 3e-2 the first to forget on `digits`; else 3e-4 (AdamW). Its 1e-7 is
    for 151 M pre-trained weights."""
    weight_decay: NonNegativeFloat = 0.1  # of its AdamW; it moves only what is not masked
    epochs: PositiveInt = 10
    batch: PositiveInt = 32
    retain_batch: PositiveInt = 128  # its 32; contrastive losses of small models need more
    every: PositiveInt | None = None
    """Steps between two looks at validation; None: an epoch, after whose fine-tuning its code evaluates."""

    space: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "keep": (0.1, 0.5, 0.9),
        "learning_rate": (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2),
    }

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
        epoch = ceil(len(request.forget) / self.batch) + ceil(len(request.retain) / self.retain_batch)

        def losses(allowance: Allowance) -> Iterator[torch.Tensor]:
            while allowance.reads:
                for batch in allowance.batches(request.forget, self.batch, generator):
                    yield -objective.forget_loss(model, batch)
                for batch in allowance.batches(request.retain, self.retain_batch, generator):
                    yield objective.loss(model, batch)

        return fine_tune(
            request,
            losses,
            learning_rate=self.learning_rate or (3e-3 if objective.kind == "classifier" else 3e-4),
            steps=self.epochs * epoch,
            every=self.every or epoch,
            stop=False,
            weight_decay=self.weight_decay,
            masks=saliency_mask(gradients, self.keep),
            allowance=allowance,
        )
