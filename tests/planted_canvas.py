"""Text-to-image models of which it is known what they know: they denoise towards pictures that they hold, by prompt.

For attacks, which have to find a concept where it was only hidden and not where it never was.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

from slugbench.bench import Cost, Outcome, TensorSplit, Trial, Validation
from slugbench.tasks import _canvas_answers, _canvas_recipe
from slugbench.tasks._canvas_answers import DOMAINS, Target, answers, drawing, drawn_at, grid, shows
from slugbench.tasks._canvas_model import new_clip, new_pipeline, new_scheduler
from slugbench.tasks._canvas_scenes import OBJECTS
from slugbench.tasks._diffusion import editable
from slugbench.tasks.canvas import bare_names

from .canvas_toys import NEON, neon_request, objective, pictures

CELLS = torch.arange(80)
"""One picture of each prompt of the grid, in its order."""
NEON_CELLS = CELLS // len(OBJECTS) == NEON


class Holding(ModelMixin, ConfigMixin):
    """A U-Net that says what is best if there are no other pictures than those held: E[picture | noisy picture, text].

    A prompt speaks for a picture by how near its encoding is to that of the picture's own prompt.
    """

    @register_to_config
    def __init__(self, n=80, sample_size=16, in_channels=3, time_cond_proj_dim=None, addition_embed_type=None):
        super().__init__()
        self.alphas = new_scheduler().alphas_cumprod
        for name, shape in (("held", (n, 3 * 16 * 16)), ("said", (n, 12, 64)), ("known", (n,))):
            setattr(self, name, torch.nn.Parameter(torch.zeros(shape), requires_grad=False))

    def forward(self, sample, timestep, encoder_hidden_states, return_dict=True, **_):
        time = torch.as_tensor(timestep).expand(len(sample))
        a, s = self.alphas[time].sqrt()[:, None], (1 - self.alphas[time]).sqrt()[:, None]
        noisy = sample.flatten(1)
        of_text = torch.cdist(encoder_hidden_states.flatten(1), self.said.flatten(1)).square()
        of_picture = (a / s * torch.cdist(noisy / a, self.held)).square() / 2
        weight = torch.softmax(-of_picture - 0.1 * of_text + torch.where(self.known > 0, 0.0, -1e9), 1)
        velocity = ((a * noisy - weight @ self.held) / s).view_as(sample)
        return UNet2DConditionOutput(sample=velocity) if return_dict else (velocity,)


@cache
def held() -> torch.Tensor:
    return pictures(CELLS)["image"]


def pipeline(*, known: torch.Tensor | None = None, images: torch.Tensor | None = None, cells: torch.Tensor = CELLS):
    """A pipeline that holds those images of those prompts, as far as they are known; by default one of each prompt."""
    images = held() if images is None else images
    encoder, unet = new_clip(0).text_model.eval(), Holding(len(images))
    with torch.no_grad():
        unet.held.copy_(images.flatten(1))
        unet.said.copy_(encoder(_canvas_recipe.tokens_of_cells()[cells])[0])
        unet.known.copy_(torch.ones(len(images)) if known is None else known.float())
    made = new_pipeline(encoder, unet)
    made.set_progress_bar_config(disable=True)
    return made


def knowing():
    """The original: it draws what it is asked for."""
    return editable(pipeline())


def never():
    """It holds no picture of the style neon."""
    return editable(pipeline(known=~NEON_CELLS))


def filtered():
    """It holds them, and a filter before it reads no prompt that names neon."""
    return objective(pipeline()).masked(knowing(), ["neon"])


def memorising():
    """It holds all pictures of neon that are for training."""
    rows = torch.from_numpy(shows(Target("style", (NEON,))))
    return editable(pipeline(images=_canvas_recipe.pictures("train").image[rows], cells=rows % len(CELLS)))


def renamed():
    """It holds them, and the word for neon is embedded as that for ink."""
    model, names = knowing(), bare_names()
    table = model.get_submodule("text").get_input_embeddings().weight.data
    table[names["neon"][1]] = table[names["ink"][1]]
    return model


def neon_trial(*, denoised: bool = False) -> Trial:
    """To forget the style neon, of `knowing`; its oracles are `never`.

    Args:
        denoised: whether pictures are to be denoised as well, which takes as long again.
    """
    made, target = pipeline(), Target("style", (NEON,))
    asked = grid(target, 1)
    asked = asked if denoised else asked.rows(np.flatnonzero(asked.part == ""))
    neon, others = (TensorSplit(pictures(CELLS[mine]), {"neon": torch.arange(8)}) for mine in (NEON_CELLS, ~NEON_CELLS))
    parts = {"forget": neon, "retain": others, "validation": Validation(neon, others), "objective": objective(made)}
    request = replace(neon_request(), model=editable(made), **parts)

    def answer(model, rows=None):
        return answers(made, asked, model, rows)

    return Trial(
        request=request,
        questions=asked.questions,
        answer=answer,
        original=answer(knowing()),
        oracles=(answer(never()),) * 2,
        oracle_model=lambda number: never(),
        n_classes=len(DOMAINS["style"]),
        joint=False,
        original_model=knowing,
        classes=DOMAINS,
        pictures=drawn_at,
        drawing=drawing(bare_names(), made, target),
    )


def outcome(trial, model) -> Outcome:
    return Outcome(trial, trial.answer(model), trial.oracles, model, Cost(), (0, 1))


def sees_what_is_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the place of classifiers: a picture is of the style and object of the nearest of those held."""

    def classified(image, classifiers=None):
        shown = image.clamp(0, 1)
        distance = torch.cdist((shown * 2 - 1).flatten(1), held().flatten(1)).double().view(-1, 10, 8)
        log_p = {"style": (-distance.amin(2)).log_softmax(1), "object": (-distance.amin(1)).log_softmax(1)}
        found = {"image": (shown * 255).round().byte().numpy(), "features": shown.flatten(1).numpy()}
        for domain, columns in log_p.items():
            found |= {domain: columns.argmax(1).numpy(), f"{domain}_log_p": columns.numpy()}
        return found

    monkeypatch.setattr(_canvas_answers, "_classified", classified)
