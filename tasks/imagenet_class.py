"""Class forgetting on ImageNet-1k: the setting of Deep Unlearning by SVD that is nearest to use.

The original is the ViT-B/16 that torchvision trained on all training images. At this size nobody retrains, so there are
no oracles. Images stay in their files and are decoded as they are read.

Two protocols:

    clean      (default) methods choose on training images set aside from what they may read (the original was trained on
               them: no others are left); images of `val` serve for nothing but the result.
    published  methods choose on the images of `val` that they are reported on, all of them, squeezed to a square.

References:
    Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, 2015 (the data).
    Dosovitskiy et al., An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale, 2021 (the model).
    Kodge et al., Deep Unlearning: Fast and Efficient Gradient-free Class Forgetting, 2024 (the classes).
"""

from __future__ import annotations

import os
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import PositiveInt

from slugbench.bench import (
    Answers,
    Budget,
    Gate,
    Listed,
    Model,
    Request,
    Size,
    Trial,
    UsageError,
    Validation,
    Wanted,
    digest,
    task,
)
from slugbench.bench.types import Pool

from ._classification import (
    CrossEntropy,
    Pictures,
    PictureSplit,
    ask,
    digest_of,
    drawing_from,
    existing,
    features,
    fill,
    kept_answers,
    load_checkpoint,
    validate,
)
from ._gates import at_least
from ._wanted import looked_at

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from PIL import Image

N_CLASSES = 1000
PIXELS = 224
POOLS: Mapping[int, Pool] = {
    **dict.fromkeys(range(0, 1000, 100), "test"),
    **dict.fromkeys((50, 450), "dev"),
    **dict.fromkeys((150, 350, 550, 750), "tune"),
    **dict.fromkeys((250, 650, 850, 950), "sealed"),
}
"""Of the classes that may be asked to be forgotten: those of the SVD paper are tested on, those between are for all else."""

HELD = 50
"""Training images of each class set aside, a tenth of the class at most; as many as `val` has."""
HELD_ASKED = 2
"""Of these, how many of each kept class are in the validation split: 1,998 images are enough for a tenth of a point."""
WEIGHTS = "vit_b_16-c867db91.pth"
"""What torchvision calls its weights ViT_B_16_Weights.IMAGENET1K_V1."""
VERSION = 1
"""To be raised with whatever changes answers of the same weights."""


