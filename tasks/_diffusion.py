"""Text-to-image models as methods and metrics meet them: the parts of a Stable Diffusion pipeline of diffusers.

What is edited is a `ModuleDict` of the text encoder (`text`) and the U-Net (`unet`); autoencoder, tokenizer and scheduler
are no method's to change and stay with the objective. Denoising trains the U-Net, as it does in Stable Diffusion, whose
text encoder comes from a CLIP; by that CLIP's loss a method can edit it (`Denoising.contrast`). The same code serves a
pipeline of 16 pixels and one of 512.

Legend for array shapes: B pictures, T tokens, C candidates, D width of the text.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from slugbench.bench import Batch, Model, Noised, Scores, UsageError

from ._clip import matched_loss, other_labels

if TYPE_CHECKING:
    import torch
    from diffusers import StableDiffusionPipeline

KIND = "diffusion"


# ---------------------------------------------------------------- pipelines


def read_pipeline(folder: Path) -> StableDiffusionPipeline:
    """A pipeline as `save_pretrained` leaves it, in full precision, without a network."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, local_files_only=True)
    for part in (pipeline.unet, pipeline.text_encoder, pipeline.vae):
        part.float().eval()
    pipeline.vae.requires_grad_(False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def editable(pipeline: StableDiffusionPipeline) -> Model:
    """What methods are given of a pipeline: its text encoder, which takes no gradient, and its U-Net; in eval mode."""
    from torch import nn

    return nn.ModuleDict({"text": pipeline.text_encoder.requires_grad_(False), "unet": pipeline.unet}).eval()


def with_model(pipeline: StableDiffusionPipeline, model: Model) -> StableDiffusionPipeline:
    """A pipeline that samples from an edited model, where that is; all other parts are shared, and come along."""
    parts = {**pipeline.components, "text_encoder": model.get_submodule("text"), "unet": model.get_submodule("unet")}
    made = type(pipeline)(**parts, requires_safety_checker=False)
    made.set_progress_bar_config(disable=True)
    return made.to(next(model.parameters()).device)


def generate(
    pipeline: StableDiffusionPipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int,
    guidance: float,
    batch: int,
    side: int | None = None,
) -> Iterator[torch.Tensor]:
    """Pictures (b, 3, H, W) from 0 to 1, in batches, each from a generator of its own; by default of the size that the
    U-Net is made for.

    What a prompt and a seed give depends on neither their neighbours nor the batch size, but for the order in which
    floats are added up: 1e-6 of a picture at 16 pixels.
    """
    import torch

    side = side or pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    for start in range(0, len(prompts), batch):
        some, own = prompts[start : start + batch], seeds[start : start + batch]
        found = pipeline(
            list(some),
            generator=[torch.Generator().manual_seed(int(seed)) for seed in own],
            num_inference_steps=steps,
            guidance_scale=guidance,
            height=side,
            width=side,
            output_type="pt",
        )
        yield found.images.float()


def drawn_scores(right: Mapping[str, np.ndarray], domain: str, n_forget: int, *, retain: bool) -> Scores:
    """How a model that makes pictures stands on validation.

    Args:
        right: by domain, whether each picture shows the class prompted; first the pictures asked for with the target.
        domain: the target's.
        n_forget: how many of these there are.
        retain: whether there are others; of them each domain counts for half.
    """
    p = float(right[domain][:n_forget].mean())
    kept = float(np.mean([hits[n_forget:].mean() for hits in right.values()])) if retain else math.nan
    return Scores(p, kept, math.sqrt(p * (1 - p) / n_forget))


def redraw(
    pipeline: StableDiffusionPipeline,
    image: torch.Tensor,
    text: torch.Tensor,
    seeds: Sequence[int],
    *,
    steps: int,
    guidance: float,
    strength: float,
) -> torch.Tensor:
    """Pictures (B, 3, H, W) from 0 to 1, drawn from others under noise: the last `strength` of so many steps.

    Args:
        pipeline: whose parts are used.
        image: (B, 3, H, W) from -1 to 1.
        text: (B, T) tokens of the prompts.
        seeds: of each picture's noise.
        steps: of sampling from noise alone.
        guidance: towards the prompts.
        strength: in (0, 1]; at 1 nothing is left of the picture but what its noise level leaves.

    References:
        Meng et al., SDEdit: Guided Image Synthesis and Editing with Stochastic Differential Equations, 2022.
    """
    import torch
    from diffusers import StableDiffusionImg2ImgPipeline

    again = StableDiffusionImg2ImgPipeline(**pipeline.components, requires_safety_checker=False)
    again.set_progress_bar_config(disable=True)
    device = next(pipeline.unet.parameters()).device
    text = text.to(device)
    nothing = pipeline.tokenizer([""], padding="max_length", max_length=text.shape[1], return_tensors="pt").input_ids
    without = pipeline.text_encoder(nothing.to(device))[0].expand(len(text), -1, -1)
    return again(
        prompt_embeds=pipeline.text_encoder(text)[0],
        negative_prompt_embeds=without,
        image=((image + 1) / 2).clamp(0, 1).to(device),  # below 0 it would be taken for -1 to 1
        strength=strength,
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        output_type="pt",
    ).images.float()


def to_latents(vae: Any, image: torch.Tensor) -> torch.Tensor:
    """Latents of pictures from -1 to 1, as the U-Net is trained on: the mean of what the encoder says."""
    found = vae.to(image.device).encode(image.to(vae.dtype))
    latents = found.latent_dist.mean if hasattr(found, "latent_dist") else found.latents
    return (latents * vae.config.scaling_factor).to(image.dtype)


def noised(scheduler: Any, latents: torch.Tensor, noise: torch.Tensor, time: torch.Tensor) -> Noised:
    """Latents (B, C, H, W) under that noise at those times (B,), and what a U-Net of this scheduler is to predict."""
    kind = scheduler.config.prediction_type
    if kind not in ("epsilon", "v_prediction"):
        raise UsageError(f"the scheduler predicts '{kind}'; there are losses for epsilon and v_prediction.")
    wanted = noise if kind == "epsilon" else scheduler.get_velocity(latents, noise, time)
    return Noised(scheduler.add_noise(latents, noise, time), time, wanted)


def denoising_error(
    pipeline: StableDiffusionPipeline,
    image: torch.Tensor,
    text: torch.Tensor,
    noise_KB: torch.Tensor,
    times: Sequence[int],
) -> torch.Tensor:
    """(B,) mean squared errors of the U-Net's predictions, averaged over K times with a noise (B, C, H, W) for each.

    By how small it is, pictures that were trained on stand out. Fixed times and noises take most of the chance out of it.

    References:
        Matsumoto, Miura and Yanai, Membership Inference Attacks against Diffusion Models, 2023.
        Carlini et al., Extracting Training Data from Diffusion Models, 2023: times of little noise say most.
    """
    import torch

    device = next(pipeline.unet.parameters()).device
    with torch.no_grad():
        said, latents = pipeline.text_encoder(text.to(device))[0], to_latents(pipeline.vae, image).to(device)
        errors = []
        for time, noise in zip(times, noise_KB, strict=True):
            state = noised(pipeline.scheduler, latents, noise.to(device), torch.full((len(image),), time, device=device))
            assert state.wanted is not None
            found = pipeline.unet(state.latents, state.time, said).sample
            errors.append((found - state.wanted).square().flatten(1).mean(1))
    return torch.stack(errors).mean(0).cpu()


# ---------------------------------------------------------------- names


@dataclass(frozen=True)
class Names:
    """The part of `bench.types.Drawing` that is about names: other vectors where the text encoder looks one up."""

    named: Mapping[str, torch.Tensor]
    """(T,) tokens of the bare name of each concept."""

    def vectors(self, model: Model, target: str) -> torch.Tensor:
        """(W, D) embeddings of the name's tokens; a copy."""
        table = _embedding(model)
        return table.weight[_words(self.named[target]).to(table.weight.device)].detach().clone()

    @contextmanager
    def instead(self, model: Model, target: str, vectors_WD: torch.Tensor) -> Iterator[None]:
        """Inside, prompts that name the target are read with those vectors in the name's place, wherever it stands."""
        import torch

        words = _words(self.named[target])

        def put(module: Model, inputs: tuple[torch.Tensor, ...], found_BTD: torch.Tensor) -> torch.Tensor:
            text = inputs[0]
            row, start = torch.nonzero(_starts(text, words), as_tuple=True)
            place = start[:, None] + torch.arange(len(words), device=text.device)
            vectors = vectors_WD.to(found_BTD).expand(len(row), -1, -1)
            return found_BTD.index_put((row[:, None].expand_as(place), place), vectors)

        handle = _embedding(model).register_forward_hook(put)
        try:
            yield
        finally:
            handle.remove()


@dataclass(frozen=True)
class Drawn(Names):
    """`bench.types.Drawing` of a pipeline whose pictures a frozen classifier looks at."""

    pipeline: Any
    """All that is not edited."""
    seen: Callable[[torch.Tensor], np.ndarray]
    """(B,) class seen, in the targets' domain, in pictures (B, 3, H, W) from 0 to 1."""
    guidance: float
    at_a_time: int
    """Pictures that are drawn together."""

    def redraw(self, model: Model, batch: Batch, *, strength: float, seed: int) -> np.ndarray:
        """(B,) class seen in what the model makes of noised pictures under their prompts; they keep their size."""
        import torch

        edited, found = with_model(self.pipeline, model), []
        how: Any = {"steps": REDRAW_STEPS, "guidance": self.guidance, "strength": strength}
        parts = (torch.arange(len(batch["image"])), batch["image"], batch["text"])
        with torch.no_grad():
            for places, image, text in zip(*(part.split(self.at_a_time) for part in parts), strict=True):
                seeds = (REDRAWN + 1000 * seed + places).tolist()
                found.append(self.seen(redraw(edited, image, text, seeds, **how)))
        return np.concatenate(found)


REDRAW_STEPS = 20
"""Of sampling from noise alone, of which parts in tenths are whole numbers."""
REDRAWN = 2 * 10**6
"""Seeds of noise put over pictures start here: no question has them, nor validation."""


def _embedding(model: Model) -> Any:
    encoder: Any = model.get_submodule("text")
    return encoder.get_input_embeddings()


# ---------------------------------------------------------------- objective


@dataclass
class Denoising:
    """`Objective` of a text-to-image model: batches hold `image` (B, 3, H, W) from -1 to 1, `text` (B, T), `label` (B,) in
    the targets' domain, and `cell` (B,), which says what else is in the picture.

    Times and noise are drawn from a generator of the objective's own: the same for every method that asks as often.
    """

    vae: Any
    scheduler: Any
    nothing: torch.Tensor
    """(1, T) tokens of the empty prompt."""
    candidates: torch.Tensor
    """(cells, C, T) tokens of a cell's prompt with each concept of the targets' domain in its place."""
    kept: torch.Tensor
    """(k,) labels that are no target: what a picture may be said to be instead."""
    labels: Mapping[str, int]
    """By target its label."""
    named: Mapping[str, torch.Tensor]
    """(T,) tokens of the bare name of every concept, of all domains."""
    contrast: Contrast
    """The objective of the CLIP that the text encoder is of."""
    seed: int = 0
    kind: str = KIND
    _generator: Any = field(default=None, repr=False)

    def anew(self) -> Denoising:
        """The same, whose own generator is at its beginning."""
        return replace(self, _generator=None)

    def loss(self, model: Model, batch: Batch) -> torch.Tensor:
        """Mean squared error of what the U-Net predicts under the prompt: noise, or velocity, as it was trained."""
        return self.error(model, batch, batch["text"]).mean()

    def forget_loss(self, model: Model, batch: Batch) -> torch.Tensor:
        """The same, which ascended makes prompts lead away from their pictures."""
        return self.loss(model, batch)

    def error(self, model: Model, batch: Batch, text: torch.Tensor, draws: torch.Generator | None = None) -> torch.Tensor:
        """(B,) squared errors at a time and under noise drawn for each picture."""
        state = self.noised(batch, draws)
        assert state.wanted is not None
        return (self.predict(model, state, text) - state.wanted).square().flatten(1).mean(1)

    def noised(self, batch: Batch, draws: torch.Generator | None = None) -> Noised:
        """Pictures at a time and under noise drawn for each, by the objective's own generator if no other is given."""
        import torch

        latents = to_latents(self.vae, batch["image"])
        generator = draws or self._draws()
        noise = torch.randn(latents.shape, generator=generator).to(latents.device)
        last = self.scheduler.config.num_train_timesteps
        time = torch.randint(last, (len(latents),), generator=generator).to(latents.device)
        return noised(self.scheduler, latents, noise, time)

    def predict(self, model: Model, state: Noised, text: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) what the U-Net says under that text; one text may stand for all."""
        said = model.get_submodule("text")(text)[0].expand(len(state.latents), -1, -1)
        return model.get_submodule("unet")(state.latents, state.time, said).sample

    def drawn(self, model: Model, text: torch.Tensor, generator: torch.Generator, *, guidance: float) -> Noised:
        """What the model has made of noise by one of `DRAWING_STEPS` times, drawn for the batch, guided to that text."""
        import torch

        config: Any = model.get_submodule("unet").config
        shape = (len(text), config.in_channels, config.sample_size, config.sample_size)
        latents = torch.randn(shape, generator=generator).to(text.device)
        scheduler = type(self.scheduler).from_config(self.scheduler.config)
        scheduler.set_timesteps(DRAWING_STEPS)
        latents = latents * scheduler.init_noise_sigma
        until = int(torch.randint(DRAWING_STEPS, (), generator=generator))
        with torch.no_grad():
            for time in scheduler.timesteps[:until]:
                state = Noised(latents, time.expand(len(text)).to(text.device))
                without, under = (self.predict(model, state, said) for said in (self.nothing.to(text.device), text))
                latents = scheduler.step(without + guidance * (under - without), time, latents).prev_sample
        return Noised(latents, scheduler.timesteps[until].expand(len(text)).to(text.device))

    def said(self, batch: Batch, target: str) -> torch.Tensor:
        """(B, T) the prompts of a batch, with the target in the place of the concept of its domain."""
        return self.candidates[batch["cell"].cpu(), self.labels[target]].to(batch["text"].device)

    def names(self, targets: Sequence[str] | None = None) -> torch.Tensor:
        """(n, T) the bare names of those targets, or of all that is no target."""
        import torch

        wanted = [name for name in self.named if name not in self.labels] if targets is None else targets
        return torch.stack([self.named[name] for name in wanted])

    def relabel(self, batch: Batch, generator: torch.Generator) -> Batch:
        """The same pictures under their prompts with another, retained concept in the place of theirs."""
        return relabelled(batch, self.candidates, self.kept, generator)

    def logits(self, model: Model, batch: Batch) -> torch.Tensor:
        """(B, C) minus the error under each candidate's prompt, the same times and noise for all: a diffusion classifier.

        References:
            Li et al., Your Diffusion Model is Secretly a Zero-Shot Classifier, 2023.
        """
        import torch

        columns = []
        for tokens in self.candidates[batch["cell"].cpu()].to(batch["image"].device).unbind(1):
            draws = torch.Generator().manual_seed(self.seed)
            errors = [self.error(model, batch, tokens, draws) for _ in range(LOOKS)]
            columns.append(-torch.stack(errors).mean(0))
        return torch.stack(columns, dim=1)

    def weights(self, model: Model) -> dict[str, list[str]]:
        """The U-Net's, in one tower: the text encoder is trained before it and left alone."""
        return {"unet": [f"unet.{name}" for name, _ in model.get_submodule("unet").named_parameters()]}

    def masked(self, model: Model, targets: Sequence[str]) -> Model:
        """A copy that reads prompts of kept concepts wherever a target is named: same weights, a `Filter` before them."""
        import torch

        named = tuple((_words(self.named[target]), self._longer(target, targets)) for target in targets)
        asked = torch.cat([self.candidates[:, self.labels[target]] for target in targets])
        instead = self.candidates[:, self.kept[0]].repeat(len(targets), 1)
        copied = copy.deepcopy(model)
        reads = Filter(named, asked, instead, self.candidates[0, self.kept[0]])
        copied.get_submodule("text").register_forward_pre_hook(reads, with_kwargs=True)
        return copied

    def _longer(self, target: str, targets: Sequence[str]) -> tuple[torch.Tensor, ...]:
        """The words of other names that hold all of a target's: `Artist Sketch` is no `Sketch`."""
        words, others = _words(self.named[target]), [name for name in self.named if name not in targets]
        named = [_words(self.named[name]) for name in others]
        return tuple(each for each in named if len(each) > len(words) and _starts(each[None], words).any())

    def _draws(self) -> torch.Generator:
        import torch

        if self._generator is None:
            self._generator = torch.Generator().manual_seed(self.seed)
        return self._generator


@dataclass(frozen=True, eq=False)
class Filter:
    """In the place of prompts that name what is filtered, others are read; a hook before a text encoder.

    A prompt of the objective's own keeps all but the concept, as a model that forgot it would. An empty prompt would draw
    what is filtered as often as chance has it.
    """

    named: tuple[tuple[torch.Tensor, tuple[torch.Tensor, ...]], ...]
    """(W,) words of each name that is filtered, and those of longer names that hold them and stay."""
    asked: torch.Tensor
    """(n, T) prompts with what is filtered."""
    instead: torch.Tensor
    """(n, T) what is read for each of them."""
    otherwise: torch.Tensor
    """(T,) what is read for any other text with such a name."""

    def __call__(self, module: Model, inputs: tuple[torch.Tensor, ...], options: dict[str, Any]) -> Any:
        """The arguments that the text encoder is given."""
        if inputs:
            return (self.read(inputs[0]), *inputs[1:]), options
        return inputs, {**options, "input_ids": self.read(options["input_ids"])}

    def read(self, text_BT: torch.Tensor) -> torch.Tensor:
        """(B, T) what is read of texts."""
        import torch

        same = (text_BT[:, None] == self.asked.to(text_BT.device)).all(-1)
        alike = self.instead.to(text_BT.device)[same.int().argmax(1)]
        other = torch.where(same.any(1)[:, None], alike, self.otherwise.to(text_BT.device))
        hit = torch.stack([_holds(text_BT, words, longer) for words, longer in self.named]).any(0)
        return torch.where(hit[:, None], other, text_BT)


@dataclass(frozen=True)
class Contrast:
    """`Objective` of the CLIP whose text encoder a pipeline reads prompts by; its picture tower is no part of the model.

    Pictures and prompts of one cell are positives of each other. `TwoTowers`, so that SLUG can take logical batches.
    """

    clip: Any
    """transformers' `CLIPModel`; its own text encoder is not asked."""
    candidates: torch.Tensor
    """(cells, C, T), as of `Denoising`."""
    kept: torch.Tensor
    view: Callable[[torch.Tensor], torch.Tensor] = lambda image: image
    """Makes of a batch's pictures what the CLIP takes."""
    kind: str = "clip"

    def loss(self, model: Model, batch: Batch) -> torch.Tensor:
        """InfoNCE both ways, at the CLIP's temperature."""
        return self.loss_of(model, self._embed(model, batch), batch)

    def forget_loss(self, model: Model, batch: Batch) -> torch.Tensor:
        """Mean of 1 - cos(picture, its prompt), to be ascended."""
        return self.forget_loss_of(model, self._embed(model, batch), batch)

    def encode(self, model: Model, batch: Batch, tower: str) -> torch.Tensor:
        """(B, D) unit embeddings of the pictures, by the CLIP, or of the prompts, by the model's text encoder."""
        from torch.nn.functional import normalize

        self.clip.to(batch["image" if tower == "vision" else "text"].device)
        if tower == "vision":
            pooled = self.clip.vision_model(pixel_values=self.view(batch["image"])).pooler_output
            return normalize(self.clip.visual_projection(pooled), dim=-1)
        return normalize(self.clip.text_projection(model.get_submodule("text")(batch["text"]).pooler_output), dim=-1)

    def loss_of(self, model: Model, embedded: Mapping[str, torch.Tensor], batch: Batch) -> torch.Tensor:
        """`loss`, given the embeddings of both towers."""
        scale = self.clip.logit_scale.exp()
        return matched_loss(scale * embedded["vision"] @ embedded["text"].T, batch["cell"])

    def forget_loss_of(self, model: Model, embedded: Mapping[str, torch.Tensor], batch: Batch) -> torch.Tensor:
        """`forget_loss`, given the embeddings of both towers."""
        return (1 - (embedded["vision"] * embedded["text"]).sum(-1)).mean()

    def relabel(self, batch: Batch, generator: torch.Generator) -> Batch:
        """The same pictures under their prompts with another, retained concept in the place of theirs."""
        return relabelled(batch, self.candidates, self.kept, generator)

    def logits(self, model: Model, batch: Batch) -> torch.Tensor:
        """(B, C) scaled cosines with a picture's prompt under each concept of the targets' domain."""
        import torch

        prompts_BCT = self.candidates[batch["cell"].cpu()].to(batch["image"].device)
        columns = [self.encode(model, {**batch, "text": tokens}, "text") for tokens in prompts_BCT.unbind(1)]
        pictures_BD = self.encode(model, batch, "vision")
        return self.clip.logit_scale.exp() * torch.stack([(pictures_BD * text).sum(-1) for text in columns], dim=1)

    def weights(self, model: Model) -> dict[str, list[str]]:
        """The text encoder's."""
        return {"text": [f"text.{name}" for name, _ in model.get_submodule("text").named_parameters()]}

    def masked(self, model: Model, targets: Sequence[str]) -> Model:
        """Not offered: the control filters prompts, see `Denoising.masked`."""
        raise UsageError("what is masked are the prompts of the whole model; ask its own objective.")

    def _embed(self, model: Model, batch: Batch) -> dict[str, torch.Tensor]:
        return {tower: self.encode(model, batch, tower) for tower in ("vision", "text")}


def relabelled(batch: Batch, candidates: torch.Tensor, kept: torch.Tensor, generator: torch.Generator) -> Batch:
    """A batch whose pictures are said to be of another label, any retained one being as likely."""
    drawn = other_labels(batch["label"].cpu(), kept, generator)
    said = {"label": drawn, "text": candidates[batch["cell"].cpu(), drawn]}
    return {**batch, **{name: column.to(batch[name].device) for name, column in said.items()}}


LOOKS = 4
"""Times and noises that `logits` averages over."""


DRAWING_STEPS = 20
"""Of `Denoising.drawn`; a mean of half of them is taken."""


def _words(name_T: torch.Tensor) -> torch.Tensor:
    """The tokens of a name between start and end."""
    import torch

    end = int(torch.nonzero(name_T == name_T[-1])[0, 0])  # what it is padded with
    return name_T[1:end]


def _starts(text_BT: torch.Tensor, words_W: torch.Tensor) -> torch.Tensor:
    """(B, T-W+1) where those words stand in a row in a text."""
    windows: torch.Tensor = text_BT.unfold(1, len(words_W), 1)
    return (windows == words_W.to(text_BT.device)).all(-1)


def _holds(text_BT: torch.Tensor, words_W: torch.Tensor, longer: Sequence[torch.Tensor]) -> torch.Tensor:
    """(B,) whether those words stand in a text other than as a part of a longer name."""
    found = _starts(text_BT, words_W)
    for name in longer:
        within = _starts(text_BT, name)
        for place in _starts(name[None], words_W)[0].nonzero()[:, 0].tolist():
            found[:, place : place + within.shape[1]] &= ~within
    return found.any(1)
