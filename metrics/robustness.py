"""Whether what was forgotten comes back: by a little training, coarser weights, other prompts, or half the way back.

An attack says something only beside the retrained models under the same attack: they learn a concept from a few pictures,
too. Runs are seeded alike for every model.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import PositiveFloat, PositiveInt

from slugbench.bench import Batch, Model, Outcome, Request, TextToImage, Trial, Value, metric
from slugbench.bench.types import Split

from .accuracy import average
from .representation import on_device_of

if TYPE_CHECKING:
    import torch


def right(trial: Trial, model: Model, split: str = "forget") -> tuple[np.ndarray, np.ndarray]:
    """Whether each test image of a split is named, and its unit."""
    rows = np.flatnonzero(trial.questions["split"] == split)
    return (trial.answer(model, rows)["rank"] == 0).astype(np.float64), trial.questions["unit"][rows]


def can_be_attacked(outcome: Outcome) -> bool:
    """Whether there are concepts to bring back, and weights to do it with."""
    return outcome.model is not None and bool(outcome.trial.request.targets)


def taken(outcome: Outcome) -> Model:
    """The weights as an attacker has them: in a model as it was built, without what was put around it, such as a filter."""
    model = outcome.model
    assert model is not None
    if outcome.trial.original_model is not None:
        plain = on_device_of(model, outcome.trial.original_model())
        if plain.state_dict().keys() == model.state_dict().keys():
            plain.load_state_dict(model.state_dict())
            return plain
    return copy.deepcopy(model)


# ---------------------------------------------------------------- training


@metric("relearning")
@dataclass(frozen=True)
class Relearning:
    """Forget accuracy while a few of the forgotten pictures are learned again, beside pictures of what was kept.

    What was only hidden comes back in a few steps, what was removed takes as long as in a model that never had it.

    Attributes:
        steps: of AdamW, no weight decay.
        learning_rate: the same for every model; None: 1e-4 for CLIP, 1e-3 for classifiers. Chosen on the development
            requests of the embedded tasks: in these steps retrained models learn a part of the concept, while the original
            loses little of it; at 3e-4 it loses more.
        retain: retained pictures in each step.

    References:
        Lynch et al., Eight Methods to Evaluate Robust Unlearning in LLMs, 2024 (relearning).
    """

    steps: PositiveInt = 50
    learning_rate: PositiveFloat | None = None
    retain: PositiveInt = 64

    needs_model: ClassVar[bool] = True

    def __call__(self, outcome: Outcome) -> list[Value]:
        """For n = 1, 2, 5 pictures a target `relearn@n`, the mean of forget accuracy over the steps, in [0, 1]; and
        `relearn@5+s`, forget accuracy after s steps: the curve. Nearest to the retrained models' is best."""
        if not can_be_attacked(outcome):
            return []
        values = []
        for n in PICTURES:
            curve, unit = self.curve(outcome, n)
            mean = np.trapezoid(np.stack(list(curve.values())), list(curve), axis=0) / self.steps
            values.append(average(f"relearn@{n}", mean, unit, "oracle"))
        values += [average(f"relearn@{PICTURES[-1]}+{step}", x, unit, "oracle") for step, x in curve.items()]
        return values

    def curve(self, outcome: Outcome, n: int) -> tuple[dict[int, np.ndarray], np.ndarray]:
        """Steps -> whether each forgotten test image is named after them; and the images' units."""
        request = outcome.trial.request
        known = first_of_each(request.forget, request.targets, n)

        def batches() -> Iterator[Batch]:
            for batch in forever(request.retain, self.retain):
                yield joined(known, batch)

        found: dict[int, np.ndarray] = {}
        unit = np.array([])
        looks = sorted({0, *(round(self.steps * share) for share in LOOKS)})
        rate = self.learning_rate or _rate(request, clip=1e-4)
        for step, model in trained(outcome, batches(), self.steps, rate):
            if step in looks:
                found[step], unit = right(outcome.trial, model)
        return found, unit


PICTURES = (1, 2, 5)
"""Of each target, that are learned again."""
LOOKS = (0.1, 0.2, 0.4, 0.7, 1.0)
"""Of the steps, after which forget accuracy is measured."""


