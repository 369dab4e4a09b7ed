"""Forgetting a real person: an identity of CelebA, by a downloaded CLIP that tells it from all others zero-shot.

The task of Cai et al., 2025, section 4. The data stay with the user (`data`), and so do LAION's pairs to train on, where
there are any. Nobody retrained such a model without a person, so there are no oracles: what is measured is what is still
recognised, what is kept, and the cost. No question is about training pictures: which ones a downloaded model was trained
on nobody can say, and CelebA's differ from LAION's in more than that.

References:
    Cai et al., Targeted Unlearning with Single Layer Unlearning Gradient, 2025.
    Liu et al., Deep Learning Face Attributes in the Wild, 2015 (CelebA).
    Schuhmann et al., LAION-400M: Open Dataset of CLIP-Filtered 400 Million Image-Text Pairs, 2021.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

import numpy as np

from slugbench.bench import Gate, Listed, Size, Trial, UsageError, Wanted, digest, file_digest, task
from slugbench.bench.registry import did_you_mean

from . import imagenet as objects
from ._gates import within
from ._image_folders import (
    ENDINGS,
    Dealt,
    Gallery,
    Pair,
    PictureSplit,
    Shown,
    and_more,
    deal,
    folders_in,
    pictures_in,
    turns,
)
from ._open_clip import Candidates, Original, Setting, Weights, activation_gate, original
from ._pairs import Tars, paired, tar_of, tars_in
from ._wanted import looked_at

if TYPE_CHECKING:
    import pandas as pd

PAPER = (
    *("Elon Musk", "Jeff Bezos", "Mark Zuckerberg", "Taylor Swift", "Kim Kardashian"),
    *("Kanye West", "Barack Obama", "Bruce Lee", "Fan Bingbing", "Lady Gaga"),
)
"""The five of Cai et al.'s table, then the five more of their scripts."""
DEV, TUNE = 2, 6
TEMPLATE = "{name}."
IMAGES, NAMES, FREQUENT = "img_align_celeba", "list_identity_celeba.txt", "frequent_celebs.txt"
PUBLISHED = {"utility": "twentieth", "templates": "simple"}
"""How Cai et al. measured the utility."""
RETAINED = 8_000
"""Pictures to retain where there are no pairs: as many as LAION's first shard gave Cai et al. (their 00000.tar, 7,972)."""
ON_REQUEST = "list_identity_celeba.txt with names is given by CelebA's authors on request (mmlab.ie.cuhk.edu.hk)"


