"""The control `shuffled`: SLUG on the targets' pictures under other people's names."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slugbench.bench import Batch, Model, Objective, Request, Split, method

from ._common import generator_of
from .slug import Slug

if TYPE_CHECKING:
    import torch


@method("shuffled", control=True)
@dataclass(frozen=True)
class Shuffled:
    """SLUG with a label-permuted forget split: the pictures are the targets', the names are other, retained concepts'.

    What it forgets is forgotten by damage along the pictures, not by parting them from their name. If SLUG did no better,
    it would owe nothing to the names.
    """

    def __call__(self, request: Request) -> Model:
        """The model as SLUG leaves it."""
        import torch

        seed = int(torch.randint(2**63 - 1, (), generator=generator_of(request)))
        relabelled = Relabelled(request.forget, request.objective, seed)
        return Slug()(dataclasses.replace(request, forget=relabelled))


@dataclass(frozen=True)
class Relabelled:
    """A `Split` with another's images and labels (and captions) drawn from `seed`: the same on every pass in one order."""

    split: Split
    objective: Objective
    seed: int

    def __len__(self) -> int:
        return len(self.split)

    def batches(self, size: int, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """The split's batches, relabelled."""
        import torch

        labels = torch.Generator().manual_seed(self.seed)
        for batch in self.split.batches(size, generator):
            yield self.objective.relabel(batch, labels)

    def of(self, target: str) -> Relabelled:
        """The samples of one target."""
        return Relabelled(self.split.of(target), self.objective, self.seed)
