"""What classification tasks share: objective, answers, splits fetched batch by batch, and training that survives a stop.

Images are known by their row: those to train on are numbered first, then those to test on. Legend for array shapes: B batch,
C classes, N images.
"""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from slugbench.bench import Answers, Batch, Gate, Model, Scores, Split, UsageError, Validation, cached, digest, file_digest
from slugbench.bench.artifacts import write_through
from slugbench.bench.entropies import entropies

from ._gates import at_least
from ._shipped import load_answers, save_answers

if TYPE_CHECKING:
    import pandas as pd
    import torch

NEVER = -1e4
"""The logit of a masked class: finite, so that scores stay finite, and far below any that a trained classifier gives."""

ASKED_AT_ONCE = 256
"""Images in one forward pass of questions and validation."""


# ---------------------------------------------------------------- data


class Pictures(NamedTuple):
    """All images of a data set."""

    label: np.ndarray
    """(N,) int, the class of each."""
    fetch: Callable[[np.ndarray], torch.Tensor]
    """Rows (B,) -> images (B, 3, H, W), float in [0, 1], as they are shown to a model that is tested."""
    vary: Callable[[np.ndarray, torch.Generator], torch.Tensor]
    """The same, augmented at random, as the recipe shows them to a model in training."""


class PictureSplit:
    """A `Split` over some rows of `Pictures`, fetched batch by batch.

    Read in the stored order, images are as in a test; read in an order drawn from a generator, which is how training
    reads, and with `augment`, each is augmented anew, by numbers from that generator.
    """

    def __init__(self, pictures: Pictures, rows: np.ndarray, targets: Sequence[str] = (), *, augment: bool = False) -> None:
        if not len(rows):
            raise UsageError("a split needs at least one image; the data set has none of this kind.")
        self.pictures, self.rows, self.targets, self.augment = pictures, rows, tuple(targets), augment

    def __len__(self) -> int:
        return len(self.rows)

    def batches(self, size: int, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """Batches of `size`, in the stored order or in one drawn from `generator`; the last may be smaller."""
        import torch

        order = np.arange(len(self)) if generator is None else torch.randperm(len(self), generator=generator).numpy()
        for start in range(0, len(order), size):
            rows = self.rows[order[start : start + size]]
            if generator is None or not self.augment:
                image = self.pictures.fetch(rows)
            else:
                image = self.pictures.vary(rows, generator)
            yield {
                "image": image,
                "label": torch.from_numpy(self.pictures.label[rows]).long(),
                "index": torch.from_numpy(rows).long(),
            }

    def of(self, target: str) -> PictureSplit:
        """The images of one target."""
        if target not in self.targets:
            raise UsageError(f"target '{target}' is not in this split; it has {', '.join(self.targets) or 'no targets'}.")
        mine = self.rows[self.pictures.label[self.rows] == int(target)]
        return PictureSplit(self.pictures, mine, (target,), augment=self.augment)


@contextmanager
def drawing_from(generator: torch.Generator) -> Iterator[None]:
    """Inside, torch's global random numbers follow from `generator`, for libraries that take no other; then as before."""
    import torch

    seed = int(torch.randint(2**62, (), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def digest_of(path: Path) -> str:
    """A file's digest, computed once a process unless the file changes."""
    stat = path.stat()
    return _digest_of(path, stat.st_size, stat.st_mtime_ns)


@cache
def _digest_of(path: Path, size: int, changed: int) -> str:
    return file_digest(path)


# ---------------------------------------------------------------- what methods are given


class CrossEntropy:
    """The objective of a classifier; ascending its very loss forgets (for SLUG an extension: its paper has none)."""

    kind = "classifier"

    def __init__(self, n_classes: int = 10) -> None:
        self.n_classes = n_classes

    def loss(self, model: Model, batch: Batch) -> torch.Tensor:
        """Mean cross-entropy with the labels."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(model(batch["image"]), batch["label"])

    def forget_loss(self, model: Model, batch: Batch) -> torch.Tensor:
        """The same cross-entropy."""
        return self.loss(model, batch)

    def relabel(self, batch: Batch, generator: torch.Generator) -> Batch:
        """The same images, each with one of the other labels, uniformly."""
        import torch

        label = batch["label"]
        shift = torch.randint(1, self.n_classes, label.shape, generator=generator, device=generator.device).to(label.device)
        return {**batch, "label": (label + shift) % self.n_classes}

    def logits(self, model: Model, batch: Batch) -> torch.Tensor:
        """(B, C), a column a class."""
        return model(batch["image"])

    def weights(self, model: Model) -> dict[str, list[str]]:
        """All parameters, in one tower."""
        return {"model": [name for name, _ in model.named_parameters()]}

    def masked(self, model: Model, targets: Sequence[str]) -> Model:
        """A copy with the targets' logits overwritten on the way out: same parameters, same state dict."""
        import torch

        columns = [int(target) for target in targets]

        def overwrite(module: Model, inputs: tuple[torch.Tensor, ...], logits: torch.Tensor) -> torch.Tensor:
            return logits.index_fill(-1, torch.tensor(columns, device=logits.device), NEVER)

        copied = copy.deepcopy(model)
        copied.register_forward_hook(overwrite)
        return copied


def validate(kept: Validation, model: Model, *, retain: bool = True) -> Scores:
    """Accuracies of a model on the two halves of a validation split: what is to be forgotten and, unless off, the rest."""
    forget = accuracy(model, kept.forget)
    others = accuracy(model, kept.retain) if retain else math.nan
    return Scores(forget, others, math.sqrt(forget * (1 - forget) / len(kept.forget)))


def accuracy(model: Model, split: Split) -> float:
    """Share of a split's images whose class a model names."""
    import torch

    device, right = next(model.parameters()).device, 0
    with torch.no_grad():
        for batch in split.batches(ASKED_AT_ONCE):
            right += int((judged(model(batch["image"].to(device)), batch["label"])["rank"] == 0).sum())
    return right / len(split)


# ---------------------------------------------------------------- what metrics are given


def judged(logits_NC: torch.Tensor, label_N: torch.Tensor) -> Answers:
    """What a model says to N images: `predicted` (-1: nothing that is a number), `rank`, `score` and the entropies of
    `bench.entropies`, (N,) each.

    `score` = log p/(1-p) of the true label = z_y - log sum over the others of exp z, in float64.
    """
    import torch

    z_NC, label = logits_NC.double().cpu(), label_N.cpu()
    z_y, column = z_NC.gather(1, label[:, None]), torch.arange(z_NC.shape[1])
    # of equal logits the first column wins, as in argmax: a model that says the same to all is not right about all
    ahead = (z_NC > z_y) | ((z_NC == z_y) & (column < label[:, None]))
    score = z_y[:, 0] - z_NC.scatter(1, label[:, None], -math.inf).logsumexp(1)
    # finite weights can still overflow; NaN compares as false and would rank as the best answer
    void = ~z_NC.isfinite().all(1)
    found = {
        "predicted": z_NC.argmax(1).masked_fill(void, -1),
        "rank": ahead.sum(1).masked_fill(void, z_NC.shape[1] - 1),
        "score": score.masked_fill(void, NEVER),
        **entropies(z_NC.masked_fill(void[:, None], 0), label),
    }
    return {name: column.numpy() for name, column in found.items()}


def ask(pictures: Pictures, asked: np.ndarray, model: Model, rows: np.ndarray | None = None) -> Answers:
    """A model's answers to the images `asked`, or to those at the positions `rows` among them, on its own device."""
    import torch

    device, found = next(model.parameters()).device, []
    with torch.no_grad():
        for batch in PictureSplit(pictures, asked if rows is None else asked[rows]).batches(ASKED_AT_ONCE):
            found.append(judged(model(batch["image"].to(device)), batch["label"]))
    return {name: np.concatenate([part[name] for part in found]) for name in found[0]}


def kept_answers(
    name: str, model: Mapping[str, object], load: Callable[[], Model], pictures: Pictures, asked: np.ndarray
) -> Answers:
    """A model's answers to some images: asked once, on an accelerator if there is one, and kept in the cache.

    Args:
        name: leads the file's name.
        model: all that tells the model and the data from others, JSON-able.
        load: makes the model.
        pictures: the data set.
        asked: rows of it.
    """
    device = fastest_device()
    key = {**model, "asked": digest(asked.tobytes()), "device": device}
    path = cached(name, key, lambda to: save_answers(ask(pictures, asked, load().to(device)), to), suffix=".npz")
    return load_answers(path)


def features(pictures: Pictures, asked: np.ndarray, model: Model, rows: np.ndarray) -> np.ndarray:
    """(n, D) what the last linear layer is given of the images at those positions."""
    device = next(model.parameters()).device
    batches = PictureSplit(pictures, asked[rows]).batches(ASKED_AT_ONCE)
    return np.concatenate([into_last_layer(model, batch["image"].to(device)) for batch in batches])


def into_last_layer(model: Model, image: torch.Tensor) -> np.ndarray:
    """(B, D) what the last linear layer of a model is given of (B, C, H, W)."""
    import torch

    taken: list[torch.Tensor] = []
    last = [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1]
    hook = last.register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0]))
    try:
        with torch.no_grad():
            model(image)
    finally:
        hook.remove()
    return taken[0].cpu().numpy()


