"""Pictures on disk: which there are, how they are dealt into parts, and their pixels, decoded when they are asked for.

Nothing here needs torch but `Pictures.batch` and `PictureSplit`. Legend for array shapes: N pictures, H and W pixels.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from slugbench.bench import Batch, MissingData, Size, UsageError, cached, digest, file_digest

if TYPE_CHECKING:
    import torch
    from PIL import Image

ENDINGS = (".jpg", ".jpeg", ".png", ".webp")
NAMED = 10
"""How many of many pictures a message names."""

Source: TypeAlias = "Path | bytes"
"""An encoded picture: its file, or what is in it."""


# ---------------------------------------------------------------- listing


@cache
def pictures_in(folder: Path) -> tuple[str, ...]:
    """Sorted names of the pictures in a folder; () where there is none, or no folder."""
    if not folder.is_dir():
        return ()
    with os.scandir(folder) as entries:
        return tuple(sorted(entry.name for entry in entries if entry.name.lower().endswith(ENDINGS)))


@cache
def folders_in(folder: Path) -> tuple[str, ...]:
    """Sorted names of the folders in a folder."""
    return tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir())) if folder.is_dir() else ()


def and_more(names: Sequence[str]) -> str:
    """The first names of a list, and how many there are besides."""
    rest = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {rest} more" if rest > 0 else "")


def content_digest(files: Iterable[Path]) -> str:
    """Digest of names and contents. A file is read again only where its size or its time of change is another."""
    files = list(files)
    stats = [(str(file.resolve()), (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files]

    def make(path: Path) -> None:
        path.write_text(digest(json.dumps([[file.name, file_digest(file)] for file in files])))

    return cached("content", {"files": stats}, make, suffix=".txt").read_text()


# ---------------------------------------------------------------- dealing


def turns(names: Sequence[str], label_N: np.ndarray) -> np.ndarray:
    """(N,) the place of each picture among those of its label, in an order that its name alone decides.

    Pictures that follow each other are often of one session: dealt in turn by this order they come into any part.
    """
    draw_N = np.array([int(digest(name)[:15], 16) for name in names])
    order = np.lexsort((draw_N, label_N))
    sorted_N = label_N[order]
    first_N = np.searchsorted(sorted_N, sorted_N, side="left")
    turn_N = np.empty(len(names), dtype=np.int64)
    turn_N[order] = np.arange(len(names)) - first_N
    return turn_N


def deal(names: Iterable[str], shares: Mapping[str, int]) -> dict[str, list[str]]:
    """Give each share so many of the names, in an order that a name alone decides; the last go without."""
    deck = iter(sorted(names, key=digest))
    return {share: list(islice(deck, count)) for share, count in shares.items()}


@dataclass(frozen=True, eq=False)
class Gallery:
    """Files of pictures, what each shows, and what questions call it."""

    root: Path
    names: Sequence[str]
    """Of the files, from there."""
    label: np.ndarray
    """(N,)"""
    index: np.ndarray
    """(N,)"""

    @cached_property
    def files(self) -> list[Path]:
        """All files."""
        return [self.root / name for name in self.names]

    @cached_property
    def content(self) -> str:
        """Digest of all files.

        Raises:
            UsageError: some are not there.
        """
        try:
            return content_digest(self.files)
        except FileNotFoundError as error:
            missing = [name for name, file in zip(self.names, self.files, strict=True) if not file.is_file()]
            raise UsageError(
                f"{len(missing)} of {len(self.names)} pictures are not in {self.root}: {and_more(missing)}; unpack all."
            ) from error

    def where(self, chosen_N: np.ndarray) -> Shown:
        """The pictures at which a bool array is true."""
        return Shown(self, np.flatnonzero(chosen_N))

    def whole(self) -> Shown:
        """All pictures."""
        return Shown(self, np.arange(len(self.names)))

    def only(self, chosen_N: np.ndarray) -> Gallery:
        """A gallery of those pictures alone."""
        rows = np.flatnonzero(chosen_N)
        return Gallery(self.root, [self.names[row] for row in rows.tolist()], self.label[rows], self.index[rows])

    def pictures(self, preparation: Preparation, *, keep: bool) -> Pictures:
        """To be decoded batch by batch, or (`keep`) once for all."""
        return Pictures(self.files, self.names, preparation, self.content if keep else "")


@dataclass(frozen=True, eq=False)
class Shown:
    """Some pictures of a gallery."""

    gallery: Gallery
    rows: np.ndarray
    """(n,)"""

    @property
    def label(self) -> np.ndarray:
        """(n,)"""
        return self.gallery.label[self.rows]

    @property
    def index(self) -> np.ndarray:
        """(n,)"""
        return self.gallery.index[self.rows]


class Pair(NamedTuple):
    """Pictures of what is to be forgotten, and of the rest."""

    forget: Shown
    retain: Shown


class Dealt(NamedTuple):
    """Which pictures serve a request for what."""

    targets: tuple[int, ...]
    train: Pair
    validation: Pair
    test: Pair
    utility: Shown | None = None

    def contents(self) -> dict[str, list[Any]]:
        """Digests of all pictures, and which of them serve for what."""
        parts = {
            f"{name}.{kind}": shown
            for name, pair in (("train", self.train), ("validation", self.validation), ("test", self.test))
            for kind, shown in pair._asdict().items()
        }
        parts |= {} if self.utility is None else {"utility": self.utility}
        return {name: [shown.gallery.content, shown.rows.tolist()] for name, shown in parts.items()}

    def questions(self, n_candidates: int) -> dict[str, np.ndarray]:
        """As `Trial.questions`; units of the utility task are its labels, numbered on so that they are nobody else's.

        `near` is no one: whom such a model takes for whom is not known before it is asked.
        """
        asked = {"forget": self.test.forget, "retain": self.test.retain}
        asked |= {} if self.utility is None else {"utility": self.utility}
        label = {split: shown.label for split, shown in asked.items()}
        counts = [len(shown.rows) for shown in asked.values()]
        return {
            "split": np.repeat(list(asked), counts),
            "unit": np.concatenate([label[split] + n_candidates * (split == "utility") for split in asked]),
            "label": np.concatenate(list(label.values())),
            "near": np.zeros(sum(counts), dtype=bool),
            "index": np.concatenate([shown.index for shown in asked.values()]),
        }

    def sizes(self) -> dict[str, Size]:
        """Images and concepts of each split."""
        asked = {"forget": self.test.forget, "retain": self.test.retain}
        asked |= {} if self.utility is None else {"utility": self.utility}
        return {split: Size(len(shown.rows), len(np.unique(shown.label))) for split, shown in asked.items()}


# ---------------------------------------------------------------- pixels


class Preparation(NamedTuple):
    """How a model takes pictures: open_clip's evaluation transform, in its two halves."""

    settings: Mapping[str, Any]
    """Of `open_clip.transform.PreprocessCfg`: size, mean, std, interpolation."""

    def crop(self, image: Image.Image) -> np.ndarray:
        """(H, W, 3) uint8, resized and cropped."""
        return np.asarray(_cropping(json.dumps(self.settings))(image))

    def normalized(self, image_NHW3: np.ndarray) -> torch.Tensor:
        """(N, 3, H, W) float, as the model takes it."""
        import torch

        image = torch.from_numpy(np.array(image_NHW3)).permute(0, 3, 1, 2).float() / 255
        mean, std = (torch.tensor(self.settings[name]).view(3, 1, 1) for name in ("mean", "std"))
        return (image - mean) / std


