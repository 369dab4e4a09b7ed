"""SLUG: one gradient, one layer, one step.

This is the paper's form (ascent on 1 - cos, one tensor, everything chosen on validation data). The authors' code for
Stable Diffusion and LLaVA deviates from it in sign, gradient accumulation and layers, and is not followed here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from pydantic import PositiveInt

from slugbench.bench import Model, Request, method

from ._common import Allowance, Best, generator_of, mean_gradients

if TYPE_CHECKING:
    import pandas as pd
    import torch

EXCLUDED = ("bias", "logit_scale", "position", "embedding")
"""Parameters with one of these in their name are no layers (authors' code, CLIP); weights of norms are."""


class Edit(NamedTuple):
    """What SLUG does to a model: theta_layer + step * gradient of the forget loss, all else untouched."""

    layer: str
    step: float


@method("slug")
@dataclass(frozen=True)
class Slug:
    """Single-layer unlearning gradient: ascend the forget loss in the one layer where that hurts the rest least.

    Gradients of the forget and of the retain loss are taken once, at the original weights. In each tower the layers
    that nothing beats in both importance ||g_f|| / ||theta|| and alignment |cos(g_f, g_r)| form a Pareto front. For
    each of them the step is searched: 10 % relative edit first, doubled until validation says that the targets are
    forgotten, then bisected to the smallest step that does it. The front's edits are compared on validation data.

    On a classifier the forget loss is the cross-entropy: an extension, the paper has none.

    References:
        Cai et al., Targeted Unlearning with Single Layer Unlearning Gradient, 2025: equations 7 to 9, algorithms 1 to 3.
    """

    # Of the contrastive retain loss, whose in-batch negatives it decides. The authors' code has 16; at the size that the
    # small models were trained with, retained validation accuracy on tuning people rose from .34 to .56.
    batch: PositiveInt = 128
    steps: PositiveInt = 10  # evaluations in a layer's search; the paper's S

    def __call__(self, request: Request) -> Model:
        """The model with one tensor edited."""
        return self.along(request, lambda gradient: gradient)

    def along(self, request: Request, direction: Callable[[torch.Tensor], torch.Tensor]) -> Model:
        """SLUG with `direction(gradient)` in place of a layer's forget gradient where the edit is made."""
        model, objective, allowance = request.model, request.objective, Allowance(request)
        request.progress("prepare")
        towers = objective.weights(model)
        layers = [name for tower in towers.values() for name in tower if is_layer(name)]
        forget = mean_gradients(model, layers, objective.forget_loss, allowance.batches(request.forget, self.batch))
        # in a stored order a batch may hold one concept alone, which leaves the contrastive loss nothing to tell apart
        shuffled = allowance.batches(request.retain, self.batch, generator_of(request))
        retain = mean_gradients(model, layers, objective.loss, shuffled)
        params = {name: model.get_parameter(name).detach() for name in layers}
        front = fronts(layer_scores(params, forget, retain, towers))

        best = Best[Edit](request)
        directions = {layer: direction(forget[layer]) for layer in front}
        for done, layer in enumerate(front):
            request.progress("search", done, len(front))
            search_layer(request, allowance, best, layer, directions[layer], steps=self.steps)
        request.progress("apply")
        if best.candidate is not None:
            params[best.candidate.layer] += best.candidate.step * directions[best.candidate.layer]
        return model.eval()


def is_layer(name: str) -> bool:
    """Whether a parameter is one of SLUG's layers: 76 in the vision and 74 in the text tower of ViT-B/32."""
    return not any(part in name for part in EXCLUDED)


def layer_scores(
    params: Mapping[str, torch.Tensor],
    forget_grads: Mapping[str, torch.Tensor],
    retain_grads: Mapping[str, torch.Tensor],
    towers: Mapping[str, Sequence[str]] | None = None,
) -> pd.DataFrame:
    """Importance and alignment of every layer that the forget loss depends on.

    importance = ||g_f|| / ||theta||, alignment = |cos(g_f, g_r)|, Frobenius norms.

    Args:
        params: name -> weights; scalars are left out.
        forget_grads: name -> gradient of the forget loss; names with a zero gradient are left out.
        retain_grads: name -> gradient of the retain loss.
        towers: tower -> names, as of `Objective.weights`; by default `visual.` is vision and all else text.

    Returns:
        Columns layer, tower, importance, alignment, forget_norm, param_norm; one row a layer.
    """
    import pandas as pd
    from torch.nn.functional import cosine_similarity

    tower_of = {name: tower for tower, names in (towers or {}).items() for name in names}
    rows = []
    for name, weight in params.items():
        forget, retain = forget_grads[name].double().flatten(), retain_grads[name].double().flatten()
        forget_norm, param_norm = forget.norm().item(), weight.double().norm().item()
        if weight.ndim == 0 or forget_norm == 0 or param_norm == 0:  # without either there is no relative step
            continue
        alignment = abs(cosine_similarity(forget, retain, dim=0, eps=1e-6).item())
        tower = tower_of.get(name) or ("vision" if name.startswith("visual.") else "text")
        rows.append((name, tower, forget_norm / param_norm, alignment, forget_norm, param_norm))
    return pd.DataFrame(rows, columns=["layer", "tower", "importance", "alignment", "forget_norm", "param_norm"])


def pareto_front(importance: Sequence[float], alignment: Sequence[float]) -> list[int]:
    """Positions of the layers for which no other is both more important and less aligned, strictly; ties stay."""
    worth, harm = np.asarray(importance, dtype=float), np.asarray(alignment, dtype=float)
    beaten = ((worth[None, :] > worth[:, None]) & (harm[None, :] < harm[:, None])).any(axis=1)
    return np.flatnonzero(~beaten).tolist()


def fronts(scores: pd.DataFrame) -> list[str]:
    """The layers on each tower's Pareto front, the most important first."""
    import pandas as pd

    if scores.empty:  # nothing has a gradient
        return []
    found = [
        tower.iloc[pareto_front(tower["importance"].tolist(), tower["alignment"].tolist())]
        for _, tower in scores.groupby("tower")
    ]
    return pd.concat(found).sort_values(["importance", "layer"], ascending=[False, True])["layer"].tolist()


def search_step(
    evaluate: Callable[[float], float], rho: float, *, steps: int, target: float = 0.0
) -> tuple[float | None, list[tuple[float, float]]]:
    """The smallest step that succeeds, by doubling and then bisecting.

    Args:
        evaluate: step -> the steering value after an edit by it; at most `target` is a success.
        rho: ||theta|| / ||gradient||; the first probe is rho / 10, a relative edit of 10 %.
        steps: number of evaluations.
        target: what the steering value has to come down to.

    Returns:
        The smallest successful step or None, and every (step, value) tried, in order.
    """
    low, high, step = 0.0, None, rho / 10
    trace: list[tuple[float, float]] = []
    for _ in range(steps):
        trace.append((step, evaluate(step)))
        if trace[-1][1] <= target:
            high = step
        else:
            low = step
        step = 2 * step if high is None else (low + high) / 2
    return high, trace


def search_layer(
    request: Request, allowance: Allowance, best: Best[Edit], layer: str, direction: torch.Tensor, *, steps: int
) -> None:
    """Search the step of one layer, offer the edit to `best`, and put the layer back bit for bit."""
    steps = min(steps, allowance.evals - 1)  # the last evaluation is that of the edit found
    if steps < 1:
        return
    weight = request.model.get_parameter(layer).data
    original = weight.clone()

    def evaluate(step: float) -> float:
        weight.copy_(original + step * direction)
        scores = allowance.validate(request.model, retain=False)
        return scores.forget - request.goal - scores.forget_se

    step, trace = search_step(evaluate, (original.norm() / direction.norm()).item(), steps=steps)
    if step is None:
        step = min(trace, key=lambda probe: probe[1])[0]
    weight.copy_(original + step * direction)
    best.offer(allowance.validate(request.model), Edit(layer, step))
    weight.copy_(original)
