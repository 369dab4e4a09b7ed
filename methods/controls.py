"""Controls: reference points that every method is measured beside and that are never ranked themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import PositiveInt

from slugbench.bench import Answers, Model, Request, Trial, method

from ._common import generator_of
from .slug import Slug

if TYPE_CHECKING:
    import pandas as pd


@method("original", control=True)
@dataclass(frozen=True)
class Original:
    """Nothing forgotten: the model as it came."""

    def __call__(self, request: Request) -> Model:
        """The model as it came."""
        return request.model


@method("oracle", control=True, sees="trial")
@dataclass(frozen=True)
class Oracle:
    """The aim of unlearning: a model trained anew without the targets."""

    def skips(self, trial: Trial) -> str | None:
        """A sentence where there is no oracle of that number."""
        if not 0 <= trial.method_seed < len(trial.oracles):
            return f"oracle number {trial.method_seed} is not among the {len(trial.oracles)} of this request."
        return None

    def answers(self, trial: Trial) -> Answers:
        """What oracle number `method_seed` says: its weights, which may take minutes to train, are not needed for that."""
        return trial.oracles[trial.method_seed]

    def __call__(self, trial: Trial) -> Model:
        """Oracle number `method_seed`."""
        return trial.oracle_model(trial.method_seed)


@method("mask", control=True)
@dataclass(frozen=True)
class Mask:
    """A cheat: the targets' names are struck from the answers, and no weight is changed."""

    def skips(self, request: Request) -> str | None:
        """A sentence where no name could be struck."""
        return None if request.targets else "mask strikes the names of targets; a request for samples has none."

    def __call__(self, request: Request) -> Model:
        """The original behind a filter."""
        return request.objective.masked(request.model, request.targets)


@method("noise", control=True)
@dataclass(frozen=True)
class Noise:
    """SLUG with a Gaussian of equal norm for its gradient: what comes of damaging a layer in no direction at all."""

    batch: PositiveInt = Slug.batch
    steps: PositiveInt = Slug.steps

    def __call__(self, request: Request) -> Model:
        """The model with one tensor disturbed: layers and step found as SLUG finds them."""
        import torch

        generator = generator_of(request)

        def gaussian(gradient: torch.Tensor) -> torch.Tensor:
            # drawn on the CPU: the same numbers on every device
            drawn = torch.randn(gradient.shape, generator=generator, dtype=gradient.dtype).to(gradient.device)
            return drawn * (gradient.norm() / drawn.norm())

        return Slug(batch=self.batch, steps=self.steps).unlearn(request, direction=gaussian)


@method("random_layer", control=True)
@dataclass(frozen=True)
class RandomLayer:
    """SLUG in a layer drawn at random: what the choice of layers is worth."""

    batch: PositiveInt = Slug.batch
    steps: PositiveInt = Slug.steps

    def __call__(self, request: Request) -> Model:
        """The model with one tensor edited for each target, along the forget gradient, as far as SLUG's search goes."""
        import torch

        generator = generator_of(request)

        def drawn(scores: pd.DataFrame) -> list[str]:
            return [scores["layer"].iloc[int(torch.randint(len(scores), (), generator=generator))]] if len(scores) else []

        return Slug(batch=self.batch, steps=self.steps).unlearn(request, choose=drawn)
