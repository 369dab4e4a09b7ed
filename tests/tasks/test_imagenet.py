"""The task `imagenet`, on twelve classes in the layout of torchvision's `ImageFolder`."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from slugbench.bench import UsageError
from slugbench.tasks import imagenet
from slugbench.tasks.imagenet import ImageNet

from ..toys import run_python
from . import laws, miniature


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLUGBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return miniature.imagenet(tmp_path_factory.mktemp("imagenet") / "ImageNet")


@pytest.fixture(scope="module")
def weights(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP that knows the twelve classes."""
    folder = tmp_path_factory.mktemp("weights")
    miniature.register(folder)
    files = sorted(data.glob("val/*/*.JPEG"))
    names = [imagenet.names()[label] for label in imagenet.listing(str(data)).gallery.label]
    trained = miniature.train(miniature.model(), files, [f"a photo of the large {name}." for name in names])
    return miniature.checkpoints(trained, folder)["pt"]


@pytest.fixture
def task(data: Path, weights: Path) -> ImageNet:
    return ImageNet(str(data), miniature.ARCHITECTURE, str(weights))


def test_names_belong_to_the_classes_that_imagenet_gives_them():
    """By hand, from ImageNet's list: 0 tench, 430 basketball, 483 castle, 763 revolver, 779 school bus, 978 seashore."""
    known = {"n01440764": (0, "tench"), "n02802426": (430, "basketball"), "n02980441": (483, "castle")}
    known |= {"n04086273": (763, "revolver"), "n04146614": (779, "school bus"), "n09428293": (978, "beach")}
    for wnid, (place, name) in known.items():
        assert imagenet.wnids().index(wnid) == place
        assert imagenet.names()[imagenet.label_of_class()[place]] == name
    assert len(imagenet.wnids()) == 1000 and len(imagenet.names()) == 998
    assert set(imagenet.PAPER) <= set(imagenet.names())


def test_pictures_come_in_the_order_of_image_folder(data):
    from torchvision.datasets import ImageFolder

    expected = ImageFolder(str(data / "val"))
    found = imagenet.listing(str(data)).gallery
    assert [str(file) for file in found.files] == [path for path, _ in expected.samples]
    wnids = [expected.classes[label] for label in expected.targets]
    classes = imagenet.label_of_class()[[imagenet.wnids().index(wnid) for wnid in wnids]]
    assert np.array_equal(found.label, classes)


def test_the_twentieth_is_the_one_published():
    """The legacy generator draws without replacement by the head of a permutation: 2,500 of 50,000 by seed 0."""
    expected = np.random.RandomState(0).permutation(50_000)[:2_500]
    assert np.array_equal(imagenet.five_percent(50_000), np.sort(expected))


def test_the_papers_objects_are_tested_and_both_classes_of_sunglasses_are_one(task):
    listed = task.requests()
    assert [r.id for r in listed if r.pool == "test"] == ["basketball", "school_bus", "sunglasses"]
    assert [r.pool for r in listed].count("tune") == imagenet.TUNE
    sizes = [task.sizes(request)["forget"] for request in ("basketball", "sunglasses")]
    assert sizes == [(2, 1), (4, 1)]  # a third of six pictures, and of twelve
    assert len(ImageNet("nowhere").requests()) == len(imagenet.PAPER) + imagenet.DEV + imagenet.TUNE


def test_what_is_neither_trained_on_nor_searched_with_is_asked_about_as_far_as_one_likes(monkeypatch):
    """Fifty pictures of each of four classes: two to search with, 8,000 over 998 classes to train on, the rest is 39."""
    label, turn = np.repeat(np.arange(4), 50), np.tile(np.arange(50), 4)
    gallery = imagenet.Gallery(Path("nowhere"), [f"{i}.JPEG" for i in range(200)], label, np.arange(200))
    monkeypatch.setattr(imagenet, "listing", lambda data: imagenet.Listing(gallery, turn, 4))
    for asked, counts in ((None, (39, 2, 9)), (5, (5, 2, 9)), (100, (39, 2, 9))):
        dealt = imagenet._dealt("fifty", 2, asked)
        kept = [pair.retain for pair in (dealt.test, dealt.validation, dealt.train)]
        assert [Counter(part.label.tolist()) for part in kept] == [dict.fromkeys((0, 1, 3), count) for count in counts]
        parts = [part.index for pair in (dealt.test, dealt.validation, dealt.train) for part in pair]
        assert len(np.unique(np.concatenate(parts))) == sum(map(len, parts)) == 3 * sum(counts) + 50


def test_all_that_is_asked_about_is_kept_as_one(task):
    dealt = task._dealt("basketball")
    one = imagenet.utility(task.data, "all").gallery
    assert all(shown.gallery is one for pair in (dealt.test, dealt.validation) for shown in pair)
    few = replace(task, asked=1)._dealt("basketball")
    assert len(few.test.retain.gallery.names) == len(few.test.retain.rows) + 1 == 11  # of both sunglasses one