@task("celeba")
@dataclass(frozen=True)
class CelebA:
    """Forgetting a person that a downloaded CLIP knows; needs CelebA with names.

    A picture is told from all names there are, each as `Some Name.`. What is kept is the mean over the frequent names, in
    `ra@1` without the target, in `ta@1` with it if it is one of them.

    Args:
        data: the folder of `img_align_celeba/*.jpg`, `list_identity_celeba.txt` (two header lines, then
            `000001.jpg Some_Name`) and `frequent_celebs.txt` (a name a line).
        model: an architecture of open_clip.
        pretrained: a tag of open_clip, a file of weights, or a folder of the Hugging Face hub.
        quickgelu: the activation. None is the one that the weights were trained with, where that is known (a file does not
            say), else the one that the architecture's name says; by the protocol `published` of a tag that too, as in the
            authors' code.
        protocol: `default`: pictures of each person are dealt into test, validation and, without `forget_data` and
            `retain_data`, train; searches retain the other frequent names. `published`: as Cai et al. evaluated: the same
            pictures, all there are, for search and report, and searches retain the target too if it is a frequent name.
        forget_data: a folder of `Some_Name.tar`, WebDataset tars of the pairs to forget.
        retain_data: a tar of the pairs to retain, or a folder of tars.
        imagenet: the folder with ImageNet's `val/<wnid>/*.JPEG`, for the utility, `util@1` and `util@5`.
        utility: the pictures of that folder that are asked about: `all`, or the published `twentieth`, which the protocol
            `published` takes. What the original makes of them is kept by its digest, 0.1 GB, so that an edit of the text
            tower runs no picture. An edit of the image tower runs them all; for that they lie decoded in the cache, 7.5 GB
            for 50,000 at 224 pixels, and are read as they are needed: to decode them again would cost each edited model
            about four minutes on a core. `slugbench artifacts gc` frees the space.
        templates: what the objects' names are said in: `single`, `a photo of a {}.`; `simple`, open_clip's seven, which the
            protocol `published` takes; or `openai`, its eighty, the default. An edit of the text tower runs all: with eighty
            it takes as long as 50,000 pictures, hours on a CPU.
    """

    data: str = "data/celeba"
    model: str = "ViT-B-32"
    pretrained: str = "laion400m_e32"
    quickgelu: bool | None = None
    protocol: Literal["default", "published"] = "default"
    forget_data: str | None = None
    retain_data: str | None = None
    imagenet: str | None = None
    utility: objects.Part | None = None
    templates: objects.Templates | None = None

    base_seeds: ClassVar[tuple[int, ...]] = (0,)
    preload: ClassVar[tuple[str, ...]] = ("open_clip",)

    def __post_init__(self) -> None:
        given = {name: value for name in PUBLISHED if (value := getattr(self, name)) is not None}
        for name, value in given.items():
            if self.protocol == "published" and value != PUBLISHED[name]:
                raise UsageError(
                    f"protocol=published evaluates with {name}={PUBLISHED[name]}, not {value}; leave one of the two out."
                )
            if self.imagenet is None:
                raise UsageError(f"{name}={value} is about ImageNet's pictures; give their folder too, as imagenet=DIR.")

    def requests(self) -> tuple[Listed, ...]:
        """Those of the paper's ten people of whom there are pictures, then frequent names for development and tuning."""
        if not (Path(self.data) / NAMES).is_file():
            return tuple(Listed(_id(name), (name,), "test") for name in PAPER)
        people = known(self.data)
        pools = {"test": [name for name in PAPER if name in people.names]}
        pools |= deal([people.names[i] for i in people.frequent if people.names[i] not in PAPER], {"dev": DEV, "tune": TUNE})
        return tuple(Listed(_id(name), (name,), pool) for pool, names in pools.items() for name in names)  # type: ignore[arg-type]

    def sizes(self, request_id: str) -> dict[str, Size]:
        """Images and people of each split, or objects of the utility."""
        return self._dealt(request_id).sizes()

    def build(self, request_id: str, base_seed: int) -> Trial:
        """The trial of a request."""
        setting, tars = self._setting(request_id, base_seed), self._tars(request_id)
        target = setting.dealt.targets[0]
        pairs: dict[str, PictureSplit] = {}
        if tars.forget is not None:
            pairs["forget"] = _paired(setting, tars.forget, target, setting.names[target])
        if tars.retain is not None:
            pairs["retain"] = _paired(setting, tars.retain, len(setting.names), None)
        trial = setting.trial(**pairs)
        asked = trial.questions
        frequent = np.isin(asked["label"], known(self.data).frequent) & (asked["split"] != "utility")
        return replace(trial, questions={**asked, "frequent": frequent})

    def fingerprint(self, request_id: str, base_seed: int) -> str:
        """Digest of the weights and of all pictures and names, by what they serve for. Downloads nothing."""
        _check_seed(base_seed)
        pictures = self._dealt(request_id).contents()  # first: it says what is wrong with the data
        names = [file_digest(Path(self.data) / name) for name in (NAMES, FREQUENT)]
        tars = [None if part is None else part.content() for part in self._tars(request_id)]
        return digest({"weights": self._weights.digest(), "pictures": pictures, "names": names, "tars": tars})

    def gates(self, request_ids: Sequence[str], base_seeds: Sequence[int]) -> list[Gate]:
        """The original knows each target, tars are whole, and published numbers of the original come out here."""
        found = [activation_gate(self._weights)]
        for request_id in request_ids:
            setting = self._setting(request_id, 0)
            found += setting.gates()
            found += [tars.gate() for tars in self._tars(request_id) if tars is not None]
        if self.protocol == "published" and self.imagenet is not None and request_ids:
            found += published_gate(self._weights, setting)
        return list(dict.fromkeys(found))

    def gates_after(self, frame: pd.DataFrame) -> list[Gate]:
        """None: what controls do is known from distances to oracles, of which there are none."""
        return []

    def wanted(self) -> list[Wanted]:
        """Pictures, names, weights, and what the parameters name besides."""
        found = wanted(Path(self.data))
        if self.forget_data is not None:
            note = "WebDataset tar of pairs to forget, from LAION-400M by name"
            tars = [tar_of(self.forget_data, name) for name in self._tested()]
            found += [Wanted(tar, tar.is_file(), note) for tar in tars]
        if self.retain_data is not None:
            note = "WebDataset tars of pairs to retain, as LAION-400M's 00000.tar by img2dataset"
            retain = self.retain_data
            found.append(looked_at(Path(retain), note, lambda: f"{len(tars_in(retain).files)} tars"))
        return [*found, self._weights.wanted(), *([] if self.imagenet is None else [objects.wanted(self.imagenet)])]

    def rebuild(self, folder: Path, *, jobs: int = 1) -> None:
        """Refused: nothing ships with the package."""
        raise UsageError("celeba ships no models; it reads data and weights of your own.")

    @property
    def _weights(self) -> Weights:
        weights = Weights(self.model, self.pretrained, self.quickgelu)
        if self.protocol == "published" and self.quickgelu is None and weights.local is None:
            return replace(weights, quickgelu=self.model.endswith("-quickgelu"))
        return weights

    def _tested(self) -> tuple[str, ...]:
        """Who is tested on; those of the paper as long as the lists of pictures cannot be read."""
        try:
            return tuple(request.targets[0] for request in self.requests() if request.pool == "test")
        except UsageError:
            return PAPER

    def _target(self, request_id: str) -> int:
        targets = {request.id: request.targets[0] for request in self.requests()}
        if request_id not in targets:
            raise UsageError(
                f"celeba has no request '{request_id}'{did_you_mean(request_id, targets)}; it has {', '.join(targets)}."
            )
        return known(self.data).names.index(targets[request_id])

    def _dealt(self, request_id: str) -> Dealt:
        target = self._target(request_id)
        if self.protocol == "published":
            dealt = _published(self.data, target)
        else:
            dealt = _dealt(self.data, target, *(3 if tars is None else 2 for tars in (self.forget_data, self.retain_data)))
        if self.imagenet is None:
            return dealt
        found = objects.listing(self.imagenet)
        if self.protocol == "published" and found.classes != 1000:
            raise UsageError(f"protocol=published needs all 1,000 classes of ImageNet; {self.imagenet} has {found.classes}.")
        return dealt._replace(utility=objects.utility(self.imagenet, self._evaluated.part))

    @property
    def _evaluated(self) -> Evaluated:
        published = self.protocol == "published"
        part: objects.Part = self.utility or ("twentieth" if published else "all")
        templates: objects.Templates = self.templates or ("simple" if published else "openai")
        return Evaluated(part, templates)

    def _tars(self, request_id: str) -> TarPair:
        forget = None
        if self.forget_data is not None:
            tar = tar_of(self.forget_data, known(self.data).names[self._target(request_id)])
            forget = tars_in(str(tar))
        return TarPair(forget, None if self.retain_data is None else tars_in(self.retain_data))

    def _setting(self, request_id: str, base_seed: int) -> Setting:
        _check_seed(base_seed)
        dealt, names = self._dealt(request_id), known(self.data).names
        own = original(self._weights)
        utility = None if self.imagenet is None else objects.candidates(own, self._evaluated.templates)
        return Setting(own, _candidates(own, names), names, dealt, utility)