def controls_caught(frame: pd.DataFrame, what: str) -> list[Gate]:
    """On requests for classes: controls are caught, each by the numbers that should give it away, in every cell of theirs.

    Args:
        frame: the finished table of one task.
        what: the word for what is forgotten, such as `digit`.
    """
    columns = ["acc_forget", "acc_retain", "bytes_delta"]
    frame = frame.astype({"value": float, "oracle_mean": float})
    value, oracle = (
        frame.pivot_table(index=["method", "cell", "targets"], columns="metric", values=of).reindex(columns=columns)
        for of in ("value", "oracle_mean")
    )
    gap = value - oracle.reindex(index=value.index)
    method, classes = value.index.get_level_values("method"), value.index.get_level_values("targets") != "[]"
    caught = {
        "original": (f"it still names the {what}", gap["acc_forget"] >= 0.5),
        # its scores cannot give it away (ks_d is null on a single class), but its unchanged weights can
        "mask": ("its answers changed but no weight did", (gap["acc_forget"] < 0.5) & (value["bytes_delta"] == 0)),
        "noise": (f"it still names the {what} or lost others", (gap["acc_forget"] >= 0.1) | (gap["acc_retain"] <= -0.05)),
    }
    return [
        at_least(f"control {control} is caught ({how}): share of its cells", yes[mine].mean(), 1.0)
        for control, (how, yes) in caught.items()
        if (mine := (method == control) & classes).any()
    ]


