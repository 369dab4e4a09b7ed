"""Random labels: train on the forget split under names that are not its own, and on the retain split as ever."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from math import ceil
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from slugbench.bench import Batch, Model, Objective, Request, TextToImage, method

from ._common import Allowance, Tensors, fine_tune, generator_of

if TYPE_CHECKING:
    import torch

Labels = Literal["strict", "uniform"]
Schedule = Literal["mixed", "two_phase", "joint"]


@method("random_label")
@dataclass(frozen=True)
class RandomLabel:
    """Random labelling: SalUn without a mask, so that all weights but a CLIP's temperature may change.

    Three schedules, since paper and code differ:

        mixed       each step descends E_forget[CE(y')] + alpha E_retain[loss]: the paper's equation 5
        two_phase   an epoch is all forget batches, then all retain batches: its code for CIFAR-10 and SVHN
        joint       an epoch is one shuffled pass over both: its code for CIFAR-100 and TinyImageNet

    y' is drawn anew each time a sample comes up. On CLIP, where the papers have no form, CE is that of zero-shot
    classification over the candidate names and the retain loss is the contrastive one. In place of CE a text-to-image model
    has SalUn's equation 6: under the prompt with the target it is to predict what, held fixed, it predicts under y'.

    References:
        Golatkar et al., Eternal Sunshine of the Spotless Net: Selective Forgetting in Deep Networks, 2020.
        Fan et al., SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency, 2024: its baseline RL.
    """

    labels: Labels = "strict"
    """`strict`: y' != y, as the paper writes. `uniform`: the true name too, one time in C, as its code draws."""
    schedule: Schedule | None = None
    """None: the code's `two_phase` for classifiers; else `mixed`, which on two requests of `identities` retained
    .87 of the validation pictures where `two_phase` retained .84 after about as many reads."""
    alpha: PositiveFloat | None = None
    """Of `mixed`, weight of what is kept. None: 9, the ratio of retain to forget in the paper's 10 % case; for text-to-image
    models .5, of SalUn's code."""
    learning_rate: PositiveFloat | None = None
    """None: the paper's .013 (SGD) for classifiers, else 1e-3 (Adam)."""
    weight_decay: NonNegativeFloat | None = None
    """None: the paper's 5e-4 for classifiers, else 0."""
    steps: PositiveInt | None = None
    """None: the paper's 10 epochs; in `mixed` 80, with which `identities` retains 2 points more than with 40."""
    batch: PositiveInt = 32  # of the forget split in `mixed`, else of all: the paper's 256, for splits of thousands
    retain_batch: PositiveInt | None = None
    """In `mixed`. None: 96; for text-to-image models as many as of the forget split, as in SalUn's code."""
    every: PositiveInt | None = None
    """Steps between two looks at validation; None: an epoch, so that in `two_phase` the retain phase comes last, and 5
    in `mixed`."""

    space: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "learning_rate": (1e-4, 3e-4, 1e-3, 5e-3, 1.3e-2, 5e-2, 1e-1),  # a study's of SalUn and RL (SGD); for Adam the lower
        "alpha": (1.0, 3.0, 9.0),
    }

    def __call__(self, request: Request) -> Model:
        """The model fine-tuned on random labels."""
        return self.learn(request, Allowance(request), everywhere(request))

    def learn(self, request: Request, allowance: Allowance, masks: Tensors | None) -> Model:
        """The same where each weight may change only if `masks` says so: SalUn is this within its mask."""
        request = replace(request, generator=generator_of(request))  # one stream of numbers for all that is drawn
        classifier = request.objective.kind == "classifier"
        schedule = self.schedule or ("two_phase" if classifier else "mixed")
        losses = {"mixed": self.mixed, "two_phase": self.two_phase, "joint": self.joint}[schedule]
        steps, every = self.pace(schedule, request)
        relabel = relabelling(request, allowance, self.labels)
        return fine_tune(
            request,
            lambda allowance: losses(request, allowance, relabel),
            learning_rate=self.learning_rate or (0.013 if classifier else 1e-3),
            steps=steps,
            every=every,
            stop=False,
            weight_decay=(5e-4 if classifier else 0.0) if self.weight_decay is None else self.weight_decay,
            masks=masks,
            allowance=allowance,
        )

    def pace(self, schedule: Schedule, request: Request) -> tuple[int, int]:
        """How many steps to take, and after how many to look at validation."""
        if schedule == "mixed":
            return self.steps or 80, self.every or 5
        n_forget, n_retain = len(request.forget), len(request.retain)
        joint = ceil((n_forget + n_retain) / self.batch)
        epoch = joint if schedule == "joint" else ceil(n_forget / self.batch) + ceil(n_retain / self.batch)
        return self.steps or 10 * epoch, self.every or epoch

    # ---------------------------------------------------------------- schedules: a loss a step, for as long as may be read

    def mixed(self, request: Request, allowance: Allowance, relabel: Relabel) -> Iterator[torch.Tensor]:
        """A forget and a retain batch in every step."""
        drawing = request.objective.kind == "diffusion"
        alpha = self.alpha or (0.5 if drawing else 9.0)
        retain_batch = self.retain_batch or (self.batch if drawing else 96)
        pairs = zip(
            allowance.forever(request.forget, self.batch, generator_of(request)),
            allowance.forever(request.retain, retain_batch, generator_of(request)),
            strict=False,  # either ends where the budget does
        )
        for forget, retain in pairs:
            relabelled = relabel(forget)
            yield random_label_loss(request, relabelled) + alpha * request.objective.loss(request.model, retain)

    def two_phase(self, request: Request, allowance: Allowance, relabel: Relabel) -> Iterator[torch.Tensor]:
        """All forget batches, then all retain batches."""
        while allowance.reads:
            for forget in allowance.batches(request.forget, self.batch, generator_of(request)):
                yield random_label_loss(request, relabel(forget))
            for retain in allowance.batches(request.retain, self.batch, generator_of(request)):
                yield request.objective.loss(request.model, retain)

    def joint(self, request: Request, allowance: Allowance, relabel: Relabel) -> Iterator[torch.Tensor]:
        """Batches of the two splits concatenated and shuffled: of either, as many samples as fall into a batch."""
        import torch

        generator, n_forget = generator_of(request), len(request.forget)
        while allowance.reads:
            forget = samples(relabel(b) for b in allowance.batches(request.forget, self.batch, generator))
            retain = samples(allowance.batches(request.retain, self.batch, generator))
            is_forget = torch.randperm(n_forget + len(request.retain), generator=generator) < n_forget
            for places in is_forget.split(self.batch):
                n = int(places.sum())
                dealt = [*islice(forget, n)], [*islice(retain, len(places) - n)]
                if any(dealt):  # else nothing more may be read
                    yield joint_loss(request, *dealt)


Relabel = Callable[[Batch], Batch]


def everywhere(request: Request) -> dict[str, torch.Tensor]:
    """The mask that lets every weight change but the temperature of a CLIP."""
    import torch

    names = [name for tower in request.objective.weights(request.model).values() for name in tower]
    return {
        name: torch.full_like(request.model.get_parameter(name), not is_temperature(name), dtype=torch.bool)
        for name in names
    }


def is_temperature(name: str) -> bool:
    """Whether a parameter is what a CLIP multiplies (or shifts) all similarities by; it belongs to no tower."""
    return name.endswith(("logit_scale", "logit_bias"))


def relabelling(request: Request, allowance: Allowance, labels: Labels) -> Relabel:
    """Batch -> the batch under random labels, drawn anew from the request's generator at each call.

    `Objective.relabel` never gives the true label. `uniform` therefore leaves a sample its own with probability 1/C, C
    being the number of candidates: where all others are drawn alike, this is a uniform draw from all.
    """
    import torch

    objective, own = request.objective, 0.0
    if labels == "uniform":
        # asked for now: in train mode, later, a batch norm would learn from it
        for sample in islice(allowance.batches(request.forget, 1), 1):
            with torch.no_grad():
                own = 1 / objective.logits(request.model, sample).shape[1]
    return partial(relabelled, objective, generator_of(request), own)


def relabelled(objective: Objective, generator: torch.Generator, own: float, batch: Batch) -> Batch:
    """The batch under labels drawn at random, each sample's own with probability `own`."""
    import torch

    drawn = objective.relabel(batch, generator)
    if objective.kind == "diffusion":
        drawn, batch = ({**columns, PROMPT: batch["text"]} for columns in (drawn, batch))
    if not own:
        return drawn
    kept = torch.rand(len(batch["index"]), generator=generator) < own

    def choose(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        return new if new is old else torch.where(kept.to(old.device).view(-1, *[1] * (old.ndim - 1)), old, new)

    return {name: choose(batch[name], column) for name, column in drawn.items()}


PROMPT = "prompt"
"""The column of a text-to-image model's relabelled batch that has the true prompts."""


def random_label_loss(request: Request, relabelled: Batch) -> torch.Tensor:
    """Cross-entropy with the labels drawn; on CLIP its zero-shot classifier's, so that the true name is pushed away.

    Of a text-to-image model how far its prediction under the true prompts is from that under the drawn ones, which is held
    fixed: the prompt of the target is led elsewhere, where the training loss would teach others to draw the target.
    """
    from torch.nn.functional import cross_entropy, mse_loss

    model, objective = request.model, request.objective
    if objective.kind == "clip":
        return cross_entropy(objective.logits(model, relabelled), relabelled["label"])
    if isinstance(objective, TextToImage):
        state = objective.noised(relabelled)
        elsewhere = objective.predict(model, state, relabelled["text"]).detach()
        return mse_loss(objective.predict(model, state, relabelled[PROMPT]), elsewhere)
    return objective.loss(model, relabelled)


def joint_loss(request: Request, forget: list[Batch], retain: list[Batch]) -> torch.Tensor:
    """The mean loss over relabelled and retained samples; where they have one loss, in one forward pass."""
    objective, n = request.objective, len(forget) + len(retain)
    if objective.kind == "classifier":
        return objective.loss(request.model, together(forget + retain))
    losses = []
    if forget:
        losses.append(len(forget) / n * random_label_loss(request, together(forget)))
    if retain:
        losses.append(len(retain) / n * objective.loss(request.model, together(retain)))
    return sum(losses[1:], losses[0])


def samples(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The samples of a stream of batches, one at a time."""
    for batch in batches:
        for i in range(len(batch["index"])):
            yield {name: column[i : i + 1] for name, column in batch.items()}


def together(samples: list[Batch]) -> Batch:
    """One batch of several."""
    import torch

    return {name: torch.cat([sample[name] for sample in samples]) for name in samples[0]}