@task("imagenet_class")
@dataclass(frozen=True)
class ImageNetClass:
    """Forgetting one of 1,000 classes of a supervised ViT-B/16; no oracles."""

    data: str = "data/ImageNet"
    """The folder that holds `train/<wnid>` and `val/<wnid>`."""
    checkpoint: str | None = None
    """A file of torchvision's ViT-B/16 weights; None: where torchvision keeps its own."""
    protocol: Literal["default", "published"] = "default"
    asked: PositiveInt = 10
    """Images of each kept class that are asked about, of `val` and of `train`; `published` asks all of `val`."""
    augment: bool = True
    """Whether training images are augmented where a method reads them in an order drawn at random."""
    download: bool = False
    """Have `artifacts rebuild` fetch the weights, through torchvision."""

    base_seeds: ClassVar[tuple[int, ...]] = (0,)
    preload: ClassVar[tuple[str, ...]] = ("torchvision", "safetensors.torch")

    def requests(self) -> tuple[Listed, ...]:
        """`class-K`, K numbering the classes in the order of their wnids."""
        return tuple(Listed(f"class-{k}", (str(k),), pool) for k, pool in sorted(POOLS.items()))

    def sizes(self, request_id: str) -> dict[str, Size]:
        """Images and classes of each split."""
        parts, label = self._parts(self._listed(request_id)), list_files(self._root()).label
        return {name: Size(len(rows), len(np.unique(label[rows]))) for name, rows in parts.asked.items()}

    def build(self, request_id: str, base_seed: int) -> Trial:
        """The trial of one request; the original's answers are kept in the cache.

        Raises:
            UsageError: images or weights are missing, or an image cannot be decoded.
        """
        listed, weights = self._listed(request_id), self._weights(base_seed)
        pictures, parts = load_pictures(self._root(), squeezed=self.protocol == "published"), self._parts(listed)
        rows, model = np.concatenate(list(parts.asked.values())), _load(weights)
        split = partial(PictureSplit, pictures, targets=listed.targets)
        kept = Validation(*(split(part) for part in parts.validation))
        reads = len(parts.forget) + len(parts.retain)
        return Trial(
            request=Request(
                model=model,
                targets=listed.targets,
                forget=split(parts.forget, augment=self.augment),
                retain=split(parts.retain, augment=self.augment),
                validation=kept,
                objective=CrossEntropy(N_CLASSES),
                validate=partial(validate, kept),
                # one epoch, in batches down to 64; retraining takes 300
                budget=Budget(max_steps=-(-reads // 64), max_reads=reads, max_evals=200),
                goal=1 / N_CLASSES,
            ),
            questions={
                "split": np.repeat(list(parts.asked), [len(asked) for asked in parts.asked.values()]),
                "unit": pictures.label[rows],
                "label": pictures.label[rows],
                "near": np.zeros(len(rows), dtype=bool),  # no class is declared another's neighbour
                "index": rows,
            },
            answer=partial(ask, pictures, rows),
            original=self._answers(weights, pictures, rows),
            oracles=(),
            oracle_model=_no_oracle,
            n_classes=N_CLASSES,
            joint=False,
            original_model=partial(_load, weights),
            features=partial(features, pictures, rows),
        )

    def fingerprint(self, request_id: str, base_seed: int) -> str:
        """Digest of the weights and of the names, sizes and times of change of all images; their bytes are not read."""
        listed, weights = self._listed(request_id), self._weights(base_seed)
        return digest({"request": listed.id, "weights": digest_of(weights), "images": all_files_digest(self._root())})

    def gates(self, request_ids: Sequence[str], base_seeds: Sequence[int]) -> list[Gate]:
        """The model is one of ImageNet (torchvision prints 81.1 %), and it knows what it is to forget."""
        found = []
        for listed in map(self._listed, request_ids):
            trial = self.build(listed.id, base_seeds[0])
            right, split = trial.original["rank"] == 0, trial.questions["split"]
            kept, known = (float(right[split == name].mean()) for name in ("retain", "forget"))
            found += [
                at_least(f"{listed.id}: the model knows the other classes: its accuracy on val", kept, 0.7),
                at_least(f"{listed.id}: the model knows the class: its accuracy on val", known, 0.3),
            ]
        return found

    def gates_after(self, frame: pd.DataFrame) -> list[Gate]:
        """None: what controls show is judged against oracles, and there are none."""
        return []

    def wanted(self) -> list[Wanted]:
        """The two folders of images and the weights."""
        root, weights = self._root(), self._weights_path()
        images = (
            "for research and teaching alone, by its terms of access; ILSVRC2012 at https://image-net.org/download.php "
            "after signing in, unpacked by torchvision.datasets.ImageNet(DIR, 'train') and (DIR, 'val')"
        )
        sizes = {"train": "1,281,167 images, 138 GB", "val": "50,000 images, 6.3 GB"}
        found = [looked_at(root / part, f"{size}; {images}", partial(_counted, root, part)) for part, size in sizes.items()]
        note = f"ViT-B/16, 330 MB, BSD-3-Clause (torchvision); `{self._command()}` fetches it, or give checkpoint=FILE"
        return [*found, Wanted(weights, weights.is_file(), note)]

    def rebuild(self, folder: Path, *, jobs: int = 1) -> None:
        """Fetch the weights through torchvision, where `download` says so; there is nothing to train."""
        from torchvision.models import ViT_B_16_Weights

        if not self.download:
            raise UsageError(f"imagenet_class trains nothing; to fetch its weights, 330 MB, say `{self._command()}`.")
        ViT_B_16_Weights.IMAGENET1K_V1.get_state_dict(progress=True, check_hash=True)

    def _listed(self, request_id: str) -> Listed:
        known = {listed.id: listed for listed in self.requests()}
        if request_id not in known:
            raise UsageError(f"imagenet_class has no request '{request_id}'; it has {', '.join(known)}.")
        return known[request_id]

    def _parts(self, listed: Listed) -> Parts:
        files, target = list_files(self._root()), int(listed.targets[0])
        return parts_of(files, target, asked=None if self.protocol == "published" else self.asked)

    def _root(self) -> Path:
        return Path(self.data).expanduser()

    def _weights_path(self) -> Path:
        return Path(self.checkpoint).expanduser() if self.checkpoint else hub_folder() / WEIGHTS

    def _weights(self, seed: int) -> Path:
        if seed not in self.base_seeds:
            raise UsageError(f"imagenet_class has no base model of seed {seed}; it has 0 alone.")
        path = self._weights_path()
        if self.checkpoint:
            return existing(path)
        if not path.is_file():
            raise UsageError(f"imagenet_class misses {path}; fetch it by `{self._command()}`, or give checkpoint=FILE.")
        return path

    def _answers(self, weights: Path, pictures: Pictures, rows: np.ndarray) -> Answers:
        images = {"images": files_digest(self._root(), rows), "protocol": self.protocol}
        model = {"weights": digest_of(weights), **images, "version": VERSION}
        return kept_answers("imagenet_class-answers", model, partial(_load, weights), pictures, rows)

    def _command(self) -> str:
        return "slugbench artifacts rebuild imagenet_class:download=true"


def _no_oracle(s: int) -> Model:
    raise UsageError(f"imagenet_class has no oracle {s}, nor any other: to retrain a ViT-B/16 takes 300 epochs of ImageNet.")


# ---------------------------------------------------------------- which images


class Files(NamedTuple):
    """All images, training images first, each part in the order of classes and names."""

    paths: tuple[str, ...]
    """Below the folder of the data."""
    label: np.ndarray
    """(N,) int."""
    n_train: int


class Parts(NamedTuple):
    """Rows that make a request and its questions."""

    forget: np.ndarray
    retain: np.ndarray
    validation: tuple[np.ndarray, np.ndarray]
    """Of the class, and of the others."""
    asked: dict[str, np.ndarray]
    """By the name of the split."""


@cache
def list_files(root: Path) -> Files:
    """The images below `train/<wnid>` and `val/<wnid>`, listed once a process: without torch, and without opening any.

    Raises:
        UsageError: the folders are not those of ImageNet.
    """
    folders = {part: _class_folders(root, part) for part in ("train", "val")}
    if folders["train"] != folders["val"]:
        apart = sorted(set(folders["train"]) ^ set(folders["val"]))
        raise UsageError(f"{root / 'train'} and {root / 'val'} hold other classes: {', '.join(apart[:3])} in one alone.")
    (train, train_label), (val, val_label) = (list_part(root, part) for part in folders)
    return Files((*train, *val), np.array([*train_label, *val_label]), len(train))


@cache
def list_part(root: Path, part: str) -> tuple[list[str], list[int]]:
    """Paths and labels of the images of `train` or `val`.

    Raises:
        UsageError: the folder is not that of ImageNet.
    """
    paths, label = [], []
    for k, wnid in enumerate(_class_folders(root, part)):
        names = sorted(filter(_is_image, os.listdir(root / part / wnid)))
        if not names:
            raise UsageError(f"{root / part / wnid} holds no images (.JPEG); unpack it anew.")
        paths += [f"{part}/{wnid}/{name}" for name in names]
        label += [k] * len(names)
    return paths, label


def _counted(root: Path, part: str) -> str:
    return f"{len(list_part(root, part)[0]):,} images"


def files_digest(root: Path, rows: Iterable[int]) -> str:
    """Of the names, sizes and times of change of these images, so that one put in another's place is noticed."""
    paths = list_files(root).paths
    stats = ((path, os.stat(f"{root}/{path}")) for path in (paths[row] for row in rows))
    return digest("\n".join(f"{path} {stat.st_size} {stat.st_mtime_ns}" for path, stat in stats))


@cache
def all_files_digest(root: Path) -> str:
    """That of all images, once a process: there are 1.3 million."""
    return files_digest(root, range(len(list_files(root).paths)))


def _class_folders(root: Path, part: str) -> list[str]:
    """The wnids of a part, all of them."""
    folder = root / part
    if not folder.is_dir():
        if root.is_dir() and _wnids(root):
            raise UsageError(f"data={root} holds the classes themselves; give the folder above, that holds train and val.")
        raise UsageError(f"imagenet_class finds no {folder}; give data=DIR with train/<wnid> and val/<wnid> in it.")
    found = _wnids(folder)
    if not found and any(map(_is_image, os.listdir(folder))):
        raise UsageError(f"{folder} holds images not sorted into classes; torchvision.datasets.ImageNet sorts them.")
    if len(found) != N_CLASSES:
        raise UsageError(f"{folder} holds {len(found)} folders named like n01440764; ImageNet-1k has {N_CLASSES}.")
    return found


def _wnids(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if re.fullmatch(r"n\d{8}", entry.name) and entry.is_dir())


def _is_image(name: str) -> bool:
    return name.lower().endswith((".jpeg", ".jpg", ".png"))


def parts_of(files: Files, target: int, *, asked: int | None) -> Parts:
    """A class apart from the others. With `asked` images of each kept class; None: as published."""
    train, val = np.arange(files.n_train), np.arange(files.n_train, len(files.label))
    if asked is None:
        held, some = val, val
    else:
        held = _first_of_each(files.label, _shuffled(train, seed=0), lambda n: max(1, min(HELD, n // 10)))
        train = np.setdiff1d(train, held)
        some = _first_of_each(files.label, val, lambda n: asked)
    own = files.label == target
    forget, retain = train[own[train]], train[~own[train]]
    others = held[~own[held]]
    kept = others if asked is None else _first_of_each(files.label, others, lambda n: HELD_ASKED)
    known = _first_of_each(files.label, _shuffled(retain, seed=1), lambda n: asked or HELD)
    questions = {"forget": val[own[val]], "retain": some[~own[some]], "forget_train": forget, "retain_train": known}
    return Parts(forget, retain, (held[own[held]], kept), questions)


def _shuffled(rows: np.ndarray, *, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(rows)


def _first_of_each(label: np.ndarray, rows: np.ndarray, how_many: Callable[[int], int]) -> np.ndarray:
    """The first rows of each class in the given order, sorted; `how_many` of a class that has n."""
    order = np.argsort(label[rows], kind="stable")
    by_class = np.split(rows[order], np.flatnonzero(np.diff(label[rows][order])) + 1)
    return np.sort(np.concatenate([mine[: how_many(len(mine))] for mine in by_class]))


# ---------------------------------------------------------------- pictures and the network


@cache
def load_pictures(root: Path, *, squeezed: bool) -> Pictures:
    """All images, each decoded when asked for, on as many threads as there are cores.

    Tested on is the central square of 224 pixels after the shorter side was made 256, as torchvision does for these
    weights, or, `squeezed`, the whole image in a square, as the SVD paper's code does.
    """
    import torch
    from torchvision import transforms

    files = list_files(root)
    whole = [transforms.Resize((PIXELS, PIXELS))]
    central = [transforms.Resize(PIXELS * 256 // 224), transforms.CenterCrop(PIXELS)]
    shown = transforms.Compose([*(whole if squeezed else central), transforms.ToTensor()])
    varied = transforms.Compose(
        [transforms.RandomResizedCrop(PIXELS), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    )

    def decoded(rows: np.ndarray, then: Callable[[Image.Image], object]) -> list:
        with ThreadPoolExecutor() as pool:
            return list(pool.map(lambda row: then(decode(root / files.paths[row])), rows))

    def fetch(rows: np.ndarray) -> torch.Tensor:
        return torch.stack(decoded(rows, shown))

    def vary(rows: np.ndarray, generator: torch.Generator) -> torch.Tensor:
        images = decoded(rows, lambda image: image)
        with drawing_from(generator):  # one after the other: threads would draw in any order
            return torch.stack([varied(image) for image in images])

    return Pictures(files.label, fetch, vary)


def decode(path: Path) -> Image.Image:
    """An image file in RGB; some of ImageNet are grey, and a few are CMYK.

    Raises:
        UsageError: it is damaged.
    """
    from PIL import Image

    try:
        with Image.open(path) as file:
            return file.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:  # what PIL raises depends on where the damage is
        raise UsageError(f"{path} cannot be decoded ({error}); unpack it anew.") from error


def hub_folder() -> Path:
    """Where torchvision keeps weights that it fetched: `torch.hub.get_dir()`, without torch."""
    cache_home = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"))
    return Path(os.environ.get("TORCH_HOME", cache_home / "torch")).expanduser() / "hub" / "checkpoints"


def new_network() -> Model:
    """torchvision's ViT-B/16, untrained, 86.6 M parameters."""
    from torchvision.models import vit_b_16

    return vit_b_16(num_classes=N_CLASSES)


def _load(path: Path) -> Model:
    """A classifier of images in [0, 1], (B, 3, 224, 224) -> (B, 1000) logits; it normalises them itself."""
    import torch
    from torchvision.transforms import Normalize

    with torch.random.fork_rng(devices=[]):  # its first weights are drawn, and at once overwritten
        network = fill(new_network(), load_checkpoint(path), path, f"torchvision's vit_b_16 for {N_CLASSES} classes")
    normalize = Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    return torch.nn.Sequential(OrderedDict(normalize=normalize, network=network)).eval()