@pytest.mark.parametrize("templates", ["single", "simple", "openai"])
def test_answers_are_those_of_open_clips_own_classifier(templates, task, weights):
    import open_clip
    import torch
    from PIL import Image

    trial = replace(task, templates=templates).build("basketball", 0)
    clip, _, transform = open_clip.create_model_and_transforms(miniature.ARCHITECTURE, pretrained=str(weights))
    made = {"simple": open_clip.SIMPLE_IMAGENET_TEMPLATES, "openai": open_clip.OPENAI_IMAGENET_TEMPLATES}
    made["single"] = (lambda name: f"a photo of a {name}.",)
    some = sorted({*trial.questions["label"].tolist(), *range(0, 998, 100)})  # of all it would take a minute
    tokenize = open_clip.get_tokenizer(miniature.ARCHITECTURE)
    files = imagenet.listing(task.data).gallery.files
    with torch.no_grad():
        names = [imagenet.names()[label] for label in some]
        classifier = open_clip.build_zero_shot_classifier(clip.eval(), tokenize, names, made[templates])
        image = [transform(Image.open(files[index])) for index in trial.questions["index"]]
        cosines = clip.encode_image(torch.stack(image), normalize=True) @ classifier
    own = torch.tensor([some.index(label) for label in trial.questions["label"]])
    np.testing.assert_allclose(trial.original["cosine"], cosines.gather(1, own[:, None])[:, 0], atol=1e-5)


def test_the_tiny_model_knows_the_objects_and_the_gate_says_so(task):
    gates = task.gates(["basketball", "sunglasses"], [0])
    assert all(gate.ok for gate in gates) and gates[1].value > 0.4
    assert "GELU" in gates[0].note


def flat(data: Path) -> None:
    for file in data.glob("val/*/*.JPEG"):
        file.rename(data / "val" / file.name)
    for folder in list((data / "val").iterdir()):
        if folder.is_dir():
            folder.rmdir()


def deeper(data: Path) -> None:
    (data / "val").rename(data / "inner")
    (data / "val").mkdir()
    (data / "inner").rename(data / "val" / "val")


def one_deeper(data: Path) -> None:
    folder = data / "val" / miniature.WNIDS[0]
    folder.rename(data / "inner")
    folder.mkdir()
    (data / "inner").rename(folder / "images")


@pytest.mark.parametrize(
    ("spoil", "inside", "sentence"),
    [
        (lambda data: None, "val", "is a folder too deep: it holds the classes themselves"),
        (flat, "", r"holds pictures and no folders of classes; sort them into val/<wnid>/"),
        (deeper, "", "holds another val: the classes lie a folder too deep"),
        (one_deeper, "", "classes without pictures: n02802426; the pictures lie a folder too deep"),
        (lambda data: (data / "val" / "n99999999").mkdir(), "", "no class of ImageNet's 1,000: n99999999"),
        (shutil.rmtree, "", r"holds no val/<wnid>/\*.JPEG"),
    ],
    ids=["val itself", "not sorted", "a second val", "a folder in a class", "another class", "nothing"],
)
def test_wrong_data_are_named(spoil, inside, sentence, data, task, tmp_path):
    copied = shutil.copytree(data, tmp_path / "copy")
    spoil(copied)
    with pytest.raises(UsageError, match=sentence):
        replace(task, data=str(copied / inside)).fingerprint("basketball", 0)


def test_doctor_counts_pictures_and_does_not_find_empty_folders(data, tmp_path):
    n = len(miniature.WNIDS)
    assert imagenet.wanted(str(data)).found
    assert imagenet.wanted(str(data)).note.startswith(f"{n * miniature.A_CLASS} pictures of {n} of 1,000 classes; ")
    for wnid in miniature.WNIDS:
        (tmp_path / "val" / wnid).mkdir(parents=True)
    empty = imagenet.wanted(str(tmp_path))
    assert not empty.found and "holds classes without pictures: n01440764" in empty.note


def test_nothing_but_building_needs_torch(task):
    code = f"""
import sys
from slugbench.tasks.imagenet import ImageNet
task = ImageNet({task.data!r}, {task.model!r}, {task.pretrained!r})
print(task.fingerprint("basketball", 0), len(task.wanted()), task.sizes("basketball")["retain"].units)
print("torch" in sys.modules)
"""
    assert run_python(code).split() == [task.fingerprint("basketball", 0), "2", "10", "False"]


@pytest.mark.parametrize("law", laws.OF_CLASSES, ids=lambda law: law.__name__)
def test_what_is_promised_of_every_task_holds(law, task, monkeypatch):
    laws.holds(law, task, "concepts", monkeypatch, "sunglasses")


def test_metrics_of_an_object_are_values_or_say_why_not(task):
    from slugbench.bench import Outcome
    from slugbench.metrics.accuracy import ZeroShot

    trial = task.build("basketball", 0)
    values = {v.name: v for v in ZeroShot()(Outcome(trial, trial.original, (), trial.request.model))}
    right = trial.original["rank"] == 0
    assert values["fa@1"].value == pytest.approx(right[trial.questions["split"] == "forget"].mean())
    assert values["util@1"].value is None and values["util@1"].note
    json.dumps([value.note for value in values.values()])