# ---------------------------------------------------------------- training


@dataclass(frozen=True)
class Recipe:
    """How base models and oracles are trained alike: SGD with momentum, and a learning rate that falls."""

    epochs: int
    batch: int
    learning_rate: float
    milestones: tuple[int, ...] = ()
    """Epochs after which the learning rate is divided by ten; without any it is halved where the training loss of ten
    epochs does not fall (`ReduceLROnPlateau`'s patience)."""
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4


def fit(
    model: Model,
    split: Split,
    recipe: Recipe,
    *,
    seed: int,
    resume: Path,
    told: Callable[[int, float], None] = lambda epoch, loss: None,
) -> Model:
    """Train a model in place; interrupted at any moment, the same call goes on after the last whole epoch.

    Each epoch draws from streams of its own, seeded by `seed` and its number: one that resumes draws what one that was
    never interrupted does, and on a CPU, with as many threads, comes to the same bits.

    Args:
        model: freshly initialised.
        split: what it is trained on.
        recipe: how.
        seed: of order and augmentation.
        resume: where the state after each epoch is kept; removed by whoever keeps the finished model.
        told: is called after each epoch with its number, from 1, and the mean training loss.

    Returns:
        The trained model on the CPU, in eval mode.
    """
    import torch

    device = fastest_device()
    model.to(device)
    optimizer = torch.optim.SGD(
        model.parameters(), recipe.learning_rate, recipe.momentum, weight_decay=recipe.weight_decay, nesterov=recipe.nesterov
    )
    schedule = _schedule_of(optimizer, recipe)
    first = _resumed(resume, model, optimizer, schedule) if resume.is_file() else 0
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        for epoch in range(first, recipe.epochs):
            loss = _epoch(model, split, recipe.batch, optimizer, seed=10_000 * seed + epoch)
            schedule.step(*[] if recipe.milestones else [loss])
            _keep(resume, {"epoch": epoch + 1, **_state(model, optimizer, schedule)})
            told(epoch + 1, loss)
    return model.cpu().eval()


def _schedule_of(optimizer: torch.optim.Optimizer, recipe: Recipe) -> Any:
    """torch's scheduler for a recipe's learning rates; the two have no common type."""
    from torch.optim import lr_scheduler

    if recipe.milestones:
        return lr_scheduler.MultiStepLR(optimizer, list(recipe.milestones))
    return lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5)


