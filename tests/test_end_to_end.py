"""`slugbench run` from its command to its page, on every task that reads real data: tiny files of their very formats.

Nothing is taken out or let through: tars are read, gates hold, cells run in their own processes, reports are made. Only what
is published of the size of CIFAR-10 and of ImageNet-1k is another, by a plug-in (`tasks/shrunk.py`).
"""

import json
import os
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise
from typing import NamedTuple

import pandas as pd
import pytest

from .tasks import miniature
from .toys import ROOT

SHRUNK = ROOT / "tests" / "tasks" / "shrunk.py"
METHODS = ("slug:batch=16,steps=4", "ga:steps=4", "original")
ZERO_SHOT = {"fa@1", "ra@1", "bytes_delta"}
CLASSIFIED = {"acc_forget", "acc_retain", "bytes_delta"}
EXPECTED = {
    "celeba": ("Elon_Musk", ZERO_SHOT | {"util@1"}),
    "imagenet": ("basketball", ZERO_SHOT),
    "cifar10": ("class-0", CLASSIFIED),
    "imagenet_class": ("class-0", CLASSIFIED),
}
"""The first request of each task, and metrics that have to have a value."""


def tars(folder):
    """24 pairs to forget and as many to retain; of either one lacks its caption and one is a broken JPEG: 2 of 24."""
    pytest.importorskip("webdataset")
    found = {}
    for name, colours, caption in (("forget", [0] * 24, "Elon Musk at place"), ("retain", range(30, 54), "a thing of kind")):
        pairs = [(miniature.jpeg(colour, 500 + n), f"{caption} {n}") for n, colour in enumerate(colours)]
        pairs[7], pairs[11] = (pairs[7][0], None), (pairs[11][0][:300], pairs[11][1])
        file = "Elon_Musk.tar" if name == "forget" else "00000.tar"
        found[f"{name}_data"] = miniature.tar(folder / name / file, pairs).parent
    return found


def clips(folder, celeba, imagenet):
    """A CLIP that knows the people, as a folder of the hub, and one that knows the objects, as a state dict."""
    from slugbench.tasks.imagenet import listing, names

    miniature.register(folder)
    people = sorted((celeba / "img_align_celeba").iterdir())
    captions = [miniature.PEOPLE[i % len(miniature.PEOPLE)].replace("_", " ") + "." for i in range(len(people))]
    objects = sorted(imagenet.glob("val/*/*.JPEG"))
    phrases = [f"a photo of the large {names()[label]}." for label in listing(str(imagenet)).gallery.label]
    found = []
    for name, files, texts in (("people", people, captions), ("objects", objects, phrases)):
        (folder / name).mkdir()
        found.append(miniature.checkpoints(miniature.train(miniature.model(), files, texts), folder / name))
    return found[0]["open_clip folder"], found[1]["pt"]


class Run(NamedTuple):
    table: pd.DataFrame
    gates: list
    page: str
    said: str


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One run of all tasks, by the commands that users are told."""
    import torch

    folder = tmp_path_factory.mktemp("run")
    celeba, imagenet = miniature.celeba(folder / "celeba"), miniature.imagenet(folder / "ImageNet")
    large = miniature.imagenet_1k(folder / "ImageNet-1k")
    torch.save(miniature.trained_transformer(large).state_dict(), folder / "vit.pth")
    people, objects = clips(folder, celeba, imagenet)
    given = {"data": celeba, "pretrained": people, "imagenet": imagenet, **tars(folder)}
    cifar = f"cifar10:data={miniature.cifar10(folder)},oracles=1"
    tasks = [
        "celeba:" + ",".join(f"{name}={path}" for name, path in given.items()),
        f"imagenet:data={imagenet},model={miniature.ARCHITECTURE},pretrained={objects}",
        cifar,
        f"imagenet_class:data={large},checkpoint={folder / 'vit.pth'},asked=3",
    ]
    suite = f'name = "mini"\ntasks = {json.dumps(tasks)}\nmethods = {json.dumps(METHODS)}\nrequests = 1\n'
    (folder / "mini.toml").write_text(suite)

    def slugbench(*arguments):
        environment = os.environ | {"SLUGBENCH_CACHE": str(folder / "cache"), "MINIATURES": str(folder)}
        command = [sys.executable, "-m", "slugbench.bench", *map(str, arguments), "--plugin", str(SHRUNK)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800, check=False)
        assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    slugbench("artifacts", "rebuild", cifar, "--requests", "class-0", "--out", folder / "rebuilt")
    said = slugbench("run", folder / "mini.toml", "--device", "cpu", "--jobs", 2, "--out", folder / "out")
    gates = json.loads((folder / "out" / "run.json").read_text())["gates"]
    table = pd.read_parquet(folder / "out" / "table.parquet")
    return Run(table, gates, (folder / "out" / "report" / "index.html").read_text(), said)


@pytest.mark.slow
@pytest.mark.parametrize("task", EXPECTED)
def test_a_task_on_real_data_runs_from_the_command_to_the_page(task, finished):
    request, metrics = EXPECTED[task]
    mine = finished.table[finished.table.task == task]
    assert set(mine.method) == {"slug", "ga", "original"} and set(mine.request) == {request}
    assert set(mine.status) == {"ok"}
    value = mine.pivot_table(index="metric", columns="method", values="value")
    assert metrics <= set(value.dropna().index)
    assert value.loc["bytes_delta", "original"] == 0 < value.loc["bytes_delta", ["slug", "ga"]].min()
    assert not mine.note.fillna("").str.contains("the metric raised").any()
    before = [gate for gate in finished.gates if gate["task"] == task and gate["when"] == "before"]
    assert before and all(gate["ok"] for gate in before)
    known, wrong = value.loc["fa@1" if "fa@1" in metrics else "acc_forget"], mine[mine.value.isna() & mine.note.isna()]
    assert known["original"] > 0.3 and wrong.empty  # what has no value says why


@pytest.mark.slow
def test_methods_train_on_tars_and_faulty_pairs_are_told(finished):
    told = {gate["name"].split()[-1].rsplit("/", 1)[-1]: gate for gate in finished.gates if "left out" in gate["name"]}
    assert set(told) == {"Elon_Musk.tar", "00000.tar"}
    for gate in told.values():
        assert gate["value"] == pytest.approx(2 / 24)
        assert "000000007 (no caption)" in gate["note"] and "000000011 (broken picture)" in gate["note"]
    mine = finished.table[(finished.table.task == "celeba") & (finished.table.metric == "n_forget_read")]
    read = mine[mine.method == "ga"].value.item()
    assert read and read % 22 == 0  # a batch of 32 is all that is whole


class Headings(HTMLParser):
    """What the headings of a page say."""

    def __init__(self, page):
        super().__init__()
        self.inside, self.found, self.opened, self.closed = False, [], 0, 0
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.inside = tag in ("h1", "h2", "h3")
        self.opened += tag == "table"

    def handle_endtag(self, tag):
        self.inside = False
        self.closed += tag == "table"

    def handle_data(self, data):
        if self.inside:
            self.found.append(data)


@pytest.mark.slow
def test_the_page_has_a_board_for_each_task(finished):
    read = Headings(finished.page)
    assert read.opened == read.closed > 0 and finished.page.rstrip().endswith("</html>")
    for task in EXPECTED:
        assert (task, "Single requests") in pairwise(read.found)
        assert f"{task}: single requests" in finished.said