class Evaluated(NamedTuple):
    """How the utility is measured."""

    part: objects.Part
    templates: objects.Templates


class TarPair(NamedTuple):
    """What there is in tars."""

    forget: Tars | None
    retain: Tars | None


def _paired(setting: Setting, tars: Tars, label: int, target: str | None) -> PictureSplit:
    own = setting.original
    return paired(tars, own.preparation, own.tokenize, label=label, target=target)


def _id(name: str) -> str:
    return name.replace(" ", "_")


def _check_seed(seed: int) -> None:
    if seed != 0:
        raise UsageError(f"there is one downloaded model and so one base seed, 0; not {seed}.")


@cache
def _candidates(own: Original, names: tuple[str, ...]) -> Candidates:
    return Candidates([[TEMPLATE.format(name=name)] for name in names], own.tokenize)


PUBLISHED_UTILITY = {("ViT-B-32", "laion400m_e32", False): 0.6012}
"""ImageNet top-1 of unedited models in Cai et al.'s table, on the twentieth; by model, tag and QuickGELU."""


def published_gate(weights: Weights, setting: Setting) -> list[Gate]:
    """Whether the unedited model has its published ImageNet accuracy, where there is one.

    Half a point is allowed: JPEG decoders differ by a bit, and two pairs of ImageNet's names are equal, between which the
    authors' code tells at random and this one does not.
    """
    expected = PUBLISHED_UTILITY.get((weights.model, weights.pretrained, bool(weights.quickgelu)))
    if expected is None:
        return []
    right = setting.exam.quizzes[-1].originals()["rank"] == 0
    return [within("published ImageNet top-1 of the original", right.mean(), expected - 0.005, expected + 0.005)]


