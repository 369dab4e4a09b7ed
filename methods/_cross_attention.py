"""Where a text-to-image model reads its prompts: what concept editors change."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slugbench.bench import Model, Request, TextToImage

if TYPE_CHECKING:
    import torch

NEEDS = "it edits how a text-to-image model reads prompts, and this is no such model."
READS = ("attn2.to_k.weight", "attn2.to_v.weight")
"""Ends of the names of diffusers' weights that project text."""


def why_not(request: Request) -> str | None:
    """A sentence where a request's model reads no prompts."""
    return None if isinstance(request.objective, TextToImage) else NEEDS


def reads(model: Model) -> list[str]:
    """Names of the weights that project text into keys and values of the U-Net's cross-attention."""
    return [name for name, _ in model.named_parameters() if name.endswith(READS)]


def only(request: Request, part: str) -> dict[str, torch.Tensor]:
    """A mask for `fine_tune` that lets parameters with `part` in their names change, whole, and no others.

    Raises:
        ValueError: there are none.
    """
    import torch

    model = request.model
    names = [name for tower in request.objective.weights(model).values() for name in tower]
    if not any(part in name for name in names):
        raise ValueError(f"no parameter of this model has '{part}' in its name.")
    return {name: torch.full_like(model.get_parameter(name), part in name, dtype=torch.bool) for name in names}
