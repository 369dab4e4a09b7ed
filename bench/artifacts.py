"""Shared work (base models, oracles, rendered images, gradients) made once, content-addressed, under a file lock.

Artefacts live in `$SLUGBENCH_CACHE`, by default the platform's cache folder; what ships with the package is read by
the tasks themselves and never written here.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from .errors import DiskTrouble, UsageError

GATHERED = ".files"
"""How the names of folders end that `gathered` keeps."""
DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
"""What the system says when a disk takes no more."""


class Artifact(NamedTuple):
    """A file in the cache, or a folder of them."""

    path: Path
    bytes: int
    used: float
    """Seconds since the epoch of its last use."""


def cache_dir() -> Path:
    """The cache folder, made if missing."""
    import platformdirs

    folder = Path(os.environ.get("SLUGBENCH_CACHE") or platformdirs.user_cache_dir("slugbench"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DiskTrouble(
            f"the cache folder {folder} cannot be made ({error}); set SLUGBENCH_CACHE to one that can."
        ) from error
    return folder


def digest(content: Mapping[str, Any] | bytes | str) -> str:
    """Hexadecimal SHA-256 of bytes, text, or a JSON-able mapping (key order does not matter)."""
    if isinstance(content, Mapping):
        content = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def file_digest(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cached(name: str, key: Mapping[str, Any], make: Callable[[Path], None], *, suffix: str) -> Path:
    """The artefact `name` of `key`, made by `make(temporary_path)` if it is not there yet.

    Args:
        name: what it is, such as `identities-images`; leads the file's name.
        key: everything its content depends on, JSON-able: parameters, seeds, digests of inputs, a version.
        make: writes the file at the path it is given; only one process at a time runs it for one artefact.
        suffix: the file's ending, such as `.safetensors`.

    Returns:
        The path of the finished file; it is whole or not there, whenever the machine stops.

    Raises:
        DiskTrouble: it cannot be written.
    """
    from filelock import FileLock

    path = artifact_path(name, key, suffix=suffix)
    with _writing():
        if not path.exists():
            with FileLock(f"{path}.lock"):
                if not path.exists():
                    _make(path, make)
        os.utime(path)  # marks the use, for gc
    return path


def _make(path: Path, make: Callable[[Path], None]) -> None:
    """Write a file under another name, and give it its own when it is whole; whoever does holds its lock."""
    for left in path.parent.glob(f"{path.stem}.*.tmp{path.suffix}"):  # by one that was killed
        left.unlink()
    unfinished = path.with_name(f"{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        make(unfinished)
        write_through(unfinished)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def gathered(name: str, key: Mapping[str, Any]) -> Iterator[Path]:
    """The folder of the artefact `name` of `key`, for what takes hours and is worth keeping file by file.

    One process at a time is in it. It stays as it is left, so each file has to come whole, by renaming, and under a name
    that says what it is: whoever comes next makes those that are missing.

    Args:
        name: what it is, as of `cached`.
        key: everything that the content of a file depends on besides the file's name.

    Raises:
        DiskTrouble: it cannot be written to.
    """
    from filelock import FileLock

    folder = artifact_path(name, key, suffix=GATHERED)
    with _writing(), FileLock(f"{folder}.lock"):
        folder.mkdir(exist_ok=True)
        yield folder
        os.utime(folder)


@contextmanager
def _writing() -> Iterator[None]:
    """Trouble with the cache's disk is told apart from faults of whoever makes an artefact.

    Raises:
        DiskTrouble: in a sentence that says where, and what to do.
    """
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        if not _of_the_disk(error):
            raise
        raise DiskTrouble(
            f"cannot write to the cache in {cache_dir()} ({error}); make room there, or set SLUGBENCH_CACHE to a folder "
            "that has it, and run the same command again: what is finished is kept."
        ) from error


def _of_the_disk(error: Exception) -> bool:
    """Whether a file in the cache could not be written: by what the system says, or by the file it says it of."""
    if isinstance(error, OSError) and error.errno is not None:
        named = isinstance(error.filename, (str, bytes, os.PathLike))
        return error.errno in DISK or (named and Path(os.fsdecode(error.filename)).is_relative_to(cache_dir()))
    if said := re.search(r"\(os error (\d+)\)", str(error)):  # safetensors has an exception of its own, by Rust
        return int(said[1]) in DISK
    return re.fullmatch(r"\d+ requested and \d+ written", str(error)) is not None  # numpy, that drops the number


def artifact_path(name: str, key: Mapping[str, Any], *, suffix: str) -> Path:
    """Where `cached` keeps the artefact of that name and key, made or not."""
    return cache_dir() / f"{name}-{digest(key)[:20]}{suffix}"


def write_through(path: Path) -> None:
    """Have the operating system put a file's content on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def artifacts() -> list[Artifact]:
    """What the cache holds, last used first."""
    found = []
    for path in cache_dir().iterdir():
        if path.is_dir() and path.name.endswith(GATHERED):
            found.append(Artifact(path, _bytes_in(path), path.stat().st_mtime))
        elif path.is_file() and not path.name.endswith(".lock") and ".tmp" not in path.name:
            found.append(Artifact(path, path.stat().st_size, path.stat().st_mtime))
    return sorted(found, key=lambda artifact: -artifact.used)


def _bytes_in(folder: Path) -> int:
    size = 0
    for file in folder.iterdir():
        with suppress(FileNotFoundError):  # one that is being renamed
            size += file.stat().st_size
    return size


def collect_garbage(keep_bytes: int) -> list[Artifact]:
    """Remove the least recently used artefacts until at most `keep_bytes` are left; returns those removed."""
    removed, kept = [], 0
    for artifact in artifacts():
        kept += artifact.bytes
        if kept > keep_bytes:
            if artifact.path.is_dir():
                shutil.rmtree(artifact.path)
            else:
                artifact.path.unlink(missing_ok=True)
            removed.append(artifact)
    return removed
