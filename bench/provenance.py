"""Where a result comes from: versions, hardware, revision, and digests of the sources that made it."""

from __future__ import annotations

import ast
import datetime
import functools
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .artifacts import digest, file_digest

LIBRARIES = (
    "slugbench",
    "torch",
    "torchvision",
    "open_clip_torch",
    "diffusers",
    "transformers",
    "timm",
    "scikit-learn",
    "numpy",
    "scipy",
    "pandas",
)
RESULT_VERSION = 2
"""Part of every cell's key: raised when the harness changes what a result means."""
KEYED = ("torch", "open_clip_torch", "diffusers")
"""The libraries whose version is part of a cell's key: they compute the result."""


@functools.cache
def version(library: str) -> str | None:
    """The installed version, None if it is not installed."""
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None


def keyed_versions() -> dict[str, str | None]:
    """Versions that belong to every cell's key."""
    return {library: version(library) for library in KEYED}


def provenance(device: str) -> dict[str, Any]:
    """What a reader needs to know about where the rows of one run were made; without times, so that two runs of the
    same command on the same machine agree."""
    return {"command": shlex.join(["slugbench", *map(shared_form, sys.argv[1:])]), **machine(device)}


@functools.cache
def machine(device: str) -> dict[str, Any]:
    """Of the provenance what is this machine's, where the command may have been given on another."""
    import slugbench

    found = {library: version(library) for library in LIBRARIES} | {"slugbench": slugbench.__version__}
    return {
        "versions": {name: value for name, value in found.items() if value},
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "revision": revision(),
        "hardware": hardware(device),
    }


def shared_form(argument: str) -> str:
    """An argument as a table that others read may have it: a path from the working folder, and of one elsewhere its name.

    Where a folder of one's own lies helps nobody to reproduce, and often says who one is.
    """
    path = Path(argument)
    if not path.is_absolute():
        return argument
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else path.name


def hardware(device: str) -> dict[str, Any]:
    """Processor, cores, memory and, on `cuda`, the accelerator."""
    import psutil

    found: dict[str, Any] = {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "device": device,
    }
    if device == "cuda":
        found["accelerators"] = accelerators()
    return found


def processor() -> str:
    """The processor's model name."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def accelerators() -> list[str]:
    """Names of the NVIDIA devices the driver lists; empty without a driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
        names = [pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(i)) for i in range(pynvml.nvmlDeviceGetCount())]
        pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return []
    return names


def revision() -> str | None:
    """The commit of the checkout this runs from, with `+changes` where it differs; None outside one."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=10
        ).stdout

    try:
        return git("rev-parse", "HEAD").strip() + ("+changes" if git("status", "--porcelain", "-uno").strip() else "")
    except (OSError, subprocess.SubprocessError):
        return None


def now() -> str:
    """The present moment in UTC, ISO 8601 with microseconds."""
    return datetime.datetime.now(datetime.UTC).isoformat()


# ---------------------------------------------------------------- digests of sources


def source_digest(cls: type, source: str) -> str:
    """Digest of the file that defines `cls` and of every file it imports within its own top folder or package.

    Our own top folders are `slugbench.methods`, `slugbench.tasks`, ...; a foreign package is its own; a plug-in file
    has the files beside it. The harness itself is not covered: `bench.RESULT_VERSION` stands for it.
    """
    path = Path(source)
    if not path.is_file():
        return digest(f"{cls.__module__}.{cls.__qualname__}")
    parts = cls.__module__.split(".")
    top = parts[:2] if parts[0] == "slugbench" else parts[:1] if len(parts) > 1 else []
    return _tree_digest(path, tuple(top), path.parents[len(parts) - len(top) - 1] if top else path.parent)


def plugin_files(path: Path) -> dict[Path, str]:
    """The files that a plug-in file consists of, itself and those beside it that it imports, with their digests."""
    return _tree(path, (), path.parent)


@functools.cache  # at its first use: a process that runs for days goes on with what it has imported by then
def code_digest() -> str:
    """Digest of all of our own sources that a cell may run."""
    root = Path(__file__).resolve().parent.parent
    files = sorted(file for folder in ("bench", "methods", "tasks", "metrics") for file in (root / folder).rglob("*.py"))
    return digest({str(file.relative_to(root)): file_digest(file) for file in files})


def _tree_digest(path: Path, package: tuple[str, ...], folder: Path) -> str:
    seen = _tree(path, package, folder)
    return digest({str(file.relative_to(folder)): seen[file] for file in sorted(seen)})


def _tree(path: Path, package: tuple[str, ...], folder: Path) -> dict[Path, str]:
    seen: dict[Path, str] = {}
    queue = [path]
    while queue:
        file = queue.pop()
        if file not in seen:
            seen[file] = file_digest(file)
            queue += _imports(file, package, folder)
    return seen


def _imports(file: Path, package: tuple[str, ...], folder: Path) -> Iterator[Path]:
    """The files among `folder` that `file` imports; `folder` is where the package `package` lives."""
    here = (*package, *file.relative_to(folder).with_suffix("").parts)
    for name in _imported_names(ast.parse(file.read_text()), here):
        if name[: len(package)] != package:
            continue
        stem = folder.joinpath(*name[len(package) :])
        for candidate in (stem.with_suffix(".py"), stem / "__init__.py"):
            if candidate.is_file() and stem != folder:
                yield candidate


def _imported_names(tree: ast.Module, here: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = here[: -node.level] if node.level else ()
            module = (*base, *(node.module or "").split(".")) if node.module else base
            yield module
            yield from ((*module, alias.name) for alias in node.names)
