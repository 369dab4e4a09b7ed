"""Forgetting an object: one class of ImageNet, by a downloaded CLIP that tells it from all others zero-shot.

The data stay with the user (`data`); class names and templates are open_clip's. Nobody retrained such a model without an
object, so there are no oracles: what is measured is what is still recognised, what is kept, and the cost.

References:
    Deng et al., ImageNet: A Large-Scale Hierarchical Image Database, 2009.
    Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021 (names, templates).
    Cai et al., Targeted Unlearning with Single Layer Unlearning Gradient, 2025 (the seven objects).
"""

from __future__ import annotations

import importlib.util
import runpy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import PositiveInt

from slugbench.bench import Gate, Listed, Size, Trial, UsageError, Wanted, digest, task
from slugbench.bench.registry import did_you_mean

from ._image_folders import Dealt, Gallery, Pair, Shown, and_more, deal, folders_in, pictures_in, turns
from ._open_clip import Candidates, Original, Setting, Weights, activation_gate, original
from ._wanted import looked_at

if TYPE_CHECKING:
    import pandas as pd

PAPER = ("basketball", "beach", "castle", "revolver", "rifle", "school bus", "sunglasses")
"""The objects of Cai et al., by open_clip's names; ImageNet's `seashore` is its `beach`, and two classes are sunglasses."""
DEV, TUNE = 2, 4
PARTS = 3
"""To test, to search with, and to train on."""
RETAINED = 8_000
"""Pictures to retain: as many as LAION's first shard gave Cai et al. (their 00000.tar, 7,972)."""
SEARCHED_A_CLASS = 2
"""Retained validation pictures of a class: of fifty a search cannot run a third each time."""
Templates = Literal["single", "simple", "openai"]
"""`a photo of a {}.` alone; open_clip's seven; its eighty."""
Part = Literal["all", "twentieth"]
"""Of ImageNet's pictures, for the utility of models that are to forget something else."""


@task("imagenet")
@dataclass(frozen=True)
class ImageNet:
    """Forgetting an object that a downloaded CLIP knows; needs ImageNet's validation pictures.

    Pictures are dealt by their names alone: the target's into three parts, to test, to search with and to train on; of
    every other class two are searched with, nine trained on, and the rest, 39 of 50, asked about. Classes that share a name
    are one candidate, so that of ImageNet's 1,000 there are 998.

    The utility over the other classes is `ra@1` and `ra@5`. There is no `util@1` beside them: it could only be of the same
    pictures, and boards would count that number twice.

    Args:
        data: the folder that holds `val/<wnid>/*.JPEG`, as torchvision's `ImageFolder` reads it.
        model: an architecture of open_clip.
        pretrained: a tag of open_clip, a file of weights, or a folder of the Hugging Face hub.
        quickgelu: the activation; None is the one that the weights were trained with, where that is known (a file does not
            say), else the one that the architecture's name says.
        templates: what names are said in, to answer, search and train: `single`, `a photo of a {}.`; `simple`, open_clip's
            seven; or `openai`, its eighty, which take eleven times as long whenever the text tower is edited.
        asked: pictures of each retained class that are asked about, at most; None is all. Pictures lie decoded in the cache,
            0.15 MB each at 224 pixels: 7.5 GB of ImageNet's 50,000, which `celeba`'s utility then finds there. None of them
            stay in memory.
    """

    data: str = "data/ImageNet"
    model: str = "ViT-B-32"
    pretrained: str = "laion400m_e32"
    quickgelu: bool | None = None
    templates: Templates = "simple"
    asked: PositiveInt | None = None

    base_seeds: ClassVar[tuple[int, ...]] = (0,)
    preload: ClassVar[tuple[str, ...]] = ("open_clip",)

    def requests(self) -> tuple[Listed, ...]:
        """The paper's seven objects, then others for development and tuning; those of which there are pictures."""
        found = listing(self.data) if folders_in(Path(self.data) / "val") else None
        present = names() if found is None else [names()[label] for label in np.unique(found.gallery.label)]
        dealt = deal([name for name in present if name not in PAPER], {"dev": DEV, "tune": TUNE})
        pools = {"test": [name for name in PAPER if name in present], **dealt}
        return tuple(Listed(_id(name), (name,), pool) for pool, of in pools.items() for name in of)  # type: ignore[arg-type]

    def sizes(self, request_id: str) -> dict[str, Size]:
        """Images and objects of each split."""
        return self._dealt(request_id).sizes()

    def build(self, request_id: str, base_seed: int) -> Trial:
        """The trial of a request."""
        return self._setting(request_id, base_seed).trial()

    def fingerprint(self, request_id: str, base_seed: int) -> str:
        """Digest of the weights and of all pictures, by what they serve for. Downloads nothing."""
        _check_seed(base_seed)
        pictures = self._dealt(request_id).contents()  # first: it says what is wrong with the data
        return digest({"weights": self._weights.digest(), "pictures": pictures})

    def gates(self, request_ids: Sequence[str], base_seeds: Sequence[int]) -> list[Gate]:
        """The original knows each target; and which activation it ran with."""
        settings = [self._setting(request_id, seed) for seed in base_seeds for request_id in request_ids]
        return [activation_gate(self._weights), *(gate for setting in settings for gate in setting.gates())]

    def gates_after(self, frame: pd.DataFrame) -> list[Gate]:
        """None: what controls do is known from distances to oracles, of which there are none."""
        return []

    def wanted(self) -> list[Wanted]:
        """The pictures and the weights."""
        return [wanted(self.data), self._weights.wanted()]

    def rebuild(self, folder: Path, *, jobs: int = 1) -> None:
        """Refused: nothing ships with the package."""
        raise UsageError("imagenet ships no models; it reads data and weights of your own.")

    @property
    def _weights(self) -> Weights:
        return Weights(self.model, self.pretrained, self.quickgelu)

    def _dealt(self, request_id: str) -> Dealt:
        targets = {request.id: request.targets[0] for request in self.requests()}
        if request_id not in targets:
            raise UsageError(
                f"imagenet has no request '{request_id}'{did_you_mean(request_id, targets)}; it has {', '.join(targets)}."
            )
        return _dealt(self.data, names().index(targets[request_id]), self.asked)

    def _setting(self, request_id: str, base_seed: int) -> Setting:
        _check_seed(base_seed)
        dealt, own = self._dealt(request_id), original(self._weights)
        return Setting(own, candidates(own, self.templates), names(), dealt)


