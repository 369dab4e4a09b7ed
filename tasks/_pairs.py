"""Pictures with captions in WebDataset tars, as LAION is handed out: read, checked, and decoded batch by batch.

Pictures are cropped as to be evaluated; the code of Cai et al., 2025, crops those to retain at random.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from slugbench.bench import Gate, MissingDependency, UsageError, cached

from ._gates import at_most
from ._image_folders import ENDINGS, Pictures, PictureSplit, Preparation, and_more, content_digest, unreadable

if TYPE_CHECKING:
    import torch

MOST_SKIPPED = 0.1
"""Share of samples that may lack a half or be broken. Of LAION's shards next to none are: what could not be downloaded is
not in them."""


class Checked(NamedTuple):
    """What is in tars."""

    n: int
    """Samples."""
    faults: dict[str, str]
    """What is wrong with those left out, by key."""


@dataclass(frozen=True)
class Tars:
    """One or more tars of samples: files of one stem, one a picture and one, `.txt`, its caption."""

    files: tuple[Path, ...]

    def content(self) -> str:
        """Digest of all tars."""
        return content_digest(self.files)

    def pairs(self) -> tuple[list[bytes], list[str]]:
        """Encoded pictures and their captions, without the samples that `checked` names.

        Raises:
            UsageError: a tar cannot be read, or no sample is whole.
        """
        faults = self.checked().faults
        whole = [(picture, text) for key, picture, text in self._samples() if key not in faults]
        if not whole:
            raise UsageError(f"{self} holds no whole sample; of {len(faults)} each lacks a picture or a .txt, or is broken.")
        return [picture or b"" for picture, _ in whole], [text or "" for _, text in whole]

    def checked(self) -> Checked:
        """Which samples are left out, as in the authors' code, and why; found once, and kept in the cache."""

        def make(path: Path) -> None:
            found = {key: _fault(picture, text) for key, picture, text in self._samples()}
            path.write_text(json.dumps([len(found), {key: why for key, why in found.items() if why}]))

        path = cached("webdataset-checked", {"content": self.content()}, make, suffix=".json")
        return Checked(*json.loads(path.read_text()))

    def gate(self) -> Gate:
        """The share of samples left out."""
        n, faults = self.checked()
        note = and_more([f"{key} ({why})" for key, why in faults.items()])
        return at_most(f"samples left out of {self}", len(faults) / max(n, 1), MOST_SKIPPED)._replace(note=note)

    def _samples(self) -> Iterator[tuple[str, bytes | None, str | None]]:
        """Key, encoded picture and caption of every sample."""
        for file in self.files:
            for sample in _read(file):
                picture = next((sample[ending[1:]] for ending in ENDINGS if ending[1:] in sample), None)
                text = sample["txt"].decode("utf-8", "replace").strip() if "txt" in sample else None
                yield f"{file.name}/{sample['__key__']}", picture, text

    def __str__(self) -> str:
        return and_more([str(file) for file in self.files])


def _fault(picture: bytes | None, text: str | None) -> str:
    """What is wrong with a sample; empty where nothing is."""
    if picture is None:
        return "no picture"
    return "no caption" if not text else "broken picture" if unreadable(picture) else ""


def _read(file: Path) -> Iterator[dict[str, Any]]:
    try:
        from webdataset.tariterators import group_by_keys, tar_file_expander
    except ModuleNotFoundError as error:
        raise MissingDependency("tars need the package webdataset: pip install 'slugbench[webdataset]'.") from error
    try:
        with file.open("rb") as stream:  # `WebDataset` itself leaves its files open
            yield from group_by_keys(tar_file_expander([{"url": str(file), "stream": stream}]))
    except Exception as error:  # of tarfile and of webdataset, which has its own for what is no tar
        raise UsageError(f"{file} cannot be read as a WebDataset tar ({type(error).__name__}: {error}).") from error


def tars_in(where: str) -> Tars:
    """A tar, or all that are in a folder."""
    path = Path(where)
    files = tuple(sorted(path.glob("*.tar"))) if path.is_dir() else (path,)
    if not files or not files[0].is_file():
        raise UsageError(f"{where} is no .tar and no folder that holds any; give WebDataset tars, as LAION's 00000.tar.")
    return Tars(files)


def tar_of(folder: str, name: str) -> Path:
    """Where a concept's tar is, or should be: the authors' script writes `Elon_Musk.tar` or `Elon Musk.tar`."""
    underscored = Path(folder) / f"{name.replace(' ', '_')}.tar"
    spaced = Path(folder) / f"{name}.tar"
    return spaced if spaced.is_file() and not underscored.is_file() else underscored


def paired(
    tars: Tars,
    preparation: Preparation,
    tokenize: Callable[[Sequence[str]], torch.Tensor],
    *,
    label: int,
    target: str | None = None,
) -> PictureSplit:
    """A `Split` of the pairs.

    Args:
        tars: where they are.
        preparation: of the pictures.
        tokenize: of the captions.
        label: of all pairs, where they are of one `target`; else the first of as many as there are, one a pair.
        target: what they are of.
    """
    import torch

    encoded, captions = _pairs(tars, tars.content())
    index = torch.arange(len(encoded))
    columns = {
        "text": tokenize(captions),
        "label": torch.full_like(index, label) if target is not None else index + label,
        "index": index,
    }
    pictures = Pictures(encoded, [f"{tars}, picture {number}" for number in index.tolist()], preparation)
    return PictureSplit(pictures, np.arange(len(encoded)), columns, {} if target is None else {target: index})


@cache
def _pairs(tars: Tars, content: str) -> tuple[list[bytes], list[str]]:
    return tars.pairs()