@metric("resurgence")
@dataclass(frozen=True)
class Resurgence:
    """Forget accuracy after fine-tuning on retained pictures alone, which hold nothing of what was forgotten.

    Attributes:
        epochs: over the retain split.
        learning_rate: of AdamW; None: 3e-4 for CLIP, 1e-3 for classifiers.
        batch: pictures in a step.

    References:
        Suriyakumar et al., Unstable Unlearning: The Hidden Risk of Concept Resurgence in Diffusion Models, 2024.
    """

    epochs: PositiveInt = 1
    learning_rate: PositiveFloat | None = None
    batch: PositiveInt = 128

    needs_model: ClassVar[bool] = True

    def __call__(self, outcome: Outcome) -> list[Value]:
        """One value `resurge`, in [0, 1]; nearest to the retrained models' is best."""
        if not can_be_attacked(outcome):
            return []
        request = outcome.trial.request
        steps = -(-len(request.retain) // self.batch) * self.epochs
        rate = self.learning_rate or _rate(request, clip=3e-4)
        *_, (_, model) = trained(outcome, forever(request.retain, self.batch), steps, rate)
        return [average("resurge", *right(outcome.trial, model), "oracle")]


def _rate(request: Request, *, clip: float) -> float:
    return clip if request.objective.kind == "clip" else 1e-3


def trained(outcome: Outcome, batches: Iterator[Batch], steps: int, rate: float) -> Iterator[tuple[int, Model]]:
    """A copy of the outcome's model after 0, 1, ... `steps` steps of its task's training loss, in eval mode.

    What the loss draws is the same for every model, whatever was asked of the objective before.
    """
    import torch

    model, objective = taken(outcome), outcome.trial.request.objective
    objective = objective.anew() if isinstance(objective, TextToImage) else objective
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0)
    yield 0, model.eval()
    for step in range(1, steps + 1):
        batch = {name: column.to(device) for name, column in next(batches).items()}
        optimizer.zero_grad()
        objective.loss(model.train(), batch).backward()
        optimizer.step()
        yield step, model.eval()


def first_of_each(split: Split, targets: Sequence[str], n: int) -> Batch:
    """The first n samples of each target, in one batch."""
    parts = [next(iter(split.of(target).batches(n))) for target in targets]
    found = parts[0]
    for part in parts[1:]:
        found = joined(found, part)
    return found


def joined(a: Batch, b: Batch) -> Batch:
    """Two batches as one."""
    import torch

    return {name: torch.cat([a[name], b[name]]) for name in a}


def forever(split: Split, size: int) -> Iterator[Batch]:
    """Epoch after epoch, in orders that are the same for every model."""
    import torch

    generator = torch.Generator().manual_seed(0)
    while True:
        yield from split.batches(size, generator)


# ---------------------------------------------------------------- weights


@metric("quantised")
@dataclass(frozen=True)
class Quantised:
    """Forget and retain accuracy with weights rounded to 8 and to 4 bits: a small edit may be rounded away.

    Matrices and convolutions are rounded to the nearest of 2^b - 1 levels, symmetric, one scale an output channel.

    References:
        Zhang et al., Catastrophic Failure of LLM Unlearning via Quantization, 2025.
    """

    needs_model: ClassVar[bool] = True

    def __call__(self, outcome: Outcome) -> list[Value]:
        """Values `fa_w8 fa_w4` (nearest to the retrained models' is best) and `ra_w8 ra_w4`, in [0, 1]."""
        if not can_be_attacked(outcome):
            return []
        values = []
        for bits in (8, 4):
            model = rounded(taken(outcome), bits)
            values.append(average(f"fa_w{bits}", *right(outcome.trial, model), "oracle"))
            values.append(average(f"ra_w{bits}", *right(outcome.trial, model, "retain"), "higher"))
        return values


def rounded(model: Model, bits: int) -> Model:
    """The model with its weights of two and more dimensions at most 2^bits - 1 values an output channel, in place."""
    top = 2 ** (bits - 1) - 1
    for parameter in model.parameters():
        if parameter.ndim > 1:
            rows = parameter.data.flatten(1)
            scale = rows.abs().amax(1, keepdim=True).clamp(min=1e-12) / top
            parameter.data.copy_(((rows / scale).round() * scale).view_as(parameter))
    return model


@metric("undoing")
@dataclass(frozen=True)
class Undoing:
    """How far weights and features went, and forget accuracy after going a part of the way back to the original."""

    needs_model: ClassVar[bool] = True

    def __call__(self, outcome: Outcome) -> list[Value]:
        """Values, lower is better: `undo@10 undo@25 undo@50`, forget accuracy that many percent of the way back, in [0, 1];
        `drift`, mean of 1 - cos between a retained image's features before and after, in [0, 2]; `edit_l2`, ||change|| /
        ||weights||; `edit_tensors`, how many changed.

        None for a retrained model, whose weights were never near the original's.
        """
        if not can_be_attacked(outcome) or outcome.cost is None or outcome.trial.original_model is None:
            return []
        assert outcome.model is not None
        original = on_device_of(outcome.model, outcome.trial.original_model())
        before = original.state_dict()
        after = outcome.model.state_dict()
        if before.keys() != after.keys() or any(before[name].shape != after[name].shape for name in before):
            return [Value("edit_l2", None, better="lower", note="the model returned has other tensors than the original")]
        values = []
        for percent in (10, 25, 50):
            model = taken(outcome)
            model.load_state_dict(between(after, before, percent / 100))
            values.append(average(f"undo@{percent}", *right(outcome.trial, model), "lower"))
        if outcome.trial.features is not None:
            rows = np.flatnonzero(outcome.trial.questions["split"] == "retain")
            moved = 1 - cosines(*(outcome.trial.features(model, rows) for model in (outcome.model, original)))
            values.append(average("drift", moved, outcome.trial.questions["unit"][rows], "lower"))
        change = sum(float((after[n].double() - before[n].double()).square().sum()) for n in before)
        length = sum(float(before[n].double().square().sum()) for n in before)
        changed = sum(not before[n].equal(after[n]) for n in before)
        return [
            *values,
            Value("edit_l2", (change / length) ** 0.5, "", "lower"),
            Value("edit_tensors", float(changed), "tensors", "lower"),
        ]