def _epoch(model: Model, split: Split, batch_size: int, optimizer: torch.optim.Optimizer, *, seed: int) -> float:
    """One pass over a split; returns its mean loss."""
    import torch
    from torch.nn.functional import cross_entropy

    generator, device = torch.Generator().manual_seed(seed), next(model.parameters()).device
    total = torch.zeros((), device=device)  # summed there: to look at each loss would wait for each step
    model.train()
    with drawing_from(generator):  # dropout, where there is any
        for batch in split.batches(batch_size, generator):
            optimizer.zero_grad()
            loss = cross_entropy(model(batch["image"].to(device)), batch["label"].to(device))
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(batch["label"])
    return float(total) / len(split)


def _state(model: Model, optimizer: torch.optim.Optimizer, schedule: Any) -> dict[str, object]:
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}


def _keep(path: Path, state: Mapping[str, object]) -> None:
    """Write a training's state, whole or not at all. Nobody else does: who trains holds the lock of the artefact."""
    import torch

    unfinished = path.with_name(f"{path.name}.tmp")
    written = io.BytesIO()  # torch says of a full disk no more than that it is at an unexpected position
    torch.save(dict(state), written)
    unfinished.write_bytes(written.getbuffer())
    write_through(unfinished)
    unfinished.replace(path)


def _resumed(path: Path, model: Model, optimizer: torch.optim.Optimizer, schedule: Any) -> int:
    """Put a kept state back; returns how many epochs it has had."""
    import torch

    kept = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(kept["model"])
    optimizer.load_state_dict(kept["optimizer"])
    schedule.load_state_dict(kept["schedule"])
    return kept["epoch"]


def fastest_device() -> str:
    """An accelerator if there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


# ---------------------------------------------------------------- weights from elsewhere


def existing(checkpoint: Path) -> Path:
    """The same file, which is there."""
    if not checkpoint.is_file():
        raise UsageError(f"checkpoint={checkpoint} is not there; give a file of weights (.safetensors, .pt or .pth).")
    return checkpoint


WRAPPED = ("state_dict", "model", "net")
"""Under what names training scripts put the weights among other things."""


def load_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """The tensors in a file of weights, `.safetensors` or torch's own, without the prefix that `DataParallel` adds.

    Raises:
        UsageError: the file would have to run code to be read, or is none of weights.
    """
    import safetensors.torch
    import torch

    found: Any
    try:
        safe = path.suffix == ".safetensors"
        found = safetensors.torch.load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UsageError(
            f"checkpoint={path} holds more than tensors, or none, and is not run to find out; "
            "where you trust it, save its weights alone: torch.save(model.state_dict(), FILE)."
        ) from error
    except (safetensors.SafetensorError, RuntimeError, EOFError) as error:
        raise UsageError(
            f"checkpoint={path} cannot be read ({error}); give a whole .safetensors, .pt or .pth file."
        ) from error
    for name in WRAPPED:
        found = found[name] if isinstance(found, Mapping) and isinstance(found.get(name), Mapping) else found
    if not isinstance(found, Mapping) or not all(isinstance(tensor, torch.Tensor) for tensor in found.values()):
        raise UsageError(f"checkpoint={path} holds no state dict; save one by torch.save(model.state_dict(), FILE).")
    return {name.removeprefix("module."): tensor for name, tensor in found.items()}


def fill(model: Model, state: Mapping[str, torch.Tensor], path: Path, what: str) -> Model:
    """Load weights into a model, in place, and put it into eval mode.

    Raises:
        UsageError: they are those of another architecture; `path` and `what`, the model's name, are for the sentence.
    """
    try:  # the modules' own loading: some still know the names that they had in older versions
        missing, further = model.load_state_dict(dict(state), strict=False)
        wrong = [f"it lacks {name}" for name in missing] + [f"it has {name} besides" for name in further]
    except RuntimeError as error:
        wrong = [line.strip().rstrip(".") for line in str(error).splitlines() if "size mismatch" in line]
    if wrong:
        more = f", and {len(wrong) - 2} more differences" if len(wrong) > 2 else ""
        raise UsageError(f"checkpoint={path} is not of {what}: {'; '.join(wrong[:2])}{more}; give one of that architecture.")
    return model.eval()
