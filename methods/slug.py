"""SLUG: one gradient, one layer, one step.

    prepare  gradients of the forget and of the retain loss, once, at the original weights
             layer_scores -> pareto_front      which layers: important to what is to be forgotten, not aligned with the rest
    search   search_step for each of them      how far: the smallest step that forgets, on validation data
    apply    theta_layer += step * gradient    the edit that keeps most, again on validation data

There are three SLUGs: the paper's, the one its authors' code runs on CLIP, and the one their code runs on Hugging Face
models for Stable Diffusion. `variant` picks one; where the latter two deviate is said where they do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, TypeAlias

import numpy as np
from pydantic import PositiveInt

from slugbench.bench import Batch, Model, Request, Scores, Split, TextToImage, TwoTowers, UsageError, method

from ._common import Allowance, Best, accumulating, generator_of, mean_gradients, preferred, taken
from ._gradients import contrastive_gradients
from ._memory import Memory, remembering

if TYPE_CHECKING:
    import pandas as pd
    import torch

Towers: TypeAlias = Mapping[str, Sequence[str]]
"""tower -> names of its layers."""
Direction: TypeAlias = "Callable[[torch.Tensor], torch.Tensor]"
"""What an edit goes along, given the layer's forget gradient."""
Choice: TypeAlias = "Callable[[pd.DataFrame], list[str]]"
"""Which layers are searched, given the scores of all; the first to be tried first."""


class Edit(NamedTuple):
    """What SLUG does to a model, and all that needs keeping of it: theta_layer + step * gradient."""

    layer: str
    step: float
    gradient: torch.Tensor
    """Of the forget loss, which it ascends; of the layer's shape."""

    def apply(self, model: Model) -> None:
        """Edit a model in place."""
        model.get_parameter(self.layer).data.add_(self.step * self.gradient)


@contextmanager
def edited(model: Model, edits: Sequence[Edit]) -> Iterator[None]:
    """Inside, the model is edited; afterwards it is what it was, bit for bit."""
    before = {edit.layer: model.get_parameter(edit.layer).data.clone() for edit in edits}
    for edit in edits:
        edit.apply(model)
    try:
        yield
    finally:
        for layer, weight in before.items():
            model.get_parameter(layer).data.copy_(weight)


def save_edits(edits: Sequence[Edit], path: Path) -> None:
    """Write edits to a safetensors file; with the original model it is all that is needed of the unlearned one."""
    from safetensors.torch import save_file

    tensors = {f"{number}.{edit.layer}": edit.gradient.contiguous() for number, edit in enumerate(edits)}
    save_file(tensors, path, metadata={name: edit.step.hex() for name, edit in zip(tensors, edits, strict=True)})


def load_edits(path: Path) -> list[Edit]:
    """The edits in a file of `save_edits`, in their order; applied they give the same bits as when they were made."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as stored:
        steps = stored.metadata() or {}
        names = sorted(steps, key=lambda name: int(name.split(".")[0]))
        return [Edit(name.split(".", 1)[1], float.fromhex(steps[name]), stored.get_tensor(name)) for name in names]


@dataclass
class Concept:
    """Something to be forgotten by one edit: a target of a request, or all of them together."""

    target: str | None
    """None: all of the request."""
    forget: Split
    gradients: dict[str, torch.Tensor] = field(default_factory=dict)
    """Forget gradients of the layers to be searched, the first to be tried first."""
    mates: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    """layer -> forget gradients of what is edited with it, by the same step."""
    embedded: dict[int, torch.Tensor] = field(default_factory=dict)
    """What one tower made of the forget split, while it is the other's turn."""

    def edits(self, layer: str, step: float) -> list[Edit]:
        """One step in a layer that is searched, and in its mates."""
        parts = {layer: self.gradients[layer], **self.mates.get(layer, {})}
        return [Edit(name, step, gradient) for name, gradient in parts.items()]

    def turn(self, direction: Direction) -> None:
        """Edit along something else than the gradients."""
        self.gradients = {layer: direction(gradient) for layer, gradient in self.gradients.items()}
        self.mates = {
            layer: {name: direction(gradient) for name, gradient in parts.items()} for layer, parts in self.mates.items()
        }