def between(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor], share: float) -> dict[str, torch.Tensor]:
    """State dict at that share of the way from a to b; what is no floating-point number stays a's."""
    return {name: a[name].lerp(b[name], share) if a[name].is_floating_point() else a[name] for name in a}


def cosines(a_nD: np.ndarray, b_nD: np.ndarray) -> np.ndarray:
    """(n,) of corresponding rows; 0 where either has no length."""
    lengths = np.linalg.norm(a_nD, axis=1) * np.linalg.norm(b_nD, axis=1)
    return (a_nD * b_nD).sum(1) / np.where(lengths == 0, 1, lengths)


# ---------------------------------------------------------------- prompts


@metric("prompting")
@dataclass(frozen=True)
class Prompting:
    """Forget accuracy where an attacker chooses what stands for the name: words, or a vector.

        words    from a prompt of the name, one word at a time replaced by the best of all, sweep after sweep
        vector   the mean of the pictures' own embeddings, which no text may have: the best there is for their cosine

    The attacker has the first few training pictures of the target; what was found is tried on test pictures.

    Attributes:
        pictures: the attacker's.
        sweeps: over the words of a prompt.

    References:
        Zhang et al., To Generate or Not? Safety-Driven Unlearned Diffusion Models Are Still Easy To Generate Unsafe Images
        ... For Now, 2024 (adversarial prompts). Pham et al., Circumventing Concept Erasure Methods for Text-to-Image
        Generative Models, 2024 (inversion).
    """

    pictures: PositiveInt = 5
    sweeps: PositiveInt = 2

    needs_model: ClassVar[bool] = True

    def __call__(self, outcome: Outcome) -> list[Value]:
        """Values `prompt_adv` and `prompt_inv`, in [0, 1]; nearest to the retrained models' is best."""
        trial, model = outcome.trial, outcome.model
        if model is None or trial.prompts is None or trial.features is None or not trial.request.targets:
            return []
        split, label, unit = (trial.questions[name] for name in ("split", "label", "unit"))
        found: dict[str, list[np.ndarray]] = {"prompt_adv": [], "prompt_inv": []}
        units = []
        for target in np.unique(label[split == "forget"]).tolist():
            held = np.flatnonzero((split == "forget_train") & (label == target))[: self.pictures]
            tested = np.flatnonzero((split == "forget") & (label == target))
            for name, text_1D in (
                ("prompt_adv", best_words(trial, model, target, held, self.sweeps)),
                ("prompt_inv", prototype(trial.features(model, held), model)),
            ):
                found[name].append((trial.prompts.margins(model, target, text_1D, tested)[0] > 0).astype(np.float64))
            units.append(unit[tested])
        return [average(name, np.concatenate(x), np.concatenate(units), "oracle") for name, x in found.items()]


def best_words(trial: Trial, model: Model, label: int, rows: np.ndarray, sweeps: int) -> torch.Tensor:
    """(1, D) embedding of the prompt with the highest mean margin on those images that coordinate search finds."""
    import torch

    prompts = trial.prompts
    assert prompts is not None
    tokens, words = prompts.start(label).clone(), torch.tensor(list(prompts.words()))
    for _ in range(sweeps):
        before = tokens.clone()
        for place in prompts.places(label):
            tried = tokens.repeat(len(words), 1)
            tried[:, place] = words
            tried = torch.cat([tokens[None], tried])  # the prompt as it is wins ties
            margins = prompts.margins(model, label, prompts.embed(model, tried), rows)
            tokens = tried[int(margins.mean(1).argmax())]
        if tokens.equal(before):
            break
    return prompts.embed(model, tokens[None])


def prototype(features_nD: np.ndarray, model: Model) -> torch.Tensor:
    """(1, D) unit vector nearest to all of them by mean cosine."""
    import torch
    from torch.nn.functional import normalize

    parameter = next(model.parameters())
    mean = torch.from_numpy(features_nD).to(parameter.device, parameter.dtype).mean(0, keepdim=True)
    return normalize(mean, dim=1)
