"""Unified Concept Editing: rewrite, in closed form, what the cross-attention makes of a name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pydantic import PositiveFloat, PositiveInt

from slugbench.bench import Model, Request, TextToImage, method

from ._common import Allowance, Best
from ._cross_attention import reads, why_not

if TYPE_CHECKING:
    import torch


@method("uce")
@dataclass(frozen=True)
class UnifiedConceptEditing:
    """Give the target's name the keys and values of the empty prompt, and all other names their own.

        W <- (keep W + erase sum W n c^T + preserve sum W p p^T) (keep I + erase sum c c^T + preserve sum p p^T)^-1

    for every projection W of text in the U-Net's cross-attention; c are embeddings of the targets' names, n those of the
    empty prompt in their place, p those of the other concepts' names and of the empty prompt. How much to erase is chosen on
    validation data among `erase` times 1, 10, ..., `tries` of them, and the unedited model.

    References:
        Gandikota et al., Unified Concept Editing in Diffusion Models, 2024.
    """

    erase: PositiveFloat = 0.1
    keep: PositiveFloat = 0.1  # the authors' lamb; UnlearnCanvas took 1 for styles and 10 for objects
    preserve: PositiveFloat = 0.1  # the authors' code
    tries: PositiveInt = 5

    space: ClassVar[Mapping[str, tuple]] = {"keep": (0.01, 0.1, 1.0, 10.0), "preserve": (0.01, 0.1, 1.0)}

    def skips(self, request: Request) -> str | None:
        """Why it does not run on a request."""
        return why_not(request)

    def __call__(self, request: Request) -> Model:
        """The model with the projections that validation prefers."""
        model, allowance = request.model, Allowance(request)
        request.progress("prepare")
        original = {name: model.get_parameter(name).detach().clone() for name in reads(model)}
        best = Best[dict[str, "torch.Tensor"]](request)
        request.progress("search")
        best.offer(allowance.validate(model), original)
        for edited in self.edits(request, original):
            if allowance.evals < 2:
                break
            _put(model, edited)
            best.offer(best.look(allowance), edited)
        request.progress("apply")
        _put(model, best.candidate or original)
        return model.eval()

    def edits(self, request: Request, original: Mapping[str, torch.Tensor]) -> Iterator[dict[str, torch.Tensor]]:
        """The projections, from the least erased to the most."""
        import torch

        objective, text = request.objective, request.model.get_submodule("text")
        assert isinstance(objective, TextToImage)
        device = next(request.model.parameters()).device
        old, new = aligned(text, objective.names(request.targets).to(device), objective.nothing.to(device))
        kept = torch.cat([objective.names(), objective.nothing]).to(device)  # nothing is what guidance leads away from
        others = _embedded(text, kept).flatten(0, 1)
        for power in range(self.tries):
            strengths = self.erase * 10**power, self.keep, self.preserve
            yield {name: edit(weight, old, new, others, *strengths) for name, weight in original.items()}


def edit(
    weight: torch.Tensor,
    old: torch.Tensor,
    new: torch.Tensor,
    others: torch.Tensor,
    erase: float,
    keep: float,
    preserve: float,
) -> torch.Tensor:
    """One projection rewritten: the minimum of a weighted sum of squares.

        erase sum |V c - W n|^2 + preserve sum |V p - W p|^2 + keep |V - W|^2

    Args:
        weight: (out, D), W.
        old: (n, D), what is to be rewritten, c.
        new: (n, D), in whose image, n.
        others: (m, D), what is to stay, p.
        erase: weight of the first sum; above 0, like the others.
        keep: weight of staying as it was.
        preserve: weight of the second sum.

    Returns:
        (out, D) of the weight's type; solved in float64.
    """
    import torch

    w, c, n, p = (x.double() for x in (weight, old, new, others))
    left = keep * w + w @ (erase * n.T @ c + preserve * p.T @ p)
    right = keep * torch.eye(w.shape[1], dtype=w.dtype, device=w.device) + erase * c.T @ c + preserve * p.T @ p
    return torch.linalg.solve(right, left, left=False).to(weight.dtype)


def aligned(text: Model, names_nT: torch.Tensor, nothing_1T: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings (k, D) of the names from their last word on, and of the empty prompt from its last token on, as many.

    As in the authors' code, which lines up the ends of the two texts: what follows a name carries it as well.
    """
    import torch

    empty = _embedded(text, nothing_1T)[0]
    old, new = [], []
    for name, embedded in zip(names_nT, _embedded(text, names_nT), strict=True):
        last = _last_word(name)
        old.append(embedded[last:])
        new.append(empty[: len(embedded) - last])
    return torch.cat(old), torch.cat(new)


def _last_word(tokens_T: torch.Tensor) -> int:
    """The place before the first token that a text is padded with."""
    import torch

    return int(torch.nonzero(tokens_T == tokens_T[-1])[0, 0]) - 1


def _embedded(text: Model, tokens: torch.Tensor) -> torch.Tensor:
    import torch

    with torch.no_grad():
        found: torch.Tensor = text(tokens)[0]
    return found


def _put(model: Model, weights: Mapping[str, torch.Tensor]) -> None:
    for name, weight in weights.items():
        model.get_parameter(name).data.copy_(weight)