@method("slug")
@dataclass(frozen=True)
class Slug:
    """Single-layer unlearning gradient: ascend the forget loss in the one layer where that hurts the rest least.

    Gradients of the forget and of the retain loss are taken once, at the original weights. In each tower the layers
    that nothing beats in both importance ||g_f|| / ||theta|| and alignment |cos(g_f, g_r)| form a Pareto front. For
    each of them the step is searched: 10 % relative edit first, doubled until validation says that the target is
    forgotten, then bisected to the smallest step that does it. The front's edits are compared on validation data.
    Several targets get an edit each, found independently of each other at the original weights, and the edits add up.

    On a classifier the forget loss is the cross-entropy: an extension, the paper has none. Of a text-to-image model the text
    encoder is edited, by the losses of the CLIP it is of, and validation looks at pictures drawn; these are of all targets,
    so several get one edit together.

    Args:
        variant: `paper`; `openclip`: the retain loss sees full batches only, every evaluation of every search is a
            candidate, and the one of lowest forget, then of highest retain accuracy is taken; `hf`: see `hf_edits`.
        batch: the logical batch of the retain loss, which decides its in-batch negatives.
        physical: samples run at a time, if not a logical batch; no gradient depends on it.
        steps: evaluations in a layer's search.
        stop: when a target counts as forgotten: by the `rule` of all methods, validation FA@1 at most chance + 1 standard
            error, or by the authors' `reference`, FA@5 = 0 (which `openclip` always does).
        signed: alignment is the plain cosine of the paper's text, not its absolute value as in the authors' code.
        together: one edit for all targets of a request, as text-to-image models always get.
        groups: with a layer of the front the rest of its group is edited by the same step: queries, keys and values, or both
            halves of an MLP. The layer is scored alone, and the step is relative to it. `hf` always does so.
        towers_in_turn: hold gradients of one tower at a time; the samples are then read twice, and one tower's forward
            pass is run once more.

    References:
        Cai et al., Targeted Unlearning with Single Layer Unlearning Gradient, 2025: equations 7 to 9, algorithms 1 to 3.
    """

    variant: Literal["paper", "openclip", "hf"] = "paper"
    # The authors' code has 16; at the size that the small models were trained with, retained validation accuracy on
    # development and tuning people rose from .34 to .56.
    batch: PositiveInt = 128
    physical: PositiveInt | None = None
    steps: PositiveInt = 10  # the paper's S
    stop: Literal["rule", "reference"] = "rule"
    signed: bool = False
    together: bool = False
    groups: bool = False
    towers_in_turn: bool = False

    space: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "batch": (16, 32, 64, 128, 256),
        "stop": ("rule", "reference"),
        "signed": (False, True),
    }

    def __call__(self, request: Request) -> Model:
        """The model with one tensor edited for each target."""
        return self.unlearn(request)

    def unlearn(self, request: Request, direction: Direction | None = None, choose: Choice | None = None) -> Model:
        """The request's model with its `edits` applied."""
        edits = self.edits(request, direction, choose)
        request.progress("apply")
        for edit in edits:
            edit.apply(request.model)
        return request.model.eval()

    def edits(self, request: Request, direction: Direction | None = None, choose: Choice | None = None) -> list[Edit]:
        """The edits, not applied: one a concept, for as many as the budget allows to be searched.

        Args:
            request: its model comes out as it went in.
            direction: what to search along in the place of a layer's forget gradient.
            choose: which layers to search in the place of the Pareto fronts.
        """
        allowance = Allowance(request)
        request.progress("prepare")
        together = self.together
        if isinstance(request.objective, TextToImage):
            request, together = replace(request, objective=request.objective.contrast), True
        concepts = [Concept(None, request.forget)]
        if len(request.targets) > 1 and not together:
            concepts = [Concept(target, request.forget.of(target)) for target in request.targets]
        towers = layers_by_tower(request.objective.weights(request.model), hf=self.variant == "hf")
        if self.variant == "hf":
            return hf_edits(request, allowance, concepts, towers, batch=self.batch)

        self._prepare(request, allowance, concepts, towers, choose or fronts)
        if direction is not None:
            for concept in concepts:
                concept.turn(direction)
        with remembering(request.model) as memory:
            return [
                edit
                for concept, after in zip(concepts, reversed(range(len(concepts))), strict=True)
                for edit in Search(
                    self, request, allowance, concept, memory, reserve=allowance.evals * after // (after + 1)
                ).run()
            ]

    # ------------------------------------------------------------ prepare

    def _prepare(
        self, request: Request, allowance: Allowance, concepts: Sequence[Concept], towers: Towers, choose: Choice
    ) -> None:
        """Give each concept the layers to be searched and their forget gradients; all others are dropped again."""
        if self.towers_in_turn and not isinstance(request.objective, TwoTowers):
            raise UsageError(f"towers_in_turn=true needs a model of two towers, and this is a {request.objective.kind}.")
        if self.towers_in_turn and allowance.reads < (needed := 2 * (len(request.forget) + len(request.retain))):
            raise UsageError(f"towers_in_turn=true reads {needed} samples; the budget allows {allowance.reads}.")
        generator = generator_of(request)
        order, retained = generator.get_state(), Concept(None, request.retain)
        for turn in [[tower] for tower in towers] if self.towers_in_turn else [list(towers)]:
            generator.set_state(order)  # both turns have to read the retain split in one order
            retain = self._gradients(request, allowance, turn, towers, retained, generator)
            for concept in concepts:
                forget = self._gradients(request, allowance, turn, towers, concept)
                params = {name: request.model.get_parameter(name).detach() for name in forget}
                scores = layer_scores(params, forget, retain, towers, signed=self.signed)
                chosen = choose(scores)
                if self.groups:
                    parts = {layer: whole_layer(layer, list(forget)) for layer in one_of_each_group(chosen)}
                    concept.mates |= {layer: {name: forget[name] for name in group[1:]} for layer, group in parts.items()}
                    chosen = list(parts)
                concept.gradients |= {layer: forget[layer] for layer in chosen}
                del forget, params  # a set of gradients each, which the next one's must not stand beside
            del retain
        for concept in concepts if self.towers_in_turn else ():
            concept.gradients = most_important_first(request.model, concept.gradients)

    def _gradients(
        self,
        request: Request,
        allowance: Allowance,
        turn: Sequence[str],
        towers: Towers,
        concept: Concept,
        generator: torch.Generator | None = None,
    ) -> dict[str, torch.Tensor]:
        """Of the forget loss; with a generator, which shuffles the split, of the retain loss.

        In the order it is stored in, a batch may show one concept alone, which leaves the contrastive loss nothing to
        tell apart.
        """
        objective, names = request.objective, [name for tower in turn for name in towers[tower]]
        physical, forget = self.physical or self.batch, generator is None
        size = self.batch * max(physical // self.batch, 1)
        batches: Iterable[Batch] = allowance.batches(concept.forget, size, generator)
        if self.variant == "openclip" and not forget:
            batches = full_batches(batches, self.batch)
        if not isinstance(objective, TwoTowers):
            return mean_gradients(request.model, names, objective.forget_loss if forget else objective.loss, batches)
        return contrastive_gradients(
            request.model,
            objective,
            names,
            batches,
            forget=forget,
            group=self.batch,
            physical=physical,
            known=concept.embedded if self.towers_in_turn else None,
            towers=turn,
        )


def most_important_first(model: Model, gradients: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Layers of several towers in the order of `fronts`."""
    rho = {layer: whole_step(model.get_parameter(layer), gradient) for layer, gradient in gradients.items()}
    return {layer: gradients[layer] for layer in sorted(gradients, key=lambda layer: (rho[layer], layer))}


def full_batches(batches: Iterable[Batch], size: int) -> Iterator[Batch]:
    """Batches in which a last group of fewer than `size` is filled up from the first batch, as the authors' loader does."""
    import torch

    first: Batch | None = None
    for batch in batches:
        first = first or batch
        missing = -len(batch["index"]) % size
        rows = torch.arange(missing) % len(first["index"])
        yield {name: torch.cat([column, first[name][rows]]) for name, column in batch.items()} if missing else batch


class Spent(Exception):
    """No evaluation is left."""


@dataclass
class Search:
    """The search for one concept's edit, over its layers and their steps, with `reserve` evaluations left to others."""

    slug: Slug
    request: Request
    allowance: Allowance
    concept: Concept
    memory: Memory
    reserve: int
    best: Best[list[Edit]] = field(init=False)

    def __post_init__(self) -> None:
        self.best = Best[list[Edit]](self.request, lowest_forget if self.slug.variant == "openclip" else preferred)

    def run(self) -> list[Edit]:
        """The best edit, of one layer or of its group; none where there is no layer, or nothing may be evaluated."""
        try:
            if self.allowance.evals - self.reserve > 3 * self.slug.steps:
                self.learn()
            for done, layer in enumerate(self.concept.gradients):
                self.request.progress("search", done, len(self.concept.gradients))
                with self.memory.without(layer, *self.concept.mates.get(layer, ())):
                    edits, scores, _ = self.smallest(layer)
                    self._offer(edits, scores)
        except Spent:
            pass
        return self.best.candidate or []

    def learn(self) -> None:
        """Let the memory see what blocks give to which input as long as no weight is changed."""
        with self.memory.learn():
            if not self.memory.kept:
                self._allowed().validate(self.request.model)
            self._steering(self._scores(retain=False))

    def smallest(self, layer: str) -> tuple[list[Edit], Scores, list[tuple[float, float]]]:
        """The smallest edit of a layer that forgets, or the nearest to it, its scores, and every (step, value) tried."""
        edits_by, seen = partial(self.concept.edits, layer), dict[float, Scores]()

        def evaluate(step: float) -> float:
            edits = edits_by(step)
            with edited(self.request.model, edits):
                seen[step] = self._scores(retain=self.slug.variant == "openclip")
                if self.slug.variant == "openclip":
                    self.best.offer(seen[step], edits)
                return self._steering(seen[step])

        rho = whole_step(self.request.model.get_parameter(layer), self.concept.gradients[layer])
        try:
            step, trace = search_step(evaluate, rho, steps=self.slug.steps)
        except Spent:  # what was tried is better than nothing
            for tried, scores in seen.items():
                self.best.offer(scores, edits_by(tried))
            raise
        step = min(trace, key=lambda probe: probe[1])[0] if step is None else step
        return edits_by(step), seen[step], trace

    def _offer(self, edits: list[Edit], scores: Scores) -> None:
        """Compare an edit with the best so far; what it keeps is measured where that may decide."""
        if self.slug.variant != "openclip" and self.best.prefers(scores._replace(retain=1.0)):
            with edited(self.request.model, edits):
                self.best.offer(self._scores(retain=True), edits)

    def _scores(self, *, retain: bool) -> Scores:
        """Of the model as it is now, for this concept."""
        if self.concept.target is None:
            return self._allowed().validate(self.request.model, retain=retain)
        split = self.request.validation.forget.of(self.concept.target)
        forget = self._allowed().accuracy(self.request.model, split)
        kept = self._allowed().validate(self.request.model).retain if retain else math.nan
        return Scores(forget, kept, math.sqrt(forget * (1 - forget) / len(split)))

    def _steering(self, scores: Scores) -> float:
        """What the step search brings down to 0."""
        ruled = self.slug.stop == "rule" and self.slug.variant != "openclip"
        if ruled or not self.request.targets:  # samples are to be answered as if never seen, which is not never
            return scores.forget - self.request.goal - scores.forget_se
        split = self.request.validation.forget
        split = split if self.concept.target is None else split.of(self.concept.target)
        return self._allowed().accuracy(self.request.model, split, top=5)

    def _allowed(self) -> Allowance:
        if self.allowance.evals <= self.reserve:
            raise Spent
        return self.allowance


def lowest_forget(request: Request, new: Scores, old: Scores | None) -> bool:
    """The choice of the authors' CLIP experiments: lowest forget accuracy, then highest retain accuracy."""
    return old is None or (-new.forget, new.retain) > (-old.forget, old.retain)


# ---------------------------------------------------------------- which layers

EXCLUDED = ("bias", "logit_scale", "position", "embedding")
"""Parameters with one of these in their name are no layers (authors' code, CLIP); weights of norms are."""
EPSILON = 1e-6
"""Least norm that a cosine is divided by (authors' code)."""
PIECE = 2**16
NORMS = ("norm", "ln_")
"""Left out besides by the authors' Hugging Face path."""


def is_layer(name: str, *, hf: bool = False) -> bool:
    """Whether a parameter is one of SLUG's layers: 76 in the vision and 74 in the text tower of ViT-B/32."""
    return not any(part in name for part in (EXCLUDED + NORMS if hf else EXCLUDED))


def layers_by_tower(weights: Towers, *, hf: bool = False) -> dict[str, list[str]]:
    """The layers of each tower; towers without any are left out.

    With `hf` the image projection of a Hugging Face CLIP counts as text, which the authors' filter makes of it: what
    has no `vision` in its name.
    """
    towers = {tower: [name for name in names if is_layer(name, hf=hf)] for tower, names in weights.items()}
    strays = [name for name in towers.get("vision", ()) if hf and name.startswith("visual_projection")]
    for name in strays:
        towers["vision"].remove(name)
        towers["text"].append(name)
    return {tower: names for tower, names in towers.items() if names}


def layer_scores(
    params: Mapping[str, torch.Tensor],
    forget_grads: Mapping[str, torch.Tensor],
    retain_grads: Mapping[str, torch.Tensor],
    towers: Towers | None = None,
    *,
    signed: bool = False,
) -> pd.DataFrame:
    """Importance and alignment of every layer that the forget loss depends on: equations 7 and 8.

    importance = ||g_f|| / ||theta||, alignment = |cos(g_f, g_r)|, Frobenius norms.

    Args:
        params: name -> weights; scalars are left out.
        forget_grads: name -> gradient of the forget loss; names with a zero gradient are left out.
        retain_grads: name -> gradient of the retain loss.
        towers: tower -> names, as of `Objective.weights`; by default `visual.` is vision and all else text.
        signed: alignment = cos(g_f, g_r), which then depends on the sign that the forget loss is taken with.

    Returns:
        Columns layer, tower, importance, alignment, forget_norm, param_norm; one row a layer.
    """
    import pandas as pd

    tower_of = {name: tower for tower, names in (towers or {}).items() for name in names}
    rows = []
    for name, weight in params.items():
        forget, retain = forget_grads[name], retain_grads[name]
        forget_norm, retain_norm, param_norm = (math.sqrt(inner_product(x, x)) for x in (forget, retain, weight))
        if not math.isfinite(forget_norm + retain_norm):
            raise ValueError(f"a gradient of {name} is not a finite number, so layers cannot be compared.")
        if weight.ndim == 0 or forget_norm == 0 or param_norm == 0:  # without either there is no relative step
            continue
        cosine = inner_product(forget, retain) / (max(forget_norm, EPSILON) * max(retain_norm, EPSILON))
        tower = tower_of.get(name) or ("vision" if name.startswith("visual.") else "text")
        rows.append((name, tower, forget_norm / param_norm, cosine if signed else abs(cosine), forget_norm, param_norm))
    return pd.DataFrame(rows, columns=["layer", "tower", "importance", "alignment", "forget_norm", "param_norm"])


def inner_product(a: torch.Tensor, b: torch.Tensor) -> float:
    """Sum of the products of two tensors' entries.

    In float32 over pieces short enough to lose nothing that matters, in float64 over the pieces: a tenth of the time
    that float64 takes throughout, which at ViT-B/32 was a third of a pass over twelve samples.
    """
    import torch

    kind = torch.promote_types(a.dtype, torch.float32)  # half precision would overflow
    pieces = zip(*(tensor.flatten().to(kind).split(PIECE) for tensor in (a, b)), strict=True)
    total = torch.stack([torch.dot(x, y) for x, y in pieces]).double().sum().item()
    if total == 0 or not math.isfinite(total):  # or too small, or too large, for a square in float32
        total = torch.dot(a.double().flatten(), b.double().flatten()).item()
    return total


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


# ---------------------------------------------------------------- how far


def whole_step(weight: torch.Tensor, gradient: torch.Tensor) -> float:
    """The rho of `search_step`, ||theta|| / ||gradient||: a step this long changes a layer by 100 %."""
    weight = weight.detach()
    return math.sqrt(inner_product(weight, weight) / inner_product(gradient, gradient))


def search_step(
    evaluate: Callable[[float], float], rho: float, *, steps: int, target: float = 0.0
) -> tuple[float | None, list[tuple[float, float]]]:
    """The smallest step that succeeds, by doubling and then bisecting: algorithm 3.

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


# ---------------------------------------------------------------- the authors' Hugging Face path


def hf_edits(
    request: Request, allowance: Allowance, concepts: Sequence[Concept], towers: Towers, *, batch: int
) -> list[Edit]:
    """What the authors' code for Stable Diffusion and UnlearnCanvas does, faults included; the text tower only.

    Against the paper: running sums of gradients in the place of means, the forget pass leaking into the retain pass;
    every caption replaced by one; layers without norms; the deepest layer of the front, with queries, keys and values,
    or both halves of an MLP, edited together by one step; and the sign, by which the edit descends the forget loss.
    """
    names = list(towers.get("text") or next(iter(towers.values())))
    original = allowance.validate(request.model).retain if allowance.evals else math.nan
    found: list[Edit] = []
    for concept in concepts:
        caption: list[torch.Tensor] = []
        forget, leaked = running_sums(
            request.model, names, request.objective.forget_loss, renamed(allowance.batches(concept.forget, batch), caption)
        )
        retain, _ = running_sums(
            request.model, names, request.objective.loss, renamed(allowance.batches(request.retain, batch), caption), leaked
        )
        scores = layer_scores({name: request.model.get_parameter(name).detach() for name in names}, forget, retain)
        if scores.empty or not allowance.evals:
            continue
        front = scores.iloc[pareto_front(scores["importance"].tolist(), scores["alignment"].tolist())]
        layer = deepest(front.sort_values("alignment", ascending=False)["layer"].tolist(), names)
        edits = [Edit(name, 0.0, -forget[name]) for name in whole_layer(layer, names)]  # minus: the faulty sign
        rho = whole_step(request.model.get_parameter(layer), forget[layer])
        request.progress("search")
        step = search_step_uncanvas(partial(_tried, request, allowance, concept, edits), rho, retained=original)
        found += [] if step is None else [edit._replace(step=step) for edit in edits]
        request.progress("prepare")
    return found


def _tried(
    request: Request, allowance: Allowance, concept: Concept, edits: Sequence[Edit], step: float
) -> tuple[float, float] | None:
    """Forget and retain accuracy after a step; None where nothing may be evaluated any more."""
    if allowance.evals < 2:
        return None
    with edited(request.model, [edit._replace(step=step) for edit in edits]):
        scores = allowance.validate(request.model)
        if concept.target is None:
            return scores.forget, scores.retain
        return allowance.accuracy(request.model, request.validation.forget.of(concept.target)), scores.retain


def running_sums(
    model: Model,
    names: Sequence[str],
    loss: Callable[[Model, Batch], torch.Tensor],
    batches: Iterable[Batch],
    leaked: Mapping[str, torch.Tensor] | None = None,
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """sum_j (N - j + 1) grad_j / N, which comes of adding up `.grad` batch by batch without ever clearing it.

    Returns:
        name -> that sum (with N times `leaked` in it), and name -> what is left in `.grad` at the end.
    """
    import torch

    with accumulating(model, names) as parameters:
        for name, parameter in parameters.items():
            parameter.grad = torch.zeros_like(parameter) if leaked is None else leaked[name].clone()
        total, count = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}, 0
        for batch in batches:
            count += 1
            loss(model, batch).backward()
            for name, parameter in parameters.items():
                total[name] += parameter.grad if parameter.grad is not None else 0
        return {name: summed / max(count, 1) for name, summed in total.items()}, taken(parameters, 1)


def renamed(batches: Iterable[Batch], caption: list[torch.Tensor]) -> Iterator[Batch]:
    """Batches with one caption (1, T) for all: the one given, or else the first there is, which is put into the list."""
    for batch in batches:
        if "text" in batch:
            if not caption:
                caption.append(batch["text"][:1])
            batch = {**batch, "text": caption[0].expand_as(batch["text"])}
        yield batch


def deepest(front: Sequence[str], names: Sequence[str]) -> str:
    """The layer of the highest block number in a front; of one block the first.

    Block 0 is never chosen. Where there is nothing else it is the last output projection of an attention among `names`
    (the code's fallback, `11.self_attn.out_proj`), or the last name.
    """
    chosen, depth = "", 0
    for name in front:
        if block(name) > depth:
            chosen, depth = name, block(name)
    return chosen or next((name for name in reversed(names) if "out_proj" in name), names[-1])


def block(name: str) -> int:
    """The number of a layer's block; 0 where it is in none."""
    return int(next((part for part in name.split(".") if part.isdigit()), 0))


TOGETHER = (("q_proj", "k_proj", "v_proj"), ("fc1", "fc2"), ("c_fc", "c_proj"))


def whole_layer(layer: str, names: Sequence[str]) -> list[str]:
    """The layer and what is edited with it: queries, keys and values, or both halves of an MLP."""
    for group in TOGETHER:
        for part in group:
            if f".{part}." in layer:
                mates = [layer.replace(f".{part}.", f".{other}.") for other in group]
                return [layer, *(name for name in mates if name != layer and name in names)]
    return [layer]


def one_of_each_group(layers: Sequence[str]) -> list[str]:
    """The layers without those that would be edited with an earlier one anyway."""
    found: list[str] = []
    for layer in layers:
        if not any(layer in whole_layer(other, layers) for other in found):
            found.append(layer)
    return found


def search_step_uncanvas(
    evaluate: Callable[[float], tuple[float, float] | None], rho: float, *, retained: float, steps: int = 11
) -> float | None:
    """The step search of the authors' UnlearnCanvas script, from 0.4 rho, never above 4 rho.

    Args:
        evaluate: step -> (forget, retain) accuracy after it, None to end the search.
        rho: ||theta|| / ||gradient||.
        retained: retain accuracy of the original.
        steps: evaluations at most.

    Returns:
        The step evaluated last, be it good or not: what is then in the pipeline. None if there was no evaluation.
    """
    step, low, high = 0.4 * rho, 0.0, 4 * rho
    tried: float | None = None
    for _ in range(steps):
        found = evaluate(step)
        if found is None:
            return tried
        tried = step
        forget, retain = found
        if forget == 0 and retain < retained:
            high = step
            step = (low + high) / 2
        elif forget > 0 and retain > retained - 0.01:
            low = step
            step = (low + high) / 2
        # else: the same step is tried again, until the evaluations are used up
        if forget == 0 and abs(retained - retain) < 0.1:
            return tried
    return tried
