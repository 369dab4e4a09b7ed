"""Gradients of a loss over a whole split, holding one set of them and the activations of one physical batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from slugbench.bench import Batch, Model, TwoTowers

from ._common import accumulating, taken

if TYPE_CHECKING:
    import torch

TOWERS = ("vision", "text")


def contrastive_gradients(
    model: Model,
    objective: TwoTowers,
    names: Sequence[str],
    batches: Iterable[Batch],
    *,
    forget: bool,
    group: int,
    physical: int,
    known: dict[int, torch.Tensor] | None = None,
    towers: Sequence[str] = TOWERS,
) -> dict[str, torch.Tensor]:
    """Mean over groups of the gradients of a group's loss; what is contrasted does not depend on what is run at once.

    Args:
        model: whose weights.
        objective: whose losses.
        names: of the weights.
        batches: of a multiple of `group` samples each but for the last.
        forget: the forget loss instead of the training loss.
        group: samples that are each other's negatives: the logical batch.
        physical: samples that run through a tower at a time. With fewer than a batch has, embeddings come first without
            gradients, and every piece runs a second time when their gradients are known.
        known: embeddings of the tower left out of `towers`, by number of the batch; it is filled with those of a tower
            of which it has none, for a second call that leaves out the first call's tower.
        towers: those whose weights are among `names`; the other runs without gradients.

    Returns:
        name -> gradient, signs kept; the mean weighs a last, smaller group like the others, as the authors' code does.
    """
    import torch

    loss_of = objective.forget_loss_of if forget else objective.loss_of
    count = 0
    with accumulating(model, names) as parameters:
        for number, batch in enumerate(batches):
            pieces = list(sliced(batch, physical))
            whole = len(pieces) == 1
            embedded = {}
            if second := known is not None and number in known:
                embedded = {tower: known.pop(number) for tower in TOWERS if tower not in towers}
            for tower in towers if second else TOWERS:
                with torch.set_grad_enabled(whole and tower in towers):
                    embedded[tower] = torch.cat([objective.encode(model, piece, tower) for piece in pieces])
            if known is not None and not second:
                known[number] = embedded[towers[0]].detach()
            leaves = embedded if whole else {t: e.detach().requires_grad_(t in towers) for t, e in embedded.items()}
            groups = zip(leaves["vision"].split(group), leaves["text"].split(group), sliced(batch, group), strict=True)
            losses = [loss_of(model, {"vision": image, "text": text}, part) for image, text, part in groups]
            count += len(losses)
            torch.stack(losses).sum().backward()
            for tower in () if whole else towers:
                gradient_BD = leaves[tower].grad
                assert gradient_BD is not None  # of a leaf that both losses depend on
                for piece, part in zip(pieces, gradient_BD.split(physical), strict=True):
                    objective.encode(model, piece, tower).backward(part)
        return taken(parameters, count)


def sliced(batch: Batch, size: int) -> Iterator[Batch]:
    """A batch in pieces of at most `size` samples."""
    for start in range(0, len(batch["index"]), size):
        yield {name: column[start : start + size] for name, column in batch.items()}
