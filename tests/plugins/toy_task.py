"""A task that costs milliseconds: Gaussian blobs, and a classifier whose weights are written down rather than trained.

The best classifier of blobs of one width is linear: score c.x - |c|^2 / 2 for the class of mean c. It is laid into two
layers, so that methods which choose among layers have a choice, through x = relu(x) - relu(-x) in a random basis Q:

    hidden = [Q, -Q],   output = [C Q', -C Q'],   C: class means estimated from the training samples
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from slugbench.bench import (
    Answers,
    Batch,
    Budget,
    Gate,
    Listed,
    Model,
    Request,
    Scores,
    TensorSplit,
    Trial,
    UsageError,
    Validation,
    Wanted,
    digest,
    task,
)

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    import torch

CLASSES = 8
"""Classes 2k and 2k + 1 are near each other."""
OUTSIDERS = 2
SIDE = 4  # a sample is an image of (1, 4, 4)
TRAIN, VALIDATION, TEST = 24, 16, 24  # samples of each class
SAMPLES = 3
"""Training samples of each class, the first, that the request `samples` asks to be forgotten."""
N_ORACLES = 4
NEVER = -20.0
"""The logit of a class that a model never saw."""

REQUESTS = (
    Listed("dev", ("blob0",), "dev"),
    Listed("tune", ("blob1",), "tune"),
    Listed("single", ("blob2",), "test"),
    Listed("joint", ("blob4", "blob5"), "test"),
    Listed("sealed", ("blob6",), "sealed"),
    Listed("samples", (), "dev"),
)


@task("toy")
@dataclass(frozen=True)
class Toy:
    """Forgetting Gaussian blobs: every part of a task, built in milliseconds.

    Attributes:
        kind: what the objective says it is; `clip` makes metrics of that kind answer, the model stays the same.
        noise: standard deviation of a blob; the means of near classes are about 4 apart, those of others about 7.
    """

    kind: str = "classifier"
    noise: float = 1.0

    base_seeds: ClassVar[tuple[int, ...]] = (0, 1)
    preload: ClassVar[tuple[str, ...]] = ()

    def requests(self) -> tuple[Listed, ...]:
        return REQUESTS

    def build(self, request_id: str, base_seed: int) -> Trial:
        targets = self._targets(request_id)
        blobs = {
            name: self._draw(name, size) for name, size in (("train", TRAIN), ("validation", VALIDATION), ("test", TEST))
        }
        model, joint = fit(blobs["train"], base_seed), len(targets) > 1
        questions, images = ask(blobs, self._draw("outsiders", TEST), targets)
        answer = partial(answers, images, questions)
        oracle = partial(retrained, blobs["train"], targets)
        oracles = tuple(answer(oracle(s)) for s in range(N_ORACLES))
        return Trial(
            self._asked_of(model, blobs, targets),
            questions,
            answer,
            answer(model),
            oracles,
            oracle,
            CLASSES,
            joint=joint,
            original_model=partial(fit, blobs["train"], base_seed),
            features=partial(features, images),
            shadow=lambda s: self._asked_of(fit(blobs["train"], 2000 + s), blobs, targets),
            alone=(lambda j, model: self._asked_of(model, blobs, targets[j : j + 1], targets[:j])) if joint else None,
        )

    def _asked_of(self, model: Model, blobs: dict[str, Batch], targets: Sequence[int], gone: Sequence[int] = ()) -> Request:
        forget, retain = _split(blobs["train"], targets, gone)
        kept = _split(blobs["validation"], targets, gone) if targets else (forget, TensorSplit(blobs["validation"]))
        validation = Validation(*kept)
        return Request(
            model=model,
            targets=tuple(f"blob{t}" for t in targets),
            forget=forget,
            retain=retain,
            validation=validation,
            objective=CrossEntropy(self.kind),
            validate=partial(validate, validation),
            budget=Budget(max_steps=100, max_reads=100 * 64, max_evals=100),
            goal=1 / CLASSES if targets else accuracy(model, validation.retain),
        )

    def fingerprint(self, request_id: str, base_seed: int) -> str:
        return digest({"targets": self._targets(request_id), "base_seed": base_seed, "noise": self.noise, "version": 1})

    def gates(self, request_ids: Sequence[str], base_seeds: Sequence[int]) -> list[Gate]:
        found = []
        for request_id in request_ids:
            trial = self.build(request_id, base_seeds[0])
            seen = float((trial.original["rank"][trial.questions["split"] == "forget"] == 0).mean())
            found.append(Gate(f"{request_id}: the base knows its targets", seen, "at least 0.8", seen >= 0.8))
        return found

    def gates_after(self, frame: pd.DataFrame) -> list[Gate]:
        return [Gate("the table has rows", float(len(frame)), "at least 1", len(frame) > 0)]

    def wanted(self) -> list[Wanted]:
        return []

    def rebuild(self, folder: Path, *, jobs: int = 1) -> None:
        """Nothing is shipped."""

    def _targets(self, request_id: str) -> list[int]:
        for listed in REQUESTS:
            if listed.id == request_id:
                return [int(name.removeprefix("blob")) for name in listed.targets]
        raise UsageError(f"toy has no request '{request_id}'; it has {', '.join(listed.id for listed in REQUESTS)}.")

    def _draw(self, name: str, size: int) -> Batch:
        """`size` samples of every class (of every outsider), the same ones every time."""
        import torch

        generator = torch.Generator().manual_seed(int(digest(name)[:8], 16))
        means = torch.cat([centers(CLASSES, seed=0), centers(OUTSIDERS, seed=1)])
        label = torch.arange(CLASSES + OUTSIDERS).repeat_interleave(size)
        label = label[label >= CLASSES] if name == "outsiders" else label[label < CLASSES]
        image = means[label] + self.noise * torch.randn(len(label), SIDE * SIDE, generator=generator)
        return {"image": image.view(-1, 1, SIDE, SIDE), "label": label}


# ---------------------------------------------------------------- data


def centers(n: int, seed: int) -> torch.Tensor:
    """Means of n classes (n, 16), in families of two."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    family = torch.randn(n // 2, SIDE * SIDE, generator=generator).repeat_interleave(2, dim=0)
    return family + 0.7 * torch.randn(n, SIDE * SIDE, generator=generator)


