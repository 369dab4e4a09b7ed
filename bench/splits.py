"""Splits held in memory, the form in which every embedded task hands out its data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from .errors import UsageError

if TYPE_CHECKING:
    import torch

    from .types import Batch


class TensorSplit:
    """A `Split` over equally long tensors.

    Args:
        tensors: columns such as `image` (N, C, H, W) and `label` (N,); a column `index` (N,) is added where absent.
        members: for each target the positions of its samples, for `of`.

    Raises:
        UsageError: the columns differ in length, or there are no samples.
    """

    def __init__(self, tensors: Batch, members: Mapping[str, torch.Tensor] | None = None) -> None:
        import torch

        lengths = {name: len(column) for name, column in tensors.items()}
        if len(set(lengths.values())) != 1 or 0 in lengths.values():
            raise UsageError(f"a split needs columns of one length, at least one sample long; it got {lengths}.")
        self.tensors = dict(tensors)
        self.tensors.setdefault("index", torch.arange(len(self)))
        self.members = dict(members or {})

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def batches(self, size: int, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """Batches of `size`, in the stored order or in one drawn from `generator`; the last may be smaller."""
        import torch

        order = torch.arange(len(self)) if generator is None else torch.randperm(len(self), generator=generator)
        for rows in order.split(size):
            yield {name: column[rows] for name, column in self.tensors.items()}

    def of(self, target: str) -> TensorSplit:
        """The samples of one target."""
        if target not in self.members:
            raise UsageError(f"target '{target}' is not in this split; it has {', '.join(self.members) or 'no targets'}.")
        rows = self.members[target]
        return TensorSplit({name: column[rows] for name, column in self.tensors.items()})
