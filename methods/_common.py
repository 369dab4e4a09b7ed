"""What several methods share: gradients over a split, the rule by which a model is chosen, putting weights back.

The rule (evaluation is on validation data alone, and counted): among models whose forget accuracy is at most chance
+ 1 standard error, the one with the best retain accuracy; if there is none, the one nearest to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from slugbench.bench import Batch, Model, Request, Scores, Split

if TYPE_CHECKING:
    import torch

BATCH = 128


def mean_gradient(
    model: Model, loss: Callable[[Model, Batch], torch.Tensor], split: Split, *, batch: int = BATCH
) -> dict[str, torch.Tensor]:
    """Gradient of the mean loss over a split, for every trainable parameter, by name; `.grad` is left as None."""
    import torch

    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for samples in split.batches(batch):
        share = len(samples["index"]) / len(split)
        found = torch.autograd.grad(loss(model, samples), list(parameters.values()), allow_unused=True)
        for name, gradient in zip(parameters, found, strict=True):
            if gradient is not None:
                total[name] += share * gradient
    return total


def batches_forever(split: Split, request: Request, *, batch: int = BATCH) -> Iterator[Batch]:
    """Epoch after epoch in orders drawn from the request's generator."""
    while True:
        yield from split.batches(batch, request.generator)


def snapshot(model: Model) -> dict[str, torch.Tensor]:
    """A copy of all weights and buffers."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def preferred(request: Request, new: Scores, old: Scores) -> bool:
    """Whether the rule prefers `new` to `old`; a retain accuracy that was not measured counts as none."""

    def rank(scores: Scores) -> tuple[bool, float, float]:
        reached = request.reached(scores)
        retain = -1.0 if math.isnan(scores.retain) else scores.retain
        return (True, retain, -scores.forget) if reached else (False, -scores.forget, retain)

    return rank(new) > rank(old)


@dataclass
class Best:
    """The best model seen so far by the rule, and the number of evaluations left."""

    request: Request
    scores: Scores | None = None
    state: dict[str, torch.Tensor] = field(default_factory=dict)
    evaluations: int = 0

    def may_evaluate(self) -> bool:
        """Whether the budget holds another evaluation."""
        return self.evaluations < self.request.budget.max_evals

    def offer(self, model: Model) -> Scores:
        """Evaluate a model and keep its weights if the rule prefers it."""
        self.evaluations += 1
        scores = self.request.validate(model)
        if self.scores is None or preferred(self.request, scores, self.scores):
            self.scores, self.state = scores, snapshot(model)
        return scores

    def model(self) -> Model:
        """The request's model with the best weights put in, in eval mode."""
        if self.state:
            self.request.model.load_state_dict(self.state)
        return self.request.model.eval()