def _split(blobs: Batch, targets: Sequence[int], gone: Sequence[int] = ()) -> tuple[TensorSplit, TensorSplit]:
    """The samples of the targets, or the first of each class where there are none, and the others but what is gone."""
    import torch

    columns = blobs | {"index": torch.arange(len(blobs["label"]))}
    columns = {name: column[~_own(blobs["label"], gone)] for name, column in columns.items()}
    label = columns["label"]
    own = _own(label, targets) if targets else torch.arange(len(label)) % TRAIN < SAMPLES
    forget, retain = ({name: column[rows] for name, column in columns.items()} for rows in (own, ~own))
    return TensorSplit(forget, {f"blob{t}": torch.nonzero(forget["label"] == t)[:, 0] for t in targets}), TensorSplit(retain)


def _own(label: torch.Tensor, targets: Sequence[int]) -> torch.Tensor:
    import torch

    return torch.isin(label, torch.tensor(targets, dtype=torch.long))


def ask(blobs: dict[str, Batch], outsiders: Batch, targets: Sequence[int]) -> tuple[dict[str, np.ndarray], torch.Tensor]:
    """The questions, and the image of each; `utility` asks for a sample's family rather than its class."""
    import torch

    test, train = blobs["test"], blobs["train"]
    own, trained = (_own(part["label"], targets) for part in (test, train))
    parts = {"forget": (test, own), "retain": (test, ~own), "forget_train": (train, trained), "utility": (test, ~own)}
    parts["retain_train"] = (train, ~trained)
    if not targets:
        forgotten = torch.arange(len(trained)) % TRAIN < SAMPLES
        parts["forget"], parts["retain_train"] = (train, forgotten), (train, ~forgotten)
        del parts["forget_train"]
    parts["outsider"] = (outsiders, torch.ones(len(outsiders["label"]), dtype=torch.bool))
    label = {name: part["label"][rows].numpy() for name, (part, rows) in parts.items()}
    unit = np.concatenate(list(label.values()))
    split = np.repeat(list(label), [len(column) for column in label.values()])
    near = (split == "retain") & np.isin(unit // 2, [t // 2 for t in targets])
    questions = {
        "split": split,
        "unit": unit,
        "label": np.where(split == "utility", unit // 2, unit % CLASSES),  # of an outsider a class it is not
        "near": near,
        "index": np.concatenate([np.flatnonzero(rows.numpy()) for _, rows in parts.values()]),
    }
    return questions, torch.cat([part["image"][rows] for part, rows in parts.values()])


# ---------------------------------------------------------------- models


def network() -> Model:
    """(B, 1, 4, 4) -> (B, 8) logits."""
    from collections import OrderedDict

    from torch import nn

    size = SIDE * SIDE
    layers = {
        "flatten": nn.Flatten(),
        "hidden": nn.Linear(size, 2 * size),
        "relu": nn.ReLU(),
        "output": nn.Linear(2 * size, CLASSES),
    }
    return nn.Sequential(OrderedDict(layers)).eval()


def fit(blobs: Batch, seed: int, without: Sequence[int] = (), skip: int = 0) -> Model:
    """The classifier of a bootstrap sample, in a random basis; classes in `without` are as if never seen.

    Args:
        blobs: the training samples.
        seed: of the bootstrap sample and of the basis.
        without: classes.
        skip: how many of each class's samples, the first ones, are left out.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(SIDE * SIDE, SIDE * SIDE, generator=generator))
    samples = blobs["image"].flatten(1).view(CLASSES, -1, SIDE * SIDE)[:, skip:]
    drawn = torch.randint(samples.shape[1], samples.shape[:2], generator=generator)
    means = torch.stack([own[rows].mean(0) for own, rows in zip(samples, drawn, strict=True)])
    bias = -means.square().sum(1) / 2
    means[list(without)], bias[list(without)] = 0.0, NEVER
    state = {
        "hidden.weight": torch.cat([basis, -basis]),
        "hidden.bias": torch.zeros(2 * SIDE * SIDE),
        "output.weight": torch.cat([means @ basis.T, -means @ basis.T], dim=1),
        "output.bias": bias,
    }
    model = network()
    model.load_state_dict(state)
    return model


def retrained(blobs: Batch, targets: Sequence[int], s: int) -> Model:
    """Oracle number s."""
    return fit(blobs, 1000 + s, without=targets, skip=0 if targets else SAMPLES)


def answers(images: torch.Tensor, questions: dict[str, np.ndarray], model: Model, rows: np.ndarray | None = None) -> Answers:
    """What a model answers on every question; a family's logit is the log of the sum of its classes' exponentials."""
    import torch

    if rows is not None:
        images, questions = images[rows], {name: column[rows] for name, column in questions.items()}
    with torch.no_grad():
        logits = model(images.to(next(model.parameters()).device)).double().cpu()
    families = logits.view(-1, CLASSES // 2, 2).logsumexp(-1)
    utility = torch.from_numpy(questions["split"] == "utility")
    logits[utility] = -torch.inf
    logits[utility, : CLASSES // 2] = families[utility]
    label = torch.from_numpy(questions["label"])[:, None]
    own = logits.gather(1, label)
    others = logits.scatter(1, label, -torch.inf)
    return {
        "predicted": logits.argmax(1).numpy(),
        "rank": (others > own).sum(1).numpy(),
        "score": (own[:, 0] - others.logsumexp(1)).numpy(),  # log p / (1 - p), without forming p
    }


def features(images: torch.Tensor, model: Model, rows: np.ndarray) -> np.ndarray:
    """(n, 32) what the output layer is given."""
    import torch

    taken: list[torch.Tensor] = []
    output = next(module for name, module in model.named_modules() if name.endswith("output"))
    hook = output.register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0]))
    with torch.no_grad():
        model(images[rows].to(next(model.parameters()).device))
    hook.remove()
    return taken[0].cpu().numpy()


def validate(validation: Validation, model: Model, *, retain: bool = True) -> Scores:
    """Accuracies on the validation split."""
    forget, n = accuracy(model, validation.forget), len(validation.forget)
    kept = accuracy(model, validation.retain) if retain else float("nan")
    return Scores(forget, kept, (forget * (1 - forget) / n) ** 0.5)


def accuracy(model: Model, split: TensorSplit) -> float:
    """Share of a split's samples the model names."""
    import torch

    device = next(model.parameters()).device
    (batch,) = split.batches(len(split))
    with torch.no_grad():
        return float((model(batch["image"].to(device)).argmax(1).cpu() == batch["label"].cpu()).double().mean())


@dataclass(frozen=True)
class CrossEntropy:
    """The objective of a classifier."""

    kind: str

    def loss(self, model: Model, batch: Batch) -> torch.Tensor:
        from torch.nn.functional import cross_entropy

        return cross_entropy(model(batch["image"]), batch["label"])

    forget_loss = loss

    def relabel(self, batch: Batch, generator: torch.Generator) -> Batch:
        import torch

        step = torch.randint(1, CLASSES, batch["label"].shape, generator=generator).to(batch["label"].device)
        return batch | {"label": (batch["label"] + step) % CLASSES}

    def logits(self, model: Model, batch: Batch) -> torch.Tensor:
        return model(batch["image"])

    def weights(self, model: Model) -> dict[str, list[str]]:
        return {"model": [name for name, p in model.named_parameters() if p.requires_grad]}

    def masked(self, model: Model, targets: Sequence[str]) -> Model:
        import torch

        hidden = torch.zeros(CLASSES, dtype=torch.bool)
        hidden[[int(name.removeprefix("blob")) for name in targets]] = True
        return _masked(model, hidden)


def _masked(model: Model, hidden: torch.Tensor) -> Model:
    from torch import nn

    class Masked(nn.Module):
        """Another model's logits, some of them sunk."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.model(image).masked_fill(hidden.to(image.device), -1e4)

    return Masked().eval()