def _id(name: str) -> str:
    return name.replace(" ", "_")


def _check_seed(seed: int) -> None:
    if seed != 0:
        raise UsageError(f"there is one downloaded model and so one base seed, 0; not {seed}.")


# ---------------------------------------------------------------- names and templates


@cache
def _metadata() -> dict[str, Any]:
    """open_clip's names and templates, read without importing it, which would import torch."""
    package = importlib.util.find_spec("open_clip")
    assert package is not None and package.submodule_search_locations  # a dependency
    return runpy.run_path(str(Path(package.submodule_search_locations[0]) / "zero_shot_metadata.py"))


@cache
def names() -> tuple[str, ...]:
    """The candidates: open_clip's names of the 1,000 classes, of which two pairs are equal."""
    return tuple(dict.fromkeys(_metadata()["IMAGENET_CLASSNAMES"]))


@cache
def label_of_class() -> np.ndarray:
    """(1000,) the candidate of each class, in the order of the wnids."""
    return np.array([names().index(name) for name in _metadata()["IMAGENET_CLASSNAMES"]])


@cache
def wnids() -> tuple[str, ...]:
    """The 1,000 classes, sorted: timm's list, which is open_clip's order of names."""
    package = importlib.util.find_spec("timm")
    assert package is not None and package.submodule_search_locations  # a dependency of open_clip
    return tuple((Path(package.submodule_search_locations[0]) / "data/_info/imagenet_synsets.txt").read_text().split())


@cache
def candidates(own: Original, templates: Templates) -> Candidates:
    """All names in all templates."""
    made = _templates(templates)
    return Candidates([[template(name) for template in made] for name in names()], own.tokenize)


def _templates(chosen: Templates) -> Sequence[Callable[[str], str]]:
    if chosen == "single":
        return ("a photo of a {}.".format,)  # of Radford et al., section 3.1.4
    found: Sequence[Callable[[str], str]] = _metadata()[f"{chosen.upper()}_IMAGENET_TEMPLATES"]
    return found


# ---------------------------------------------------------------- pictures


class Listing(NamedTuple):
    """All validation pictures, in the order of torchvision's `ImageFolder`."""

    gallery: Gallery
    turn: np.ndarray
    """(N,) the place of each among those of its label."""
    classes: int
    """How many folders there are."""


