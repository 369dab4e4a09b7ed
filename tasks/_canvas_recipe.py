"""How what `canvas` ships was made: pictures, CLIP, U-Net, classifiers, then the same without what is to be forgotten."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from . import _canvas_model, _canvas_scenes
from ._canvas_scenes import OBJECTS, STYLES
from ._clip import matched_loss

if TYPE_CHECKING:
    import torch
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPModel

TRAIN_PER_CELL = 24
CLASSIFIERS = ("convolution", "attention")
"""The one that judges, and one that fails differently, to judge it by."""
PARTS = {"train": 1, "validation": 2, "test": 3}
"""Seeds of the pictures of each part."""


@dataclass(frozen=True)
class Recipe:
    """Numbers of a training. An oracle takes as many steps over fewer pictures."""

    clip_steps: int = 400
    clip_batch: int = 128
    clip_rate: float = 2e-3
    unet_steps: int = 1100
    unet_batch: int = 64
    unet_rate: float = 2e-3
    dropped: float = 0.1
    """Share of captions left out in training, for guidance."""
    decay: float = 0.99
    """Of the mean of weights that is kept (EMA)."""
    version: int = 1


class Trained(NamedTuple):
    """A pipeline, and the CLIP whose text encoder it has."""

    clip: CLIPModel
    pipeline: StableDiffusionPipeline


class Pictures(NamedTuple):
    """Pictures (N, 3, 16, 16) from -1 to 1, and the numbers of their styles and objects (N,)."""

    image: torch.Tensor
    style: torch.Tensor
    object: torch.Tensor

    def rows(self, rows: Any) -> Pictures:
        """Some of them."""
        return Pictures(*(column[rows] for column in self))


def cells() -> tuple[np.ndarray, np.ndarray]:
    """(80,) numbers of style and object of each prompt of the grid, styles outermost."""
    style, thing = np.meshgrid(range(len(STYLES)), range(len(OBJECTS)), indexing="ij")
    return style.ravel(), thing.ravel()


@cache
def pictures(part: str, per_cell: int = TRAIN_PER_CELL) -> Pictures:
    """So many of each style and object, the same every time."""
    import torch

    style, thing = (np.tile(numbers, per_cell) for numbers in cells())
    image = _canvas_scenes.draw(style, thing, np.random.default_rng(PARTS[part]))
    return Pictures(torch.from_numpy(image) * 2 - 1, torch.from_numpy(style), torch.from_numpy(thing))


@cache
def tokens_of_cells(template: str = _canvas_model.PROMPT) -> torch.Tensor:
    """(80, LENGTH) tokens of each prompt of the grid."""
    return _canvas_model.tokens(_canvas_model.tokenizer(), _canvas_model.prompts(*cells(), template))


# ---------------------------------------------------------------- training


def train(known: Pictures, seed: int, recipe: Recipe = Recipe()) -> Trained:
    """A pipeline that knows those pictures: its CLIP first, then its U-Net under the CLIP's text."""
    clip = train_clip(known, seed, recipe)
    return Trained(clip, _canvas_model.new_pipeline(clip.text_model, train_unet(known, clip.text_model, seed, recipe)))


def train_clip(known: Pictures, seed: int, recipe: Recipe) -> Any:
    """A CLIP of those pictures under every wording of `CAPTIONS`."""
    import torch

    clip, generator = _canvas_model.new_clip(seed), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(clip.parameters(), lr=recipe.clip_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.clip_rate, total_steps=recipe.clip_steps)
    texts = [tokens_of_cells(template) for template in _canvas_model.CAPTIONS]
    for _ in range(recipe.clip_steps):
        drawn = known.rows(torch.randint(len(known.image), (recipe.clip_batch,), generator=generator))
        cell = drawn.style * len(OBJECTS) + drawn.object
        wording = torch.randint(len(texts), (len(cell),), generator=generator)
        tokens = torch.stack(texts)[wording, cell]
        found = clip(input_ids=tokens, pixel_values=drawn.image)
        loss = matched_loss(found.logits_per_image, cell)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return clip.eval()