@cache
def _cropping(settings: str) -> Any:
    """All of open_clip's transform but what makes numbers of pixels."""
    from open_clip.transform import PreprocessCfg, image_transform_v2
    from torchvision.transforms import Compose

    transforms = image_transform_v2(PreprocessCfg(**json.loads(settings)), is_train=False).transforms
    return Compose(transforms[:-2])


@dataclass(frozen=True, eq=False)
class Pictures:
    """Encoded pictures, decoded when their pixels are asked for."""

    sources: Sequence[Source]
    names: Sequence[str]
    """What messages call them."""
    preparation: Preparation
    content: str = ""
    """Digest of the sources; given where pixels are to be decoded once for all, into the cache."""

    def __len__(self) -> int:
        return len(self.sources)

    def batch(self, rows: np.ndarray) -> torch.Tensor:
        """(n, 3, H, W) float, of the pictures at `rows`.

        Raises:
            MissingData: one of them cannot be decoded; all that cannot are named.
        """
        return self.preparation.normalized(self.kept()[rows] if self.content else self._decoded(rows))

    def kept(self) -> np.ndarray:
        """(N, H, W, 3) uint8, of all, which are decoded once for all; of those with a digest alone.

        Raises:
            MissingData: some cannot be decoded; all that cannot are named.
        """
        return _memory_map(cached("pixels", self.key, self._write, suffix=".npy"))

    def _decoded(self, rows: Iterable[int]) -> np.ndarray:
        try:
            return np.stack([self.preparation.crop(opened(self.sources[row])) for row in rows])
        except UNREADABLE as error:
            broken = [name for name, source in zip(self.names, self.sources, strict=True) if unreadable(source)]
            named = f"{len(broken)} of {len(self)} pictures cannot be decoded: {and_more(broken)}"
            raise MissingData(f"{named}; get them again, or take them out of the data set.") from error

    @property
    def key(self) -> dict[str, Any]:
        """All that the pixels depend on."""
        return {"content": self.content, "prepared": dict(self.preparation.settings)}

    def _write(self, path: Path) -> None:
        # not through a memory map: where the disk is full, that ends the process rather than raise anything
        shape = (len(self), *self._decoded([0]).shape[1:])
        with path.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
            for start in range(0, len(self), 256):
                file.write(self._decoded(range(start, min(start + 256, len(self)))).data)