# ---------------------------------------------------------------- people


class People(NamedTuple):
    """Who is in CelebA."""

    names: tuple[str, ...]
    """Sorted; the place of a name is its label."""
    gallery: Gallery
    """All pictures, in the order of the list; `index` is the line."""
    frequent: tuple[int, ...]
    """Labels of the frequent names."""
    turn: np.ndarray
    """(N,) the place of each picture among those of its person."""


@cache
def known(data: str) -> People:
    """Names and pictures.

    Raises:
        UsageError: files are missing, lie elsewhere, or are not of the format; someone frequent has no picture.
    """
    root = Path(data)
    _check_folder(root)
    rows = _identities(root / NAMES)
    names = tuple(sorted({name for _, name in rows}))
    place = {name: label for label, name in enumerate(names)}
    label = np.array([place[name] for _, name in rows])
    frequent = _frequent_names(root)
    _check_frequent(root, frequent, place)
    gallery = Gallery(root / IMAGES, [file for file, _ in rows], label, np.arange(len(rows)))
    return People(names, gallery, tuple(place[name] for name in frequent), turns(gallery.names, label))


def _check_folder(root: Path) -> None:
    """Whether everything lies where it should."""
    if pictures_in(root):
        raise UsageError(f"data={root} is a folder too deep: it holds the pictures; give the one above it.")
    if not pictures_in(root / IMAGES):
        if pictures_in(root / IMAGES / IMAGES):  # as some archives unpack
            raise UsageError(f"{root / IMAGES} holds another {IMAGES}: the pictures lie a folder too deep; move them up.")
        inside = [name for name in folders_in(root) if pictures_in(root / name / IMAGES)]
        hint = f"; it is in {root / inside[0]}, give that" if inside else ""
        raise UsageError(f"data={root} holds no {IMAGES}/*.jpg{hint}; {_doctor(root)} says what is needed.")
    for name in (NAMES, FREQUENT):
        if not (root / name).is_file():
            hint = f"; {ON_REQUEST}" if name == NAMES else ""
            raise UsageError(f"data={root} holds no {name}{hint}; {_doctor(root)} says what is needed.")


def _doctor(root: Path) -> str:
    return f"`slugbench doctor {shlex.quote(f'celeba:data={root}')}`"


def wanted(root: Path) -> list[Wanted]:
    """The three things in the folder of the data, for `slugbench doctor`."""

    def pictures() -> str:
        here = set(os.listdir(root / IMAGES))
        n, absent = len(pictures_in(root / IMAGES)), list[str]()
        if not n:
            raise UsageError("It holds no .jpg.")
        with contextlib.suppress(UsageError, FileNotFoundError):  # what is wrong with the list is said beside it
            listed = [file for file, _ in _identities(root / NAMES)]
            absent = [file for file in listed if file not in here]
        if absent:
            raise UsageError(f"Of {len(listed):,} pictures in {NAMES} {len(absent):,} are not there: {and_more(absent)}.")
        return f"{n:,} pictures"

    def people() -> str:
        rows = _identities(root / NAMES)
        return f"{len(rows):,} pictures of {len({name for _, name in rows}):,} people"

    def frequent() -> str:
        names = _frequent_names(root)
        if not names:
            raise UsageError("It holds no names.")
        with contextlib.suppress(FileNotFoundError):
            _check_frequent(root, names, {name for _, name in _identities(root / NAMES)})
        return f"{len(names)} names"

    note = "CelebA's 202,599 aligned pictures, 1.4 GB, for non-commercial research, from its authors' page"
    return [
        looked_at(root / IMAGES, note, pictures),
        looked_at(root / NAMES, f"a name for each picture, 5 MB; {ON_REQUEST}", people),
        looked_at(
            root / FREQUENT, "100 names, one a line, the most frequent in LAION-400M; in github.com/CSIPlab/SLUG", frequent
        ),
    ]