@cache
def listing(data: str) -> Listing:
    """The pictures under `data`/val.

    Raises:
        UsageError: the folder is not laid out as `ImageFolder` has it, or holds classes that are not ImageNet's.
    """
    root = Path(data) / "val"
    found = folders_in(root)
    if not any(name in wnids() for name in found):
        raise UsageError(_not_there(Path(data)))
    if unknown := [name for name in found if name not in wnids()]:
        raise UsageError(f"{root} holds folders that are no class of ImageNet's 1,000: {and_more(unknown)}; take them out.")
    if empty := [name for name in found if not pictures_in(root / name)]:
        nested = [name for name in empty if folders_in(root / name)]
        hint = "; the pictures lie a folder too deep" if nested else ""
        raise UsageError(f"{root} holds classes without pictures: {and_more(empty)}{hint}; put them into val/<wnid>/.")
    pictures = [(name, picture) for name in found for picture in pictures_in(root / name)]
    place = {wnid: number for number, wnid in enumerate(wnids())}
    label = label_of_class()[[place[name] for name, _ in pictures]]
    gallery = Gallery(root, [f"{name}/{picture}" for name, picture in pictures], label, np.arange(len(pictures)))
    return Listing(gallery, turns([picture for _, picture in pictures], label), len(found))


def _not_there(data: Path) -> str:
    """Where the pictures lie instead, or what to do."""
    if any(name in wnids() for name in folders_in(data)):
        return f"data={data} is a folder too deep: it holds the classes themselves; give the one above it, with val."
    if pictures_in(data / "val"):
        return f"{data / 'val'} holds pictures and no folders of classes; sort them into val/<wnid>/ (`valprep.sh`)."
    if folders_in(data / "val" / "val"):
        return f"{data / 'val'} holds another val: the classes lie a folder too deep; move them up."
    return f"data={data} holds no val/<wnid>/*.JPEG; give the folder in which ImageNet's validation pictures lie under val."


def wanted(data: str) -> Wanted:
    """ImageNet's validation pictures, for `slugbench doctor`."""

    def pictures() -> str:
        found = listing(data)
        return f"{len(found.turn):,} pictures of {found.classes:,} of 1,000 classes"

    note = (
        "ImageNet's 50,000 validation pictures as val/<wnid>/*.JPEG, 6.7 GB, for non-commercial research, from "
        "image-net.org after registration"
    )
    return looked_at(Path(data) / "val", note, pictures)


def five_percent(n: int) -> np.ndarray:
    """The subset of Cai et al.: a twentieth of n pictures in `ImageFolder`'s order, drawn once for all.

    References:
        CSIPlab/SLUG, src/clip/training/data.py, `get_imagenet`.
    """
    return np.sort(np.random.RandomState(seed=0).choice(n, size=max(1, int(n * 0.05)), replace=False))


@cache
def utility(data: str, part: Part) -> Shown:
    """The pictures on which the utility of a model is measured that is to forget something else.

    Of all there are, pixels and embeddings in the cache are one file each, whatever a trial takes of them.
    """
    gallery = listing(data).gallery
    if part == "all":
        return gallery.whole()
    n = len(gallery.names)
    return gallery.only(np.isin(np.arange(n), five_percent(n))).whole()


@cache
def _dealt(data: str, target: int, asked: int | None) -> Dealt:
    """Which pictures serve for what, the target being a candidate: a third of its own to test, search with and train on.

    Raises:
        UsageError: of the target there are too few.
    """
    found = listing(data)
    mine = found.gallery.label == target
    if mine.sum() < PARTS:
        raise UsageError(f"'{names()[target]}' has {mine.sum()} pictures under {data}/val; it needs at least {PARTS}.")
    test, validation, train = (
        Pair(_shown(found.gallery, mine & (found.turn % PARTS == number), one=asked is None), _but(kept, target))
        for number, kept in enumerate(_retained(data, asked))
    )
    return Dealt((target,), train, validation, test)


@cache
def _retained(data: str, asked: int | None) -> tuple[Shown, Shown, Shown]:
    """Of every class the pictures to test, to search with, and to train on."""
    found = listing(data)
    searched = 1 + PARTS * np.arange(SEARCHED_A_CLASS)
    trained = 2 + PARTS * np.arange(-(-RETAINED // len(names())))
    others = np.sort(np.concatenate([searched, trained]))
    place = found.turn - np.searchsorted(others, found.turn)  # among those that are neither
    tested = ~np.isin(found.turn, others) & (place < (asked or np.inf))
    parts = (tested, np.isin(found.turn, searched), np.isin(found.turn, trained))
    test, validation, train = (_shown(found.gallery, part, one=asked is None) for part in parts)
    return test, validation, train


def _shown(gallery: Gallery, chosen_N: np.ndarray, *, one: bool) -> Shown:
    """Those pictures: of the one gallery that is then kept for all that is asked, or of one of their own."""
    return gallery.where(chosen_N) if one else gallery.only(chosen_N).whole()


def _but(shown: Shown, target: int) -> Shown:
    return Shown(shown.gallery, shown.rows[shown.label != target])
