"""Text-to-image models as methods and metrics meet them: the parts of a Stable Diffusion pipeline of diffusers.

What is edited is a `ModuleDict` of the text encoder (`text`) and the U-Net (`unet`); autoencoder, tokenizer and scheduler
are no method's to change and stay with the objective. The same code serves a pipeline of 16 pixels and one of 512.

Legend for array shapes: B pictures, T tokens, C candidates, D width of the text.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from slugbench.bench import Batch, Model, UsageError

if TYPE_CHECKING:
    import torch
    from diffusers import StableDiffusionPipeline

KIND = "diffusion"


# ---------------------------------------------------------------- pipelines


def editable(pipeline: StableDiffusionPipeline) -> Model:
    """What methods are given of a pipeline: its text encoder and its U-Net, in eval mode."""
    from torch import nn

    return nn.ModuleDict({"text": pipeline.text_encoder, "unet": pipeline.unet}).eval()


def with_model(pipeline: StableDiffusionPipeline, model: Model) -> StableDiffusionPipeline:
    """A pipeline that samples from an edited model; all other parts are shared."""
    parts = {**pipeline.components, "text_encoder": model["text"], "unet": model["unet"]}
    made = type(pipeline)(**parts, requires_safety_checker=False)
    made.set_progress_bar_config(disable=True)
    return made


def generate(
    pipeline: StableDiffusionPipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int,
    guidance: float,
    batch: int,
) -> Iterator[torch.Tensor]:
    """Pictures (b, 3, H, W) from 0 to 1, in batches, each from a generator of its own.

    What a prompt and a seed give depends on neither their neighbours nor the batch size, but for the order in which
    floats are added up: 1e-6 of a picture at 16 pixels.
    """
    import torch

    side = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
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


def to_latents(vae: Any, image: torch.Tensor) -> torch.Tensor:
    """Latents of pictures from -1 to 1, as the U-Net is trained on: the mean of what the encoder says."""
    found = vae.encode(image.to(vae.dtype))
    latents = found.latent_dist.mean if hasattr(found, "latent_dist") else found.latents
    return (latents * vae.config.scaling_factor).to(image.dtype)


# ---------------------------------------------------------------- objective


@dataclass
class Denoising:
    """`Objective` of a text-to-image model: batches hold `image` (B, 3, H, W) from -1 to 1 and `text` (B, T).

    Times and noise are drawn from a generator of the objective's own: the same for every method that asks as often.
    """

    vae: Any
    scheduler: Any
    nothing: torch.Tensor
    """(1, T) tokens of the empty prompt."""
    candidates: torch.Tensor
    """(C, T) tokens of a prompt for each concept of the targets' kind, the others of their domain among them."""
    others: Mapping[int, torch.Tensor]
    """By label, (n, T) tokens of what a picture of it may be said to be instead; in relabelling each is as likely."""
    filters: Mapping[str, Sequence[int]]
    """By target the tokens that name it, for the control that leaves them out."""
    seed: int = 0
    kind: str = KIND
    _generator: Any = field(default=None, repr=False)

    def loss(self, model: Model, batch: Batch) -> torch.Tensor:
        """Mean squared error of what the U-Net predicts under the prompt: noise, or velocity, as it was trained."""
        return self.error(model, batch, batch["text"]).mean()

    def forget_loss(self, model: Model, batch: Batch) -> torch.Tensor:
        """The same, which ascended makes prompts lead away from their pictures."""
        return self.loss(model, batch)

    def error(self, model: Model, batch: Batch, text: torch.Tensor, draws: torch.Generator | None = None) -> torch.Tensor:
        """(B,) squared errors at a time and under noise drawn for each picture."""
        import torch

        latents = to_latents(self.vae, batch["image"])
        generator = draws or self._draws()
        noise = torch.randn(latents.shape, generator=generator).to(latents.device)
        last = self.scheduler.config.num_train_timesteps
        time = torch.randint(last, (len(latents),), generator=generator).to(latents.device)
        said = model["text"](text)[0]
        predicted = model["unet"](self.scheduler.add_noise(latents, noise, time), time, said).sample
        return (predicted - self._wanted(latents, noise, time)).square().flatten(1).mean(1)

    def relabel(self, batch: Batch, generator: torch.Generator) -> Batch:
        """The same pictures under the prompt of another concept."""
        import torch

        text = batch["text"].clone()
        for i, label in enumerate(batch["label"].tolist()):
            choices = self.others[label]
            text[i] = choices[torch.randint(len(choices), (), generator=generator)].to(text.device)
        return {**batch, "text": text}

    def logits(self, model: Model, batch: Batch) -> torch.Tensor:
        """(B, C) minus the error under each candidate's prompt, the same times and noise for all: a diffusion classifier.

        References:
            Li et al., Your Diffusion Model is Secretly a Zero-Shot Classifier, 2023.
        """
        import torch

        columns = []
        for tokens in self.candidates.to(batch["image"].device):
            draws = torch.Generator().manual_seed(self.seed)
            errors = [self.error(model, batch, tokens.expand(len(batch["image"]), -1), draws) for _ in range(LOOKS)]
            columns.append(-torch.stack(errors).mean(0))
        return torch.stack(columns, dim=1)

    def weights(self, model: Model) -> dict[str, list[str]]:
        """The towers `text` and `unet`."""
        towers = {tower: [f"{tower}.{name}" for name, _ in model[tower].named_parameters()] for tower in ("text", "unet")}
        return {tower: names for tower, names in towers.items() if names}

    def masked(self, model: Model, targets: Sequence[str]) -> Model:
        """A copy that reads the empty prompt wherever a target is named: same weights, a filter before them."""
        import torch

        named = [torch.tensor(self.filters[target]) for target in targets]
        copied = copy.deepcopy(model)

        def read(module: Model, inputs: tuple[torch.Tensor, ...], options: dict[str, Any]) -> Any:
            text = inputs[0] if inputs else options["input_ids"]
            hit = torch.stack([_holds(text, words.to(text.device)) for words in named]).any(0)
            text = torch.where(hit[:, None], self.nothing.to(text), text)
            return ((text, *inputs[1:]), options) if inputs else (inputs, {**options, "input_ids": text})

        copied["text"].register_forward_pre_hook(read, with_kwargs=True)
        return copied

    def _wanted(self, latents: torch.Tensor, noise: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        kind = self.scheduler.config.prediction_type
        if kind == "epsilon":
            return noise
        if kind == "v_prediction":
            return self.scheduler.get_velocity(latents, noise, time)
        raise UsageError(f"the scheduler predicts '{kind}'; there are losses for epsilon and v_prediction.")

    def _draws(self) -> torch.Generator:
        import torch

        if self._generator is None:
            self._generator = torch.Generator().manual_seed(self.seed)
        return self._generator


LOOKS = 4
"""Times and noises that `logits` averages over."""


def _holds(text_BT: torch.Tensor, words_W: torch.Tensor) -> torch.Tensor:
    """(B,) whether those tokens stand in a row somewhere in a text."""
    windows = text_BT.unfold(1, len(words_W), 1)
    return (windows == words_W).all(-1).any(-1)