def _frequent_names(root: Path) -> list[str]:
    return [line.strip().replace("_", " ") for line in _lines(root / FREQUENT) if line.strip()]


def _check_frequent(root: Path, names: Sequence[str], known: Container[str]) -> None:
    if absent := [name for name in names if name not in known]:
        raise UsageError(f"{root / FREQUENT} names people without any picture in {NAMES}: {and_more(absent)}.")


def _identities(path: Path) -> list[tuple[str, str]]:
    """File and name of every picture: two header lines, then `000001.jpg Some_Name`."""
    lines = _lines(path)
    for number, line in enumerate(lines[:2], 1):
        if "".join(line.lower().split()[:1]).endswith(ENDINGS):
            raise UsageError(
                f"{path} has a picture in line {number}, where it should have two header lines (a number, then the names of "
                "the columns); it needs the list with names as CelebA's authors give it."
            )
    rows = [tuple(line.split(maxsplit=1)) for line in lines[2:] if line.strip()]
    wrong = next((number for number, row in enumerate(rows, 3) if len(row) != 2), None)
    if wrong is not None or not rows:
        raise UsageError(f"{path} has no `000001.jpg Some_Name` in line {wrong or 3}; it needs one in each line after two.")
    if all(name.strip().isdigit() for _, name in rows):
        raise UsageError(f"{path} has numbers for people; {ON_REQUEST}.")
    if again := [file for file, times in Counter(file for file, _ in rows).items() if times > 1]:
        raise UsageError(f"{path} lists pictures more than once: {and_more(again)}; each has one line, with one name.")
    return [(file, name.strip().replace("_", " ")) for file, name in rows]


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines()


# ---------------------------------------------------------------- dealing


@cache
def _dealt(data: str, target: int, n_own: int, n_others: int) -> Dealt:
    """Pictures in so many parts: to test, to search with and, the third, to train on."""
    people = known(data)
    _check_enough(people, target, n_own)
    own, turn = _own(data, target)
    test, validation, train = (
        Pair(own.where(turn % n_own == number), _but(kept, target)) for number, kept in enumerate(_retained(data, n_others))
    )
    return Dealt((target,), train, validation, test)


@cache
def _published(data: str, target: int) -> Dealt:
    """Everyone's pictures, all of them, for search and report; searches retain the target among the frequent names."""
    people = known(data)
    _check_enough(people, target, 1)
    own = _own(data, target)[0].whole()
    kept = people.gallery.only(_frequent(people))
    train = Pair(own, _but(_first(people, people.turn >= 0), target))
    return Dealt((target,), train, Pair(own, kept.whole()), Pair(own, _but(kept, target)))


def _own(data: str, target: int) -> tuple[Gallery, np.ndarray]:
    """The target's pictures, and the place of each among them."""
    people = known(data)
    mine = people.gallery.label == target
    return people.gallery.only(mine), people.turn[mine]


@cache
def _retained(data: str, n_parts: int) -> tuple[Gallery, Gallery, Gallery]:
    """The parts of the frequent people's pictures to test and to search with, and of everyone's to train on."""
    people = known(data)
    test, validation, train = (people.turn % n_parts == number for number in range(3))
    kept = (people.gallery.only(part & _frequent(people)) for part in (test, validation))
    return (*kept, _first(people, train))  # type: ignore[return-value]  # of two


def _frequent(people: People) -> np.ndarray:
    return np.isin(people.gallery.label, people.frequent)


def _first(people: People, chosen_N: np.ndarray) -> Gallery:
    """As many of those pictures as are read: from each person one, then a second, ..."""
    rows = np.flatnonzero(chosen_N)
    rows = rows[np.argsort(people.turn[rows], kind="stable")][:RETAINED]
    return people.gallery.only(np.isin(np.arange(len(chosen_N)), rows))


def _but(gallery: Gallery, target: int) -> Shown:
    return gallery.where(gallery.label != target)


def _check_enough(people: People, target: int, least: int) -> None:
    n = int((people.gallery.label == target).sum())
    if n < least:
        raise UsageError(f"{people.names[target]} has {n} pictures in {NAMES}; this protocol needs at least {least}.")
