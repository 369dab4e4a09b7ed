"""Fixtures of all tests. torch is not imported here: a test that needs it pays for it.

`$SLUGBENCH_CACHE` is left alone, so that what a task made once (images, oracles) is not made anew in every session; it
is content-addressed, and a test about the cache itself asks for the fixture `cache`.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read by torch when it is imported, by children as well

import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from slugbench.bench.registry import FOLDERS, Registry
from slugbench.bench.types import Trial

from .canvas_files import canvas_classifiers, canvas_images, small_canvas
from .canvas_release import canvas_release
from .toys import restored_registry, toy_trial

__all__ = ["canvas_classifiers", "canvas_images", "canvas_release", "small_canvas"]

hypothesis.settings.register_profile("house", deadline=None, derandomize=True)  # a busy machine is no fault of the code
hypothesis.settings.load_profile("house")


@pytest.fixture(autouse=True, scope="session")
def no_flat_names() -> Iterator[None]:
    """Fail the session if any test imported a folder of ours as `bench` rather than `slugbench.bench`."""
    yield
    flat = {"bench", *FOLDERS.values()} & set(sys.modules)
    assert not flat, f"imported by flat name: {', '.join(sorted(flat))}; import slugbench.<folder>"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty `$SLUGBENCH_CACHE` of the test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("SLUGBENCH_CACHE", str(folder))
    return folder


@pytest.fixture
def registry() -> Iterator[Registry]:
    """The process's registry, put back after the test."""
    with restored_registry() as found:
        yield found


@pytest.fixture
def trial() -> Trial:
    """A fresh trial of the toy task that forgets one of eight blobs."""
    return toy_trial()
