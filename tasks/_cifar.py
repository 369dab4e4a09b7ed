"""The two CIFAR data sets: which images a request is made of, how they are read, and the networks that learn them.

References:
    He et al., Deep Residual Learning for Image Recognition, 2016.
    Simonyan and Zisserman, Very Deep Convolutional Networks for Large-Scale Image Recognition, 2015.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from slugbench.bench import Listed, Model, UsageError
from slugbench.bench.types import Pool

from ._classification import Pictures

if TYPE_CHECKING:
    import torch

BASE_SPLIT = 1
"""The seed by which SalUn's code draws what its base model is trained on, whatever seed the run has."""
PUBLISHED_SEED = 2
"""The seed its runs have by default, by which it draws what there is to be forgotten and retained."""

DRAWS: dict[int, tuple[Pool, ...]] = {
    10: ("dev", "tune", "tune", "test", "test", "test", "test", "test", "test", "sealed"),
    50: ("dev", "tune", "test", "test", "test", "test", "test", "test"),
}
"""By percentage, the pools of the random draws. The ten tenths share no image; neither do halves 0 and 1, 2 and 3, ...;
of others two halves share half of theirs, so what is tuned on halves has seen half of what is tested."""
ASKED_TO_LEARN_FROM = 10_000
"""Retained training images asked about, for attacks to learn from what members look like: as many as there are tests."""


class Facts(NamedTuple):
    """What tells the two data sets apart."""

    name: str
    dataset: str
    """The class in torchvision.datasets."""
    folder: str
    files: Mapping[str, int]
    """Name -> size in MB."""
    page: str
    n_classes: int
    n_train: int
    n_test: int
    pools: Mapping[int, Pool]
    """Of the classes that may be asked to be forgotten."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    least_known: float
    """Test accuracy below which a base model has not learned the task."""


_DEALT: tuple[Pool, ...] = ("test", "sealed", "tune", "test", "dev", "test", "dev", "tune", "test", "test")
CIFAR10 = Facts(
    name="cifar10",
    dataset="CIFAR10",
    folder="cifar-10-batches-py",
    files={**{f"data_batch_{i}": 31 for i in range(1, 6)}, "test_batch": 31, "batches.meta": 0},
    page="https://www.cs.toronto.edu/~kriz/cifar.html",
    n_classes=10,
    n_train=50_000,
    n_test=10_000,
    # dealt as dev, tune, test, sealed over numpy's default_rng(0).permutation(10)
    pools=dict(enumerate(_DEALT)),
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    least_known=0.9,
)
CIFAR100 = Facts(
    name="cifar100",
    dataset="CIFAR100",
    folder="cifar-100-python",
    files={"train": 155, "test": 31, "meta": 0},
    page=CIFAR10.page,
    n_classes=100,
    n_train=50_000,
    n_test=10_000,
    # those of the SVD paper are tested on; ten others stand between them, for all else
    pools={
        **dict.fromkeys(range(0, 100, 10), "test"),
        **dict.fromkeys((5, 45), "dev"),
        **dict.fromkeys((15, 35, 55, 75), "tune"),
        **dict.fromkeys((25, 65, 85, 95), "sealed"),
    },
    mean=(0.5071, 0.4866, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
    least_known=0.65,
)


# ---------------------------------------------------------------- which images


class Drawn(NamedTuple):
    """A request for random samples."""

    percent: int
    number: int


Draw = Callable[[np.ndarray, Drawn], np.ndarray]
"""Rows of a pool -> those a draw takes, sorted."""


class Held(NamedTuple):
    """Training rows in two parts, each sorted."""

    train: np.ndarray
    held: np.ndarray


class Parts(NamedTuple):
    """Rows that make a request and its questions."""

    forget: np.ndarray
    retain: np.ndarray
    """Training images; oracles are trained on these alone."""
    validation: tuple[np.ndarray, np.ndarray]
    """Of what is forgotten, and of what is kept."""
    asked: dict[str, np.ndarray]
    """By the name of the split."""


def split_of(label: np.ndarray, seed: int) -> Held:
    """A tenth of each class apart from the rest, drawn as SalUn's code draws them."""
    rng = np.random.RandomState(seed)
    of_class = [np.flatnonzero(label == k) for k in range(label.max() + 1)]
    held = np.concatenate([rng.choice(rows, int(0.1 * len(rows)), replace=False) for rows in of_class])
    return Held(np.setdiff1d(np.arange(len(label)), held), np.sort(held))


def parts_of(
    listed: Listed, label: np.ndarray, pool: np.ndarray, *, validation: np.ndarray, test: np.ndarray, draw: Draw
) -> Parts:
    """A class apart from the others, or a draw from the pool apart from all that was never trained on.

    Of a request for random samples the forgotten images themselves are the validation split's `forget`: there are no
    others of their kind, and the method has them anyway.
    """
    if not listed.targets:
        forget = draw(pool, drawn_of(listed))
        retain = np.setdiff1d(pool, forget)
        asked = {"forget": forget, "retain": test, "retain_train": _some(retain)}
        return Parts(forget, retain, (forget, validation), asked)
    own = label == int(listed.targets[0])
    pooled, held, tested = ((rows[own[rows]], rows[~own[rows]]) for rows in (pool, validation, test))
    asked = {"forget": tested[0], "retain": tested[1], "forget_train": pooled[0], "retain_train": _some(pooled[1])}
    return Parts(*pooled, held, asked)


