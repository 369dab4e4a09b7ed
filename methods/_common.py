"""What several methods share: gradients over a split, the budget, the rule by which a model is chosen, fine-tuning.

The rule (evaluation is on validation data alone, and counted): among models that forgot (forget accuracy at most the
goal + 1 standard error) and kept the rest (retain accuracy at least the original's less 2 points), the one with the best
retain accuracy; if there is none, the one that misses the two by the least.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Generic, TypeVar

from slugbench.bench import Batch, Model, Request, Scores, Split

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
Tensors = Mapping[str, "torch.Tensor"]


def generator_of(request: Request) -> torch.Generator:
    """The request's generator; one of seed 0 where there is none."""
    import torch

    return request.generator if request.generator is not None else torch.Generator().manual_seed(0)


# ---------------------------------------------------------------- the budget


class Allowance:
    """What is left of a request's budget. A method that asks here ends with its best model so far, not with an error."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.steps, self.reads, self.evals = request.budget.max_steps, request.budget.max_reads, request.budget.max_evals

    def batches(self, split: Split, size: int, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """Batches of a train split, until it ends or the next one would be more than may be read."""
        size, left = min(size, self.reads), len(split)
        stream = split.batches(size, generator) if size else iter(())
        while 0 < min(size, left) <= self.reads:
            batch = next(stream)
            left -= len(batch["index"])
            self.reads -= len(batch["index"])
            yield batch

    def forever(self, split: Split, size: int, generator: torch.Generator) -> Iterator[Batch]:
        """Epoch after epoch of a train split, in ever new orders, as long as anything may be read."""
        while self.reads:
            yield from self.batches(split, size, generator)

    def validate(self, model: Model, *, retain: bool = True) -> Scores:
        """One evaluation; ask whether there are any `evals` left before."""
        self.evals -= 1
        return self.request.validate(model, retain=retain)

    def accuracy(self, model: Model, split: Split, *, top: int = 1) -> float:
        """Share of a validation split whose true label is among the `top` answers; one evaluation, like `validate`."""
        import torch

        self.evals -= 1
        hits = 0
        with torch.no_grad():
            for batch in split.batches(512):
                logits_BC = self.request.objective.logits(model, batch)
                true_B1 = logits_BC.gather(1, batch["label"][:, None])
                first = (logits_BC >= true_B1).sum(1) <= top  # a tie is no answer
                hits += int((first & logits_BC.isfinite().all(1)).sum())  # and neither is NaN, which compares as false
        return hits / len(split)


# ---------------------------------------------------------------- the choice


def preferred(request: Request, new: Scores, old: Scores | None) -> bool:
    """Whether the rule prefers `new` to `old`; a retain accuracy that was not measured counts as none."""

    def rank(scores: Scores) -> tuple[float, float, float]:
        if math.isnan(scores.retain):
            return -request.shortfall(scores._replace(retain=0.0)), -1.0, -scores.forget
        return -request.shortfall(scores), scores.retain, -scores.forget

    return old is None or rank(new) > rank(old)


class Best(Generic[T]):
    """The best candidate offered so far, by the rule (or another one, of the same form)."""

    def __init__(self, request: Request, prefer: Callable[[Request, Scores, Scores | None], bool] = preferred) -> None:
        self.request, self.prefer = request, prefer
        self.scores: Scores | None = None
        self.candidate: T | None = None

    def prefers(self, scores: Scores) -> bool:
        """Whether a candidate of these scores would be kept."""
        return self.prefer(self.request, scores, self.scores)

    def offer(self, scores: Scores, candidate: T) -> None:
        """Keep the candidate if the rule prefers it."""
        if self.prefers(scores):
            self.scores, self.candidate = scores, candidate

    def look(self, allowance: Allowance) -> Scores:
        """Scores of the request's model; what it retains is measured only if that may decide, in a second evaluation."""
        scores = allowance.validate(self.request.model, retain=False)
        if self.prefers(scores._replace(retain=1.0)):
            scores = allowance.validate(self.request.model)
        return scores


# ---------------------------------------------------------------- gradients and weights