def train_unet(known: Pictures, text_encoder: Any, seed: int, recipe: Recipe) -> Any:
    """A U-Net of those pictures: the mean of its weights over the last steps."""
    import torch
    from torch.nn.functional import mse_loss

    unet, scheduler = _canvas_model.new_unet(seed), _canvas_model.new_scheduler()
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=recipe.unet_rate, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.unet_rate, total_steps=recipe.unet_steps, pct_start=0.1)
    mean = [p.detach().clone() for p in unet.parameters()]
    with torch.no_grad():
        said = text_encoder(tokens_of_cells())[0]
        nothing = text_encoder(_canvas_model.tokens(_canvas_model.tokenizer(), [""]))[0]
    for step in range(recipe.unet_steps):
        drawn = known.rows(torch.randint(len(known.image), (recipe.unet_batch,), generator=generator))
        text = said[drawn.style * len(OBJECTS) + drawn.object]
        silent = torch.rand(len(text), generator=generator) < recipe.dropped
        text = torch.where(silent[:, None, None], nothing, text)
        noise = torch.randn(drawn.image.shape, generator=generator)
        time = torch.randint(scheduler.config.num_train_timesteps, (len(text),), generator=generator)
        noisy = scheduler.add_noise(drawn.image, noise, time)
        loss = mse_loss(unet(noisy, time, text).sample, scheduler.get_velocity(drawn.image, noise, time))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        kept = min(recipe.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(mean, [p.detach() for p in unet.parameters()], 1 - kept)
    for weight, average in zip(unet.parameters(), mean, strict=True):
        weight.data.copy_(average)
    return unet.eval()


# ---------------------------------------------------------------- classifiers


def new_classifier(kind: str, seed: int = 0) -> Any:
    """An untrained classifier of styles and objects, (N, 3, 16, 16) -> (N, 10 + 8) logits.

    Args:
        kind: `convolution` or `attention`: two that fail differently.
        seed: of its weights.
    """
    import torch
    from torch import nn

    out = len(STYLES) + len(OBJECTS)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if kind == "convolution":
            layers: list[nn.Module] = []
            for into, of, stride in ((3, 32, 1), (32, 64, 2), (64, 96, 2)):
                layers += [nn.Conv2d(into, of, 3, stride, padding=1), nn.BatchNorm2d(of), nn.ReLU()]
            return nn.Sequential(*layers, nn.Flatten(), nn.Linear(96 * 16, 96), nn.ReLU(), nn.Linear(96, out))
        return _attention(out)


def _attention(out: int) -> Any:
    import torch
    from timm.models.vision_transformer import Block
    from torch import nn

    class Attention(nn.Module):
        """Two transformer blocks over the 8 x 8 places of a convolutional stem, averaged."""

        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 32, 5, padding=2), nn.GELU(), nn.Conv2d(32, 64, 4, 2, 1), nn.GELU())
            self.place = nn.Parameter(0.02 * torch.randn(64, 64))
            self.blocks = nn.Sequential(Block(64, 4, 2.0), Block(64, 4, 2.0), nn.LayerNorm(64))
            self.head = nn.Linear(64, out)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.head(self.blocks(self.stem(image).flatten(2).mT + self.place).mean(1))

    return Attention()


def train_classifier(kind: str, *, steps: int = 600, batch: int = 96, seed: int = 0) -> Any:
    """A classifier of pictures drawn for it alone, none of them twice, a little noisier than any that are generated."""
    import torch
    from torch.nn.functional import cross_entropy

    model, generator = new_classifier(kind, seed), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3 if kind == "convolution" else 1.5e-3, weight_decay=0.05)
    rate = optimizer.param_groups[0]["lr"]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    rng = np.random.default_rng([seed, 10])
    for _ in range(steps):
        style, thing = rng.integers(len(STYLES), size=batch), rng.integers(len(OBJECTS), size=batch)
        image = torch.from_numpy(_canvas_scenes.draw(style, thing, rng)) * 2 - 1
        image = image + 0.1 * torch.rand((), generator=generator) * torch.randn(image.shape, generator=generator)
        logits = model(image)
        loss = cross_entropy(logits[:, : len(STYLES)], torch.from_numpy(style))
        loss = loss + cross_entropy(logits[:, len(STYLES) :], torch.from_numpy(thing))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()
