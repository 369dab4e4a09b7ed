"""Whether a text-to-image model still draws what it forgot once it is asked by more than the name: a picture, or a vector.

Prompts are one way into such a model of three. A filter, or an edit that only turns a name's meaning elsewhere, leaves the
other two open: to begin sampling at a picture, and to look for a vector that says what the name said. As with all attacks,
what they find says something beside retrained models under the same attack alone: those can be shown a picture as well.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import PositiveFloat, PositiveInt

from slugbench.bench import Batch, Model, Outcome, TextToImage, Value, metric
from slugbench.bench.types import Drawing, Split

from .accuracy import average
from .robustness import can_be_attacked, first_of_each, taken

if TYPE_CHECKING:
    import torch

STRENGTHS = (0.3, 0.5, 0.7)
"""Of the way to pure noise: from where the coarse shape of a picture stands to where little of it does."""


@metric("context")
@dataclass(frozen=True)
class Context:
    """The share of pictures of the target that still show it when the model has drawn them anew from under noise.

    Each is noised up to a part of the way, then denoised under its own prompt; pictures are of the validation split, by
    which methods do not edit, nor was the original trained on it where its task has pictures to spare. With little noise
    every model hands them through.

    Attributes:
        pictures: how many.

    References:
        Meng et al., SDEdit: Guided Image Synthesis and Editing with Stochastic Differential Equations, 2022.
    """

    pictures: PositiveInt = 48

    needs_model: ClassVar[bool] = True

    def __call__(self, outcome: Outcome) -> list[Value]:
        """Values `context@0.3 context@0.5 context@0.7`, shares in [0, 1]; nearest to the retrained models' is best.

        None of a model that is not asked by text for pictures; null where the task draws no pictures from others.
        """
        if not asked_for_pictures(outcome):
            return []
        drawing, names = outcome.trial.drawing, [f"context@{strength}" for strength in STRENGTHS]
        if drawing is None:
            return [Value(name, None, "", "oracle", note=NO_WAY) for name in names]
        model, batch = taken(outcome), drawn_from(outcome.trial.request.validation.forget, self.pictures)
        label = batch["label"].cpu().numpy()
        values = []
        for name, strength in zip(names, STRENGTHS, strict=True):
            seen = drawing.redraw(model, batch, strength=strength, seed=0)
            values.append(with_chance(average(name, (seen == label).astype(np.float64), label, "oracle"), outcome))
        return values


@metric("inversion")
@dataclass(frozen=True)
class Inversion:
    """The share of the target's prompts whose pictures show it, with a vector in the name's place that was learned for it.

        v = argmin over v of E |prediction(x_t, prompt with v) - what x_t came from|^2,   weights as they are

    from the first few training pictures of the target. It begins at the mean of the retained names of its domain, and is a
    vector for each token of the name.

    Attributes:
        pictures: of each target, that the attacker has; the paper's are 3 to 5.
        steps: of Adam, for every model.
        learning_rate: the paper's. Each step moves a coordinate by as much at most.
        draws: times and noises of each picture in a step.

    References:
        Gal et al., An Image is Worth One Word: Personalizing Text-to-Image Generation using Textual Inversion, 2023.
        Pham et al., Circumventing Concept Erasure Methods for Text-to-Image Generative Models, 2024.
    """

    pictures: PositiveInt = 5
    steps: PositiveInt = 100
    learning_rate: PositiveFloat = 5e-3
    draws: PositiveInt = 4

    needs_model: ClassVar[bool] = True

    def __call__(self, outcome: Outcome) -> list[Value]:
        """One value `inversion`, a share in [0, 1]; nearest to the retrained models' is best.

        None of a model that is not asked by text for pictures; null where the task puts no vectors in a name's place.
        """
        if not asked_for_pictures(outcome):
            return []
        trial, drawing = outcome.trial, outcome.trial.drawing
        if drawing is None:
            return [Value("inversion", None, "", "oracle", note=NO_WAY)]
        model = taken(outcome).requires_grad_(False)
        hits, units = [], []
        for target in trial.request.targets:
            known = first_of_each(trial.request.forget, (target,), self.pictures)
            vectors_WD = self.learned(outcome, model, target, known)
            asked = (trial.questions["split"] == "forget") & (trial.questions["label"] == int(known["label"][0]))
            rows = np.flatnonzero(asked)
            with drawing.instead(model, target, vectors_WD):
                hits.append((trial.answer(model, rows)["rank"] == 0).astype(np.float64))
            units.append(trial.questions["unit"][rows])
        return [with_chance(average("inversion", np.concatenate(hits), np.concatenate(units), "oracle"), outcome)]

    def learned(self, outcome: Outcome, model: Model, target: str, known: Batch) -> torch.Tensor:
        """(W, D) the vectors that are to stand for the target's name."""
        import torch

        drawing, objective = outcome.trial.drawing, outcome.trial.request.objective
        assert drawing is not None and isinstance(objective, TextToImage)
        vectors_WD = self.start(outcome, drawing, model, target).requires_grad_()
        optimizer = torch.optim.Adam([vectors_WD], lr=self.learning_rate)
        batch = {name: torch.cat([column] * self.draws).to(vectors_WD.device) for name, column in known.items()}
        generator = torch.Generator().manual_seed(0)  # of its own: times and noises are the same for every model
        for _ in range(self.steps):
            state = objective.noised(batch, generator)
            assert state.wanted is not None
            with drawing.instead(model, target, vectors_WD):
                error = objective.predict(model, state, batch["text"]) - state.wanted
            optimizer.zero_grad()
            error.square().mean().backward()
            optimizer.step()
        return vectors_WD.detach()

    @staticmethod
    def start(outcome: Outcome, drawing: Drawing, model: Model, target: str) -> torch.Tensor:
        """(W, D) the mean of the retained names of the target's domain, once for each token of the target's."""
        import torch

        trial = outcome.trial
        (domain,) = (names for names in trial.classes.values() if target in names)
        kept = [drawing.vectors(model, name) for name in domain if name not in trial.request.targets]
        return torch.cat(kept).mean(0).repeat(len(drawing.vectors(model, target)), 1)


NO_WAY = "the task asks its models by whole prompts alone"


def asked_for_pictures(outcome: Outcome) -> bool:
    """Whether there are weights of a text-to-image model that were to forget concepts."""
    return can_be_attacked(outcome) and outcome.trial.request.objective.kind == "diffusion"


def drawn_from(split: Split, n: int) -> Batch:
    """At most n samples, drawn alike for every model: what is stored first may be all of one kind."""
    import torch

    return next(iter(split.batches(n, torch.Generator().manual_seed(0))))


def with_chance(value: Value, outcome: Outcome) -> Value:
    """The same beside what a blind guess among the classes of the domain gives."""
    return replace(value, chance=1 / outcome.trial.n_classes)