def snapshot(model: Model) -> dict[str, torch.Tensor]:
    """A copy of all weights and buffers, for `load_state_dict`."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


@contextmanager
def differentiable(model: Model, names: Iterable[str]) -> Iterator[dict[str, torch.nn.Parameter]]:
    """The named parameters, which alone take gradients inside; afterwards everything takes them as before."""
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    wanted = set(names)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in wanted)
    try:
        yield {name: parameter for name, parameter in model.named_parameters() if name in wanted}
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(before[name])


@contextmanager
def accumulating(model: Model, names: Iterable[str]) -> Iterator[dict[str, torch.nn.Parameter]]:
    """The named parameters, whose `.grad` sum up what runs backwards inside; afterwards `.grad` is as it was before.

    Summed where they are, gradients need their own size once; `autograd.grad` needs it twice, for the batch and the sum.
    """
    with differentiable(model, names) as parameters:
        before = {name: parameter.grad for name, parameter in parameters.items()}
        for parameter in parameters.values():
            parameter.grad = None
        try:
            yield parameters
        finally:
            for name, parameter in parameters.items():
                parameter.grad = before[name]


def taken(parameters: Mapping[str, torch.nn.Parameter], count: int) -> dict[str, torch.Tensor]:
    """The sums in `.grad` over `count`; zeros where nothing came back."""
    import torch

    return {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.div_(max(count, 1))
        for name, parameter in parameters.items()
    }


def mean_gradients(
    model: Model, names: Sequence[str], loss: Callable[[Model, Batch], torch.Tensor], batches: Iterable[Batch]
) -> dict[str, torch.Tensor]:
    """Mean over batches of the gradients of a batch's loss, signs kept.

    A mean of batch means: the last, smaller batch weighs as much as the others, as in the code of SLUG and of SalUn.
    """
    count = 0
    with accumulating(model, names) as parameters:
        for batch in batches:
            count += 1
            loss(model, batch).backward()
        return taken(parameters, count)


# ---------------------------------------------------------------- fine-tuning


def fine_tune(
    request: Request,
    losses: Callable[[Allowance], Iterator[torch.Tensor]],
    *,
    learning_rate: float,
    steps: int,
    every: int,
    stop: bool,
    weight_decay: float = 0.0,
    masks: Tensors | None = None,
    allowance: Allowance | None = None,
) -> Model:
    """Descend a stream of losses, looking at validation on the way, and keep the best weights seen.

    Args:
        request: its model is trained in place.
        losses: yields the loss of one step at a time; each is computed when asked for, with the weights of then.
        learning_rate: of every step.
        steps: at most; also at most `budget.max_steps`.
        every: how many steps lie between two looks at the validation accuracy of the targets.
        stop: whether to end where the targets are first forgotten; where something protects what is kept, going on may pay.
        weight_decay: of the optimiser; papers' codes differ in it.
        masks: where a weight may change at all, a bool tensor for each name of `Objective.weights`; the others come out
            with the very bits they went in with, whatever the optimiser adds to the gradient.
        allowance: where part of the budget has been used already.

    Returns:
        The request's model with the best weights by the rule (the original's if the budget allowed no evaluation).
    """
    model, allowance = request.model, allowance or Allowance(request)
    start, best = snapshot(model), Best[dict[str, "torch.Tensor"]](request)
    if allowance.evals >= 2 and allowance.reads:
        stream = islice(losses(allowance), min(steps, allowance.steps))
        _descend(request, allowance, best, start, stream, learning_rate, weight_decay, every, stop, masks)
    model.load_state_dict(start if best.candidate is None else best.candidate)
    return model.eval()


def _descend(
    request: Request,
    allowance: Allowance,
    best: Best[dict[str, torch.Tensor]],
    start: Tensors,
    losses: Iterator[torch.Tensor],
    learning_rate: float,
    weight_decay: float,
    every: int,
    stop: bool,
    masks: Tensors | None,
) -> None:
    import torch

    model = request.model
    names = [name for tower in request.objective.weights(model).values() for name in tower]
    if masks is not None and (unknown := [name for name in names if name not in masks]):
        raise ValueError(f"there is no mask for {', '.join(unknown)}: nothing would say whether they may change.")
    with differentiable(model, names) as parameters:
        frozen = [] if masks is None else [(p, masks[n], start[n]) for n, p in parameters.items() if not masks[n].all()]
        optimizer = _optimizer(request, parameters.values(), learning_rate, weight_decay)
        model.train()
        looked = True
        for step, loss in enumerate(losses, 1):
            found = list(torch.autograd.grad(loss, list(parameters.values()), allow_unused=True))
            for name, parameter in reversed(parameters.items()):  # emptied: masked ones are as large again
                gradient = found.pop()
                parameter.grad = gradient if masks is None or gradient is None else gradient * masks[name]
            optimizer.step()
            optimizer.zero_grad()
            allowance.steps -= 1
            for parameter, mask, value in frozen:  # weight decay and momentum must not move what is masked either
                torch.where(mask, parameter.data, value, out=parameter.data)
            request.progress("apply", step)
            looked = step % every == 0
            if looked:
                scores = _look(best, allowance)
                if (stop and request.reached(scores)) or allowance.evals < 2:
                    break
                model.train()
        if not looked and allowance.evals >= 2:  # what was trained since the last look
            _look(best, allowance)
    model.eval()


def _look(best: Best[dict[str, torch.Tensor]], allowance: Allowance) -> Scores:
    """Validate the model being trained, and keep its weights if the rule prefers them."""
    model = best.request.model.eval()
    scores = best.look(allowance)
    if best.prefers(scores):
        best.offer(scores, snapshot(model))
    return scores


def _optimizer(
    request: Request, parameters: Iterable[torch.nn.Parameter], learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """SGD with momentum for classifiers, as in SalUn's code; AdamW for CLIP, as in SLUG's comparison."""
    import torch

    if request.objective.kind == "classifier":
        return torch.optim.SGD(parameters, lr=learning_rate, momentum=0.9, weight_decay=weight_decay)
    return torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.98), eps=1e-6, weight_decay=weight_decay)
