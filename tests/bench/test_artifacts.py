"""Shared work is made once, and is whole or not there."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slugbench.bench import UsageError, cached, digest, file_digest
from slugbench.bench.artifacts import artifact_path, artifacts, cache_dir, collect_garbage, gathered
from slugbench.bench.errors import DiskTrouble

from ..toys import files_no_longer_than, run_python

MAKE = """
import os, sys, time
from pathlib import Path
from slugbench.bench import cached

def make(path):
    with open(sys.argv[1], "a") as log:
        log.write(f"{os.getpid()}\\n")
    time.sleep(0.3)
    path.write_bytes(b"whole")

print(cached("thing", {"seed": 1}, make, suffix=".bin").read_bytes().decode())
"""


def write(text: str):
    return lambda path: path.write_text(text)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def test_four_processes_that_want_the_same_thing_make_it_once(cache, tmp_path):
    log = tmp_path / "made"
    started = [
        subprocess.Popen([sys.executable, "-c", MAKE, str(log)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    for process in started:
        out, err = process.communicate(timeout=60)
        assert (out, process.returncode) == ("whole\n", 0), err
    assert len(log.read_text().split()) == 1
    assert len(names(cache)) == 1


def test_threads_that_want_the_same_thing_make_it_once(cache):
    made = []

    def make(path):
        made.append(path)
        time.sleep(0.05)
        path.write_text("whole")

    threads = [threading.Thread(target=cached, args=("thing", {}, make), kwargs={"suffix": ".txt"}) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1


def test_a_make_that_fails_leaves_nothing_and_can_be_tried_again(cache):
    def fail(path):
        path.write_text("half")
        raise ArithmeticError("on purpose")

    with pytest.raises(ArithmeticError):
        cached("thing", {}, fail, suffix=".txt")
    assert names(cache) == []
    assert cached("thing", {}, write("whole"), suffix=".txt").read_text() == "whole"


def numpys(path: Path) -> None:
    import numpy as np

    np.save(path, np.zeros(1000))


def safetensors(path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"zeros": torch.zeros(1000)}, path)


@pytest.mark.parametrize("make", [numpys, safetensors, write("x" * 4000)], ids=["numpy", "safetensors", "text"])
def test_a_full_disk_is_no_fault_of_who_makes_a_thing_and_leaves_nothing(cache, make):
    with (
        files_no_longer_than(1000),
        pytest.raises(DiskTrouble, match=r"cannot write to the cache in .*\(.*(File too large|109 written)"),
    ):
        cached("thing", {}, make, suffix=".npy")
    assert names(cache) == []
    assert cached("thing", {}, make, suffix=".npy").stat().st_size >= 4000


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(28, "No space left on device"), DiskTrouble),
        (FileNotFoundError(2, "No such file or directory", "/data/of/the/user.jpg"), FileNotFoundError),
        (ConnectionError("no network"), ConnectionError),
        (UsageError("weights are damaged (os error 28)."), UsageError),
    ],
    ids=["no room", "a file elsewhere", "no network", "a task's sentence"],
)
def test_only_trouble_with_the_disk_is_told_as_such(cache, error, kind):
    def make(path):
        raise error

    for keep in (lambda: cached("thing", {}, make, suffix=".txt"), lambda: gathered_in("things", make)):
        with pytest.raises(kind) as raised:
            keep()
        assert type(raised.value) is kind


def gathered_in(name, make):
    with gathered(name, {}) as folder:
        make(folder / "file")


def test_a_cache_without_permission_is_told_where_it_is(cache, monkeypatch):
    def refuse(self, *_, **__):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "replace", refuse)  # root, as whom tests may run, would be allowed to
    with pytest.raises(DiskTrouble, match=r"Permission denied: .*; make room there, or set SLUGBENCH_CACHE"):
        cached("thing", {}, write("whole"), suffix=".txt")


def test_a_make_killed_halfway_leaves_nothing_that_is_taken_for_whole(cache):
    killed = MAKE.replace('path.write_bytes(b"whole")', 'path.write_bytes(b"ha"); os.kill(os.getpid(), 9)')
    done = subprocess.run([sys.executable, "-c", killed, str(cache.parent / "made")], capture_output=True, timeout=60)
    assert done.returncode == -9
    assert artifacts() == []
    path = cached("thing", {"seed": 1}, write("whole"), suffix=".bin")
    assert (path.read_text(), names(cache)) == ("whole", [path.name])  # what the killed one left is swept up as well


def test_a_make_that_is_not_done_is_seen_by_nobody(cache):
    seen = []

    def make(path):
        path.write_text("half")
        seen.extend(artifacts())
        assert path.suffix == ".npz"  # writers such as numpy's append an ending that is not theirs

    cached("thing", {}, make, suffix=".npz")
    assert seen == []


def test_other_keys_make_other_files_and_the_order_of_keys_does_not_matter(cache):
    one = cached("thing", {"seed": 1, "size": 2}, write("one"), suffix=".txt")
    assert cached("thing", {"size": 2, "seed": 1}, write("again"), suffix=".txt").read_text() == "one"
    for name, key, suffix in (("thing", {"seed": 2, "size": 2}, ".txt"), ("other", {"seed": 1, "size": 2}, ".txt")):
        assert cached(name, key, write("two"), suffix=suffix) != one


def test_garbage_collection_keeps_what_was_used_last(cache):
    for age, name in enumerate(["new", "middle", "old"]):
        os.utime(cached(name, {}, write("x" * 100), suffix=".txt"), (time.time() - 100 * age,) * 2)
    cached("old", {}, write("not made again"), suffix=".txt")  # used now: first in line to stay
    removed = collect_garbage(keep_bytes=250)
    assert [a.path.name.split("-")[0] for a in removed] == ["middle"]
    assert [a.path.name.split("-")[0] for a in artifacts()] == ["old", "new"]
    assert sum(a.bytes for a in artifacts()) == 200


def test_garbage_collection_with_room_for_all_removes_nothing(cache):
    path = cached("thing", {}, write("x" * 100), suffix=".txt")
    assert collect_garbage(keep_bytes=100) == [] and path.exists()
    assert [a.path for a in collect_garbage(keep_bytes=99)] == [path] and not path.exists()


def test_the_cache_is_where_the_variable_says(cache):
    assert cache_dir() == cache and cache.is_dir()


def test_a_cache_that_cannot_be_made_is_refused_in_a_sentence(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("SLUGBENCH_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UsageError, match=r"cannot be made .*; set SLUGBENCH_CACHE to one that can"):
        cache_dir()


JSON = st.dictionaries(st.text(max_size=4), st.integers() | st.text(max_size=4) | st.booleans() | st.none(), max_size=4)


@given(JSON, JSON)
def test_digests_agree_exactly_when_contents_do(one, other):
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (digest(one) == digest(other)) == same


def test_a_digest_is_the_sha256_of_the_bytes(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    assert digest("abc") == digest(b"abc") == file_digest(tmp_path / "abc") == known


def test_a_digest_is_the_same_in_every_process():
    code = "from slugbench.bench import digest; print(digest({'b': 1, 'a': ['x', None]}))"
    assert {run_python(code, PYTHONHASHSEED=seed).strip() for seed in "01"} == {digest({"a": ["x", None], "b": 1})}


# ---------------------------------------------------------------- folders


def test_a_folder_keeps_what_a_stopped_process_left_and_is_one_artefact(cache):
    with pytest.raises(KeyboardInterrupt), gathered("drawings", {"model": 1}) as folder:
        (folder / "1.jpg").write_bytes(b"12345")
        raise KeyboardInterrupt
    with gathered("drawings", {"model": 1}) as again, gathered("drawings", {"model": 2}) as other:
        assert again == folder and [path.name for path in again.iterdir()] == ["1.jpg"] and other != folder
    assert sorted((artifact.path, artifact.bytes) for artifact in artifacts()) == sorted([(folder, 5), (other, 0)])


def test_folders_used_longest_ago_are_collected_whole_and_foreign_ones_never(cache):
    (cache / "somebody's").mkdir(parents=True)
    for number, model in enumerate("ab"):
        with gathered("drawings", {"model": model}) as folder:
            (folder / "1.jpg").write_bytes(b"12345")
        os.utime(folder, (number, number))
    assert [artifact.path for artifact in collect_garbage(5)] == [artifact_path("drawings", {"model": "a"}, suffix=".files")]
    assert folder.is_dir() and (cache / "somebody's").is_dir()


def test_two_threads_are_never_in_one_folder(cache):
    inside, most = [], []

    def work():
        with gathered("drawings", {}):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.05)
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 4
