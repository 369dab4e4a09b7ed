from types import SimpleNamespace

import numpy as np

from slugbench.bench.cell import _save_arrays
from slugbench.bench.pictures import SIDE, choose, columns, read, reduced

CLASSES = {"style": ("ink", "neon", "rust", "chalk"), "object": ("ball", "box", "star", "ring", "Big_Cat")}


def trial(target="neon", seeds=3):
    """Every style with every object, a few seeds of each; what was drawn is the number of the row."""
    domain = "style" if target in CLASSES["style"] else "object"
    axes = np.meshgrid(range(4), range(5), range(seeds), indexing="ij")
    q = dict(zip(("style", "object", "seed"), (axis.ravel() for axis in axes), strict=True))
    split = np.where(q[domain] == CLASSES[domain].index(target), "forget", "retain")
    q |= {"split": split, "near": np.zeros(len(split), bool)}
    drawn = [np.full((4, 4, 3), row, np.uint8) for row in range(len(split))]
    return SimpleNamespace(
        questions=q,
        classes=CLASSES,
        request=SimpleNamespace(targets=(target,)),
        pictures=lambda answers, rows: [drawn[row] for row in rows],
    )


def test_targets_their_neighbours_and_what_shares_nothing_are_shown():
    for target, own, other in (("neon", "style", "object"), ("ball", "object", "style")):
        asked = trial(target)
        q, number, found = asked.questions, CLASSES[own].index(target), choose(asked)
        rows = {kind: np.array([row for k, row in found if k == kind]) for kind in ("target", "neighbour", "unrelated")}
        assert len(rows["target"]) == 6 and (q[own][rows["target"]] == number).all()
        assert len(rows["neighbour"]) == 3 and (q[own][rows["neighbour"]] != number).all()
        assert set(q[other][rows["neighbour"]]) == set(q[other][rows["target"]])
        assert len(rows["unrelated"]) and not set(q[other][rows["unrelated"]]) & set(q[other][rows["target"]])
        assert not set(q[own][rows["unrelated"]]) & {number}
        assert len({row for _, row in found}) == len(found)


def test_the_lowest_seeds_are_shown():
    asked = trial()
    rows = [row for kind, row in choose(asked) if kind == "target"]
    assert asked.questions["seed"][rows].tolist() == [0, 1] * 3
    assert all(asked.questions["seed"][row] == 0 for kind, row in choose(asked) if kind != "target")


def test_what_a_cell_keeps_comes_back(tmp_path):
    _save_arrays(trial(), {"rank": np.zeros(60, int)}, tmp_path)
    found = read(tmp_path / "arrays.npz")
    assert found.image.dtype == np.uint8 and found.image[:, 0, 0, 0].tolist() == [row for _, row in choose(trial())]
    assert found.prompt[0] == "neon ball" and "neon Big Cat" in found.prompt and found.kind[0] == "target"
    assert len(found.image) == len(found.kind) == len(found.prompt) == len(found.seed) <= 20


def test_cells_without_pictures_have_none(tmp_path):
    assert columns(SimpleNamespace(pictures=None), {}) == {}
    np.savez_compressed(tmp_path / "cell.npz", x=np.zeros(2))
    assert read(tmp_path / "cell.npz") is None and read(tmp_path / "nothing.npz") is None


def test_large_pictures_are_reduced_and_small_ones_left_alone():
    small = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    assert reduced(small) is small
    grey = np.full((512, 256, 3), 90, np.uint8)
    assert reduced(grey).shape == (SIDE, SIDE // 2, 3) and (reduced(grey) == 90).all()