def draw_disjoint(pool: np.ndarray, drawn: Drawn) -> np.ndarray:
    """Draw number s: one of the parts into which a permutation of the pool falls, so that those of one share no image."""
    n_parts = 100 // drawn.percent
    permutation, part = divmod(drawn.number, n_parts)
    rng = np.random.default_rng([drawn.percent, permutation])
    return np.sort(np.array_split(rng.permutation(pool), n_parts)[part])


def draw_published(pool: np.ndarray, drawn: Drawn) -> np.ndarray:
    """The draw of SalUn's code at seed 2 + s: without replacement, from the pool of that very seed."""
    rng = np.random.RandomState(PUBLISHED_SEED + drawn.number - 1)  # its code takes one off there
    return np.sort(rng.choice(pool, len(pool) * drawn.percent // 100, replace=False))


def published_seed(listed: Listed) -> int:
    """The seed of the run of SalUn's code that a request stands for."""
    return PUBLISHED_SEED + (0 if listed.targets else drawn_of(listed).number)


def drawn_of(listed: Listed) -> Drawn:
    """What the name of a request for random samples says."""
    _, percent, number = listed.id.split("-")
    return Drawn(int(percent), int(number))


def _some(rows: np.ndarray) -> np.ndarray:
    """A fixed random choice of retained images, or all if there are few; the papers' code takes the first by index."""
    return np.sort(np.random.default_rng(0).permutation(rows)[:ASKED_TO_LEARN_FROM])


# ---------------------------------------------------------------- pictures and networks


@cache
def load_pictures(dataset_name: str, root: Path) -> Pictures:
    """All images of a data set, training images first; `dataset_name` is the class in torchvision.datasets.

    Raises:
        UsageError: a file is not the one that was published.
    """
    import torch
    from torchvision import datasets
    from torchvision.datasets.utils import check_integrity

    dataset, folder = getattr(datasets, dataset_name), root / getattr(datasets, dataset_name).base_folder
    try:
        parts = [dataset(root, train=train) for train in (True, False)]
    except RuntimeError as error:  # it says that there is one, and not which
        files = [*dataset.train_list, *dataset.test_list, (dataset.meta["filename"], dataset.meta["md5"])]
        spoilt = ", ".join(name for name, md5 in files if not check_integrity(folder / name, md5))
        raise UsageError(f"{folder} holds other than the published {spoilt}, by the MD5; fetch it anew.") from error
    image_NHWC = np.concatenate([part.data for part in parts])
    stored = torch.from_numpy(image_NHWC).permute(0, 3, 1, 2).contiguous()  # bytes: floats would take 737 MB

    def fetch(rows: np.ndarray) -> torch.Tensor:
        return stored[torch.from_numpy(rows)].float() / 255

    return Pictures(
        np.concatenate([part.targets for part in parts]).astype(np.int64),
        fetch,
        lambda rows, generator: flip_and_shift(fetch(rows), generator),
    )


def download(facts: Facts, root: Path) -> None:
    """Have torchvision fetch a data set, one process at a time; what is there and whole is not fetched again."""
    from filelock import FileLock
    from torchvision import datasets

    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f"{facts.name}.lock"):
        getattr(datasets, facts.dataset)(root, download=True)


def flip_and_shift(image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """What both papers train with: images mirrored one time in two, and moved by up to 4 pixels, black coming in.

    torchvision's `RandomHorizontalFlip` and `RandomCrop(32, padding=4)`, each image on its own, but without a loop over
    images, and by numbers from a generator of the caller's.
    """
    import torch
    from torch.nn.functional import pad

    n, _, height, width = image.shape
    mirrored = torch.rand(n, generator=generator) < 0.5
    image = torch.where(mirrored[:, None, None, None], image.flip(3), image)
    top, left = torch.randint(9, (2, n, 1), generator=generator)
    rows, columns = top + torch.arange(height), left + torch.arange(width)
    at = torch.arange(n)[:, None, None]
    return pad(image, (4, 4, 4, 4))[at, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def new_model(facts: Facts, model: str, seed: int = 0) -> Model:
    """An untrained classifier of images in [0, 1], (B, 3, 32, 32) -> (B, C) logits; it normalises them itself."""
    import torch
    from torchvision.transforms import Normalize

    with torch.random.fork_rng(devices=[]):  # the caller's random numbers go on as if nothing had been drawn
        torch.default_generator.manual_seed(seed)
        network = NETWORKS[model](facts.n_classes)
    return torch.nn.Sequential(OrderedDict(normalize=Normalize(facts.mean, facts.std), network=network))


def resnet18(n_classes: int) -> Model:
    """He et al.'s network with a 3x3 stem and no max-pooling, for small images; 11.2 M parameters."""
    from torch import nn
    from torchvision.models import resnet18

    network = resnet18(num_classes=n_classes)
    network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    network.maxpool = nn.Identity()
    return network


def vgg16_bn(n_classes: int) -> Model:
    """Simonyan and Zisserman's network as SalUn's code has it, with hidden layers of 256; 15.3 M parameters."""
    from torch import nn
    from torchvision.models.vgg import cfgs, make_layers

    features = make_layers(cfgs["D"][:-1], batch_norm=True)  # less the last pooling
    classifier = nn.Sequential(
        nn.Linear(512 * 2 * 2, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, n_classes)
    )
    for module in (*features, *classifier):
        if isinstance(module, nn.Conv2d):
            module.bias = None
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)
    return nn.Sequential(
        OrderedDict(features=features, avgpool=nn.AdaptiveAvgPool2d(2), flatten=nn.Flatten(), classifier=classifier)
    )


NETWORKS = {"resnet18": resnet18, "vgg16_bn": vgg16_bn}
