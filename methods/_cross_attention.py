"""Where a text-to-image model reads its prompts: what concept editors change."""

from __future__ import annotations

from collections.abc import Callable
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
    return [name for name, _ in model.named_parameters() if reads_text(name)]


def only(request: Request, part: Callable[[str], bool]) -> dict[str, torch.Tensor]:
    """A mask for `fine_tune` that lets those parameters change, whole, of whose names that holds, and no others.

    Raises:
        ValueError: there are none.
    """
    import torch

    model = request.model
    mine = {name: part(name) for tower in request.objective.weights(model).values() for name in tower}
    if not any(mine.values()):
        raise ValueError(
            f"this model has none of the parameters that were asked for; among others it has {next(iter(mine))}."
        )
    return {name: torch.full_like(model.get_parameter(name), kept, dtype=torch.bool) for name, kept in mine.items()}


def crosses(name: str) -> bool:
    """Whether a parameter is of cross-attention: queries, keys, values or what is made of them."""
    return "attn2" in name


def reads_text(name: str) -> bool:
    """Whether a parameter projects text into keys or values."""
    return name.endswith(READS)