def _memory_map(path: Path) -> np.ndarray:
    # anew for each batch: while a map stays open all of it that was read counts as the process's memory
    return np.load(path, mmap_mode="r")


UNREADABLE = (OSError, SyntaxError, ValueError)
"""What Pillow raises of files that are no pictures, or only the beginning of one."""


def opened(source: Source) -> Image.Image:
    """The decoded picture; raises one of `UNREADABLE`."""
    from PIL import Image

    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
        image.load()
        return image


def unreadable(source: Source) -> str:
    """Why a picture cannot be decoded; empty where it can."""
    try:
        opened(source)
    except UNREADABLE as error:
        return f"{type(error).__name__}: {error}"
    return ""


class PictureSplit:
    """A `Split` that decodes its pictures batch by batch.

    Args:
        pictures: all that there are.
        rows: (N,) which of them are in the split.
        columns: `label`, `index`, `text` and what else a batch holds, each N long.
        members: for each target the positions of its samples, for `of`.

    Raises:
        UsageError: there are no samples.
    """

    def __init__(
        self, pictures: Pictures, rows: np.ndarray, columns: Batch, members: Mapping[str, torch.Tensor] | None = None
    ) -> None:
        if not len(rows):
            raise UsageError("a split needs at least one picture; it got none.")
        self.pictures, self.rows, self.columns, self.members = pictures, rows, columns, dict(members or {})

    def __len__(self) -> int:
        return len(self.rows)

    def batches(self, size: int, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """Batches of `size`, in the stored order or in one drawn from `generator`; the last may be smaller."""
        import torch

        order = torch.arange(len(self)) if generator is None else torch.randperm(len(self), generator=generator)
        for places in order.split(size):
            batch = {name: column[places] for name, column in self.columns.items()}
            yield {"image": self.pictures.batch(self.rows[places.numpy()]), **batch}

    def of(self, target: str) -> PictureSplit:
        """The samples of one target."""
        if target not in self.members:
            raise UsageError(f"target '{target}' is not in this split; it has {', '.join(self.members) or 'no targets'}.")
        places = self.members[target]
        return PictureSplit(
            self.pictures, self.rows[places.numpy()], {name: column[places] for name, column in self.columns.items()}
        )
