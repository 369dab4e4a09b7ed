"""The task `celeba`, on a CelebA, tars and models that are tiny but of the real ones' format."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slugbench.bench import MissingData, MissingDependency, NotFetched, Outcome, TwoTowers, UsageError
from slugbench.bench.cli import main
from slugbench.bench.errors import DiskTrouble
from slugbench.methods.slug import Slug
from slugbench.metrics.accuracy import ZeroShot
from slugbench.tasks import _open_clip, celeba, imagenet
from slugbench.tasks._image_folders import turns
from slugbench.tasks.celeba import CelebA

from ..toys import files_no_longer_than, run_python
from . import laws, miniature


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLUGBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return miniature.celeba(tmp_path_factory.mktemp("celeba") / "celeba")


@pytest.fixture(scope="module")
def saved(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny CLIP that knows everyone, by the way it is saved."""
    folder = tmp_path_factory.mktemp("weights")
    miniature.register(folder)
    files = sorted((data / "img_align_celeba").iterdir())
    captions = [miniature.PEOPLE[i % len(miniature.PEOPLE)].replace("_", " ") + "." for i in range(len(files))]
    trained = miniature.train(miniature.model(), files, captions)
    return miniature.checkpoints(trained, folder)


@pytest.fixture
def task(data: Path, saved: dict[str, Path]) -> CelebA:
    return CelebA(str(data), miniature.ARCHITECTURE, str(saved["pt"]))


@pytest.fixture
def broken(data: Path, tmp_path: Path) -> Path:
    """A copy of the data, to be spoilt."""
    return shutil.copytree(data, tmp_path / "copy")


def pictures_of(data: Path, name: str) -> list[Path]:
    rows = [line.split() for line in (data / "list_identity_celeba.txt").read_text().splitlines()[2:]]
    return [data / "img_align_celeba" / file for file, who in rows if who == name]


def ranks_by_open_clip(weights: Path, files: list[Path], true: list[str], names: list[str], **loading: Any) -> np.ndarray:
    """How many names beat the true one, by open_clip's own loading, transform and classifier."""
    import open_clip
    import torch
    from PIL import Image

    clip, _, transform = open_clip.create_model_and_transforms(miniature.ARCHITECTURE, pretrained=str(weights), **loading)
    templates = (lambda name: f"{name}.",)
    tokenize = open_clip.get_tokenizer(miniature.ARCHITECTURE)
    with torch.no_grad():
        classifier = open_clip.build_zero_shot_classifier(clip.eval(), tokenize, names, templates)
        image = clip.encode_image(torch.stack([transform(Image.open(file)) for file in files]), normalize=True)
        logits = 100 * image @ classifier
    own = logits.gather(1, torch.tensor([names.index(name) for name in true])[:, None])
    return (logits > own).sum(1).numpy()


# ---------------------------------------------------------------- requests and parts


def test_the_papers_people_are_tested_in_its_order_and_others_tuned_on(task):
    listed = task.requests()
    assert [r.targets[0] for r in listed if r.pool == "test"] == ["Elon Musk", "Jeff Bezos", "Taylor Swift"]
    others = Counter(r.pool for r in listed if r.targets[0] not in celeba.PAPER)
    assert others == {"dev": 2, "tune": 6} and len({r.targets for r in listed}) == len(listed)


def test_everyones_pictures_are_dealt_into_three_parts_of_equal_size(task, data):
    trial = task.build("Elon_Musk", 0)
    splits = (trial.request.forget, trial.request.retain, *trial.request.validation)
    index = [set(np.concatenate([rows["index"] for rows in split.batches(64)]).tolist()) for split in splits]
    asked = trial.questions
    index += [set(asked["index"][asked["split"] == split].tolist()) for split in ("forget", "retain")]
    assert sum(map(len, index)) == len(set.union(*index))
    assert [len(part) for part in (index[0], index[2], index[4])] == [3, 3, 3]
    mine = {int(file.stem) - 1 for file in pictures_of(data, "Elon_Musk")}
    assert index[0] | index[2] | index[4] == mine
    assert len(index[5]) == 3 * (len(miniature.FREQUENT) - 1)  # the frequent names without the target


def test_parts_do_not_depend_on_the_order_of_the_list():
    names, label = [f"{i:06d}.jpg" for i in range(40)], np.arange(40) % 4
    turn, other = turns(names, label), np.random.default_rng(0).permutation(40)
    assert np.array_equal(turns([names[i] for i in other], label[other]), turn[other])
    assert all(sorted(turn[label == person]) == list(range(10)) for person in range(4))


def test_as_published_all_pictures_are_searched_and_reported_and_the_target_is_among_the_names(task, data, saved):
    trial = replace(task, protocol="published").build("Elon_Musk", 0)
    asked, names = trial.questions, sorted(name.replace("_", " ") for name in miniature.PEOPLE)
    assert (asked["split"] == "forget").sum() == miniature.A_PERSON == len(trial.request.validation.forget)
    files = [file for name in miniature.FREQUENT for file in pictures_of(data, name)]
    files.sort()
    true = [miniature.PEOPLE[(int(file.stem) - 1) % len(miniature.PEOPLE)].replace("_", " ") for file in files]
    expected = ranks_by_open_clip(saved["pt"], files, true, names)
    others = np.array([name != "Elon Musk" for name in true])
    assert np.array_equal(trial.original["rank"][asked["split"] == "retain"], expected[others]) and not others.all()
    assert trial.request.validate(trial.request.model).retain == pytest.approx((expected == 0).mean())


def accuracies(trial: Any, right: Any) -> dict[str, float | None]:
    """Of a model that is right about those questions."""
    answers = {**trial.original, "rank": np.where(right, 0, 9)}
    return {value.name: value.value for value in ZeroShot()(Outcome(trial, answers, ()))}


@pytest.mark.parametrize("protocol", ["default", "published"])
def test_accuracy_over_the_frequent_names_is_given_with_the_target_and_without(protocol, task):
    """A model that forgot the target alone loses one of ten names, if the target is one of them."""
    for request, rest in (("Elon_Musk", (len(miniature.FREQUENT) - 1) / len(miniature.FREQUENT)), ("Jeff_Bezos", 1.0)):
        trial = replace(task, protocol=protocol).build(request, 0)
        found = accuracies(trial, trial.questions["split"] != "forget")
        assert (found["fa@1"], found["ra@1"], found["ta@1"]) == (0, 1, pytest.approx(rest))


def test_sizes_are_those_of_the_questions(task):
    questions = task.build("Jeff_Bezos", 0).questions
    for split, size in task.sizes("Jeff_Bezos").items():
        mine = questions["unit"][questions["split"] == split]
        assert size == (len(mine), len(np.unique(mine)))


# ---------------------------------------------------------------- models


@pytest.mark.parametrize("kind", ["pt", "training", "safetensors", "open_clip folder"])
def test_weights_answer_alike_however_they_are_saved(kind, task, data, saved):
    trial = replace(task, pretrained=str(saved[kind])).build("Elon_Musk", 0)
    retained = trial.questions["split"] == "retain"
    files = sorted((data / "img_align_celeba").iterdir())
    names = sorted(name.replace("_", " ") for name in miniature.PEOPLE)
    true = [names[label] for label in trial.questions["label"][retained]]
    shown = [files[index] for index in trial.questions["index"][retained]]
    # its own mean and standard deviation come with an open_clip folder
    own = {"image_mean": (0.5,) * 3, "image_std": (0.5,) * 3} if "folder" in kind else {}
    expected = ranks_by_open_clip(saved["pt"], shown, true, names, **own)
    assert np.array_equal(trial.original["rank"][retained], expected)
    assert (trial.original["rank"][retained] == 0).mean() > 0.9 or own


def test_a_folder_of_transformers_answers_as_transformers_does(task, data, tmp_path):
    import torch
    from PIL import Image
    from torchvision import transforms
    from transformers import CLIPImageProcessor, CLIPModel

    folder = miniature.hugging_face(tmp_path / "hub")
    trial = replace(task, pretrained=str(folder)).build("Elon_Musk", 0)
    clip, prepare = CLIPModel.from_pretrained(folder).eval(), CLIPImageProcessor.from_pretrained(folder)
    files = sorted((data / "img_align_celeba").iterdir())
    tokens = trial.request.objective.candidates.tokens[:, 0]
    tokens = tokens.where(tokens != 0, 49407)  # transformers pads with the end of text
    # resized by Pillow: by torch, as transformers may, a grey value or two is another
    crop = transforms.Compose([transforms.Resize(32, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(32)])
    images = [crop(Image.open(files[index])) for index in trial.questions["index"]]
    with torch.no_grad():
        given = prepare(images=images, return_tensors="pt")
        cosines = clip(input_ids=tokens, **given).logits_per_image / clip.logit_scale.exp()
    expected = cosines.gather(1, torch.from_numpy(trial.questions["label"])[:, None])[:, 0]
    np.testing.assert_allclose(trial.original["cosine"], expected, atol=1e-5)
    assert isinstance(trial.request.objective, TwoTowers)
    assert set(trial.request.objective.weights(clip)["vision"]) >= {"visual_projection.weight"}


@pytest.mark.parametrize("variant", ["paper", "hf"])
def test_slug_edits_models_of_transformers_under_their_own_names(variant, task, tmp_path):
    import torch

    trial = replace(task, pretrained=str(miniature.hugging_face(tmp_path / "hub"))).build("Elon_Musk", 0)
    before = {name: tensor.clone() for name, tensor in trial.request.model.named_parameters()}
    model = Slug(variant, batch=16, steps=2)(trial.request)
    changed = [name for name, tensor in model.named_parameters() if not torch.equal(tensor, before[name])]
    assert changed and all("text_model" in name for name in changed if variant == "hf")
    assert len(changed) == 1 or (variant == "hf" and len({name.rsplit(".", 3)[0] for name in changed}) == 1)
    assert {"vision_model", "text_model", "visual_projection", "text_projection"} >= {name.split(".")[0] for name in changed}


# transformers' own CLIP has QuickGELU, open_clip's configuration GELU
@pytest.mark.parametrize(("kind", "matches"), [("pt", (None, None)), ("open_clip folder", (1, 0)), ("transformers", (0, 1))])
def test_the_activation_can_be_chosen_and_is_shown(kind, matches, task, saved, tmp_path):
    where = miniature.hugging_face(tmp_path / "hub") if kind == "transformers" else saved[kind]
    tasks = [replace(task, pretrained=str(where), quickgelu=quick) for quick in (False, True)]
    plain, quick = (one.build("Elon_Musk", 0) for one in tasks)
    assert not np.allclose(plain.original["cosine"], quick.original["cosine"])
    gates = [one.gates([], [0])[0] for one in tasks]
    assert "runs with QuickGELU" in gates[1].note and all(gate.ok for gate in gates)
    assert tuple(gate.value for gate in gates) == matches
    assert tasks[0].fingerprint("Elon_Musk", 0) != tasks[1].fingerprint("Elon_Musk", 0)


def test_of_a_file_nobody_knows_the_activation_and_the_gate_says_how_to_choose(task, monkeypatch):
    tags = {"of_quick": {"quick_gelu": True}, "of_plain": {}}
    monkeypatch.setattr(_open_clip, "_table", lambda: {miniature.ARCHITECTURE: tags})
    gate, chosen = (replace(task, quickgelu=quick).gates([], [0])[0] for quick in (None, False))
    assert gate.value is chosen.value is None
    said = "runs with GELU; no file of weights says what it was trained with"
    assert chosen.note == said and gate.note.startswith(said)
    assert "quickgelu=true if it is a copy of open_clip's of_quick, or of others" in gate.note


@pytest.mark.slow
def test_published_weights_run_as_they_were_trained_and_by_the_published_protocol_as_they_were_not():
    """open_clip: ViT-B-32 has GELU, laion400m_e32 was trained with QuickGELU; the numbers of SLUG are on the mismatch."""
    assert _open_clip.tag("ViT-B-32", "laion400m_e32").quick_gelu
    assert CelebA()._weights.quickgelu is None and CelebA(protocol="published")._weights.quickgelu is False
    assert CelebA(protocol="published", quickgelu=True)._weights.quickgelu is True


class Calls:
    """Counts how often a model's towers run."""

    def __init__(self, model: Any, patch: pytest.MonkeyPatch) -> None:
        self.counts = Counter[str]()
        for tower in ("encode_image", "encode_text"):
            patch.setattr(model, tower, self.counted(tower, getattr(model, tower)))

    def counted(self, tower: str, function: Any) -> Any:
        return lambda *args, **kwargs: (self.counts.update([tower]), function(*args, **kwargs))[1]


@pytest.mark.parametrize(
    ("layer", "runs"), [("visual.proj", "encode_image"), ("text_projection", "encode_text")], ids=["vision", "text"]
)
def test_an_edit_of_one_tower_runs_that_tower_alone_and_answers_as_if_both_had(task, layer, runs, monkeypatch):
    import torch

    trial = task.build("Elon_Musk", 0)
    model = trial.request.model
    with torch.no_grad():
        model.get_parameter(layer).add_(
            0.1 * torch.randn(32, 32, generator=torch.Generator().manual_seed(0))[: model.get_parameter(layer).shape[0]]
        )
    calls = Calls(model, monkeypatch)
    spared = trial.answer(model)
    assert set(calls.counts) == {runs}
    monkeypatch.setattr(_open_clip.Original, "edited", lambda self, model: _open_clip.Edited(True, True))
    both = trial.answer(model)
    assert set(calls.counts) == {"encode_image", "encode_text"}
    assert not np.allclose(spared["cosine"], trial.original["cosine"], atol=1e-3)
    np.testing.assert_allclose(spared["cosine"], both["cosine"], atol=1e-5)
    assert np.array_equal(spared["rank"], both["rank"])


def test_the_original_answers_from_the_cache_without_running(task, monkeypatch):
    task.build("Elon_Musk", 0)
    monkeypatch.setattr(_open_clip, "embed_images", None)
    monkeypatch.setattr(_open_clip, "embed_texts", None)
    assert len(task.build("Elon_Musk", 0).original["rank"]) == 30


def test_checksums_tell_weights_apart_and_not_devices_or_layouts():
    import torch

    weights = [torch.randn(50, 70, generator=torch.Generator().manual_seed(0)), torch.ones(3).half()]
    same = [weights[0].T.contiguous().T, weights[1].clone()]
    assert _open_clip.checksum(weights) == _open_clip.checksum(same)
    for row, column in ((0, 0), (49, 69), (7, 30)):  # by one bit
        other = weights[0].clone()
        other[row, column] = torch.nextafter(other[row, column], torch.tensor(9.0))
        assert _open_clip.checksum([other, weights[1]]) != _open_clip.checksum(weights)
    swapped = weights[0][:, [1, 0, *range(2, 70)]]
    assert _open_clip.checksum([swapped, weights[1]]) != _open_clip.checksum(weights)


def test_the_unedited_model_has_to_have_the_published_accuracy(task, tmp_path, monkeypatch):
    folder = miniature.imagenet(tmp_path / "ImageNet")
    task = replace(task, imagenet=str(folder), templates="single")
    trial = task.build("Elon_Musk", 0)
    utility = trial.questions["split"] == "utility"
    top1 = float((trial.original["rank"][utility] == 0).mean())
    setting = task._setting("Elon_Musk", 0)
    assert celeba.published_gate(task._weights, setting) == []  # of which no number is known
    for published, ok in ((top1 + 0.004, True), (top1 + 0.1, False)):
        monkeypatch.setitem(celeba.PUBLISHED_UTILITY, (task.model, task.pretrained, False), published)
        assert [gate.ok for gate in celeba.published_gate(task._weights, setting)] == [ok]


def test_weights_are_found_where_the_hub_keeps_them(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repository, _, file = _open_clip.tag("ViT-B-32", "laion400m_e32").source.rpartition("/")
    kept = tmp_path / f"models--{repository.replace('/', '--')}"
    snapshot = kept / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("0" * 40)
    assert _open_clip.tag("ViT-B-32", "laion400m_e32").file is None
    (snapshot / (file or "open_clip_pytorch_model.bin")).write_bytes(b"weights")
    found = _open_clip.Weights("ViT-B-32", "laion400m_e32")
    assert found.wanted().found and found.wanted().path.read_bytes() == b"weights"


# ---------------------------------------------------------------- pairs in tars


@pytest.fixture
def tars(tmp_path: Path) -> dict[str, str]:
    """Of 6 pairs to forget one lacks its caption and one is cut off; 8 pairs to retain are whole."""
    pytest.importorskip("webdataset")
    whole = [(miniature.jpeg(0, number), f"Elon Musk at place {number}") for number in range(4)]
    cut = (miniature.jpeg(0, 9)[:300], "Elon Musk cut off")
    miniature.tar(tmp_path / "forget" / "Elon_Musk.tar", [*whole[:2], (miniature.jpeg(0, 8), None), cut, *whole[2:]])
    rest = [(miniature.jpeg(30 + number, 0), f"a thing of kind {number}") for number in range(8)]
    miniature.tar(tmp_path / "retain" / "00000.tar", rest[:5])
    miniature.tar(tmp_path / "retain" / "00001.tar", rest[5:])
    return {"forget_data": str(tmp_path / "forget"), "retain_data": str(tmp_path / "retain")}


def test_pairs_are_read_from_tars_and_faulty_ones_are_left_out_and_named(task, tars):
    import open_clip
    import torch

    from_tars = replace(task, **tars)
    request = from_tars.build("Elon_Musk", 0).request
    batch = next(request.forget.of("Elon Musk").batches(16))
    expected = open_clip.get_tokenizer(miniature.ARCHITECTURE)([f"Elon Musk at place {number}" for number in range(4)])
    assert torch.equal(batch["text"], expected) and batch["image"].shape == (4, 3, 32, 32)
    assert len(set(batch["label"].tolist())) == 1
    gate = next(gate for gate in from_tars.gates(["Elon_Musk"], [0]) if "Elon_Musk.tar" in gate.name)
    assert gate.value == pytest.approx(2 / 6) and not gate.ok  # of real shards fewer than a tenth
    assert "000000002 (no caption)" in gate.note and "000000003 (broken picture)" in gate.note


def test_with_tars_pictures_are_for_validation_and_test_alone(task, tars):
    assert task.sizes("Elon_Musk")["forget"].images == 3
    trial = replace(task, **tars).build("Elon_Musk", 0)
    counts = Counter(trial.questions["split"])
    assert counts == {"forget": 5, "retain": 5 * (len(miniature.FREQUENT) - 1)}  # of nine, and four to search with
    assert len(trial.request.validation.forget) == 4 and len(trial.request.retain) == 8


def test_pairs_to_retain_are_contrasted_as_by_open_clip(task, tars):
    import open_clip
    import torch

    request = replace(task, **tars).build("Elon_Musk", 0).request
    batch = next(request.retain.batches(8, torch.Generator().manual_seed(0)))
    with torch.no_grad():
        features = request.model(batch["image"], batch["text"])
        expected = open_clip.ClipLoss()(*features)
        got = request.objective.loss(request.model, batch)
    assert float(got) == pytest.approx(float(expected), rel=1e-5)


def test_tars_are_found_under_both_spellings_and_missing_or_broken_ones_are_named(task, tars):
    folder = Path(tars["forget_data"])
    (folder / "Elon_Musk.tar").rename(folder / "Elon Musk.tar")  # as the authors' script may write it
    assert len(replace(task, **tars).build("Elon_Musk", 0).request.forget) == 4
    with pytest.raises(UsageError, match=r"Taylor_Swift.tar is no .tar"):
        replace(task, **tars).fingerprint("Taylor_Swift", 0)
    (folder / "Taylor_Swift.tar").write_text("<html>404</html>")
    with pytest.raises(UsageError, match=r"Taylor_Swift.tar cannot be read as a WebDataset tar"):
        replace(task, **tars).build("Taylor_Swift", 0)


def test_without_webdataset_the_cell_is_skipped_with_the_extra_to_install(task, tars, monkeypatch):
    monkeypatch.setitem(sys.modules, "webdataset.tariterators", None)  # as if it were not installed
    with pytest.raises(MissingDependency, match=r"slugbench\[webdataset\]"):
        replace(task, **tars).build("Elon_Musk", 0)


# ---------------------------------------------------------------- utility


@pytest.mark.parametrize(("part", "share"), [("all", 1), ("twentieth", 0.05)])
def test_imagenet_is_the_utility_where_its_folder_is_given(part, share, task, tmp_path):
    folder = miniature.imagenet(tmp_path / "ImageNet")
    trial = replace(task, imagenet=str(folder), utility=part, templates="single").build("Elon_Musk", 0)
    utility = trial.questions["split"] == "utility"
    n_pictures = len(miniature.WNIDS) * miniature.A_CLASS
    assert utility.sum() == int(share * n_pictures)
    names = trial.questions["unit"][~utility]
    assert not set(trial.questions["unit"][utility]) & set(names)
    assert not trial.questions["frequent"][utility].any()


def test_by_default_all_of_imagenet_is_asked_in_eighty_templates_and_as_published_a_twentieth_in_seven(
    task, tmp_path, monkeypatch
):
    import open_clip

    folder = str(miniature.imagenet(tmp_path / "ImageNet"))
    found = imagenet.listing(folder)
    setting = replace(task, imagenet=folder)._setting("Elon_Musk", 0)
    assert np.array_equal(setting.dealt.utility.index, np.arange(len(found.turn)))
    assert setting.utility.prompts[0] == [template("tench") for template in open_clip.OPENAI_IMAGENET_TEMPLATES]
    monkeypatch.setattr(imagenet, "listing", lambda data: found._replace(classes=1000))
    setting = replace(task, imagenet=folder, protocol="published")._setting("Elon_Musk", 0)
    expected = np.sort(np.random.RandomState(0).permutation(len(found.turn))[: int(0.05 * len(found.turn))])
    assert np.array_equal(setting.dealt.utility.index, expected)
    assert setting.utility.prompts[0] == [template("tench") for template in open_clip.SIMPLE_IMAGENET_TEMPLATES]


@pytest.mark.parametrize(
    ("params", "sentence"),
    [
        ({"protocol": "published", "utility": "all"}, "evaluates with utility=twentieth, not all; leave one of the two out"),
        ({"protocol": "published", "templates": "openai"}, "evaluates with templates=simple, not openai"),
        ({"imagenet": None, "utility": "all"}, "utility=all is about ImageNet's pictures; .* as imagenet=DIR"),
    ],
    ids=["part", "templates", "no folder"],
)
def test_the_utility_is_not_measured_otherwise_than_said(params, sentence):
    with pytest.raises(UsageError, match=sentence):
        CelebA(**{"imagenet": "data/ImageNet", **params})
    CelebA(imagenet="data/ImageNet", protocol="published", utility="twentieth", templates="simple")


def test_the_published_utility_needs_all_classes(task, tmp_path):
    folder = miniature.imagenet(tmp_path / "ImageNet")
    with pytest.raises(UsageError, match=r"all 1,000 classes of ImageNet; .* has 12"):
        replace(task, imagenet=str(folder), protocol="published").sizes("Elon_Musk")


def test_the_utility_runs_no_picture_after_an_edit_of_text_and_holds_no_pixels(task, tmp_path, monkeypatch):
    import torch

    folder = miniature.imagenet(tmp_path / "ImageNet")
    trial = replace(task, imagenet=str(folder), templates="single").build("Elon_Musk", 0)
    model = trial.request.model
    utility = np.flatnonzero(trial.questions["split"] == "utility")
    calls = Calls(model, monkeypatch)
    with torch.no_grad():
        model.text_projection.mul_(-1)
        assert len(trial.answer(model, utility)["rank"]) == 72 and set(calls.counts) == {"encode_text"}
        model.visual.proj.mul_(-1)
    np.testing.assert_allclose(trial.answer(model, utility)["cosine"], trial.original["cosine"][utility], atol=1e-5)
    if (maps := Path("/proc/self/maps")).exists():
        assert "pixels-" not in maps.read_text()


def test_masking_a_name_leaves_the_utility_alone(task, tmp_path):
    folder = str(miniature.imagenet(tmp_path / "ImageNet"))
    trial = replace(task, imagenet=folder, templates="single").build("Elon_Musk", 0)
    masked = trial.answer(trial.request.objective.masked(trial.request.model, ("Elon Musk",)))
    utility, forget = (trial.questions["split"] == split for split in ("utility", "forget"))
    assert np.array_equal(masked["rank"][utility], trial.original["rank"][utility])
    assert (masked["rank"][forget] == len(miniature.PEOPLE) - 1).all()


# ---------------------------------------------------------------- what users get wrong


def pictures_given(data: Path) -> None:
    (data / "img_align_celeba").rename(data.parent / "pictures")
    shutil.rmtree(data)
    (data.parent / "pictures").rename(data)


def nested(data: Path) -> None:
    (data / "img_align_celeba").rename(data / "inner")
    (data / "img_align_celeba").mkdir()
    (data / "inner").rename(data / "img_align_celeba" / "img_align_celeba")


def above(data: Path) -> None:
    data.rename(data.parent / "inner")
    data.mkdir()
    (data.parent / "inner").rename(data / "celeba")


def rewrite(data: Path, change: Any) -> None:
    path = data / "list_identity_celeba.txt"
    path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")


WRONG: dict[str, tuple[Any, str]] = {
    "the folder of pictures itself": (pictures_given, "is a folder too deep: it holds the pictures"),
    "pictures in a second folder": (nested, "holds another img_align_celeba: the pictures lie a folder too deep"),
    "the folder above": (above, r"holds no img_align_celeba/\*.jpg; it is in .*celeba, give that"),
    "no names": (lambda data: (data / "list_identity_celeba.txt").unlink(), "is given by CelebA's authors on request"),
    "no frequent names": (lambda data: (data / "frequent_celebs.txt").unlink(), "holds no frequent_celebs.txt"),
    "no header": (
        lambda data: rewrite(data, lambda lines: lines[2:]),
        "a picture in line 1, where it should have two header",
    ),
    "no header, and tabs": (
        lambda data: rewrite(data, lambda lines: [line.replace(" ", "\t") for line in lines[2:]]),
        "a picture in line 1, where it should have two header",
    ),
    "a picture twice": (
        lambda data: rewrite(data, lambda lines: [*lines, lines[4]]),
        r"lists pictures more than once: 000003.jpg",
    ),
    "one header line": (lambda data: rewrite(data, lambda lines: lines[1:]), "a picture in line 2"),
    "numbers for names": (
        lambda data: rewrite(data, lambda lines: lines[:2] + [f"{line.split()[0]} 7" for line in lines[2:]]),
        "has numbers for people",
    ),
    "a row without a name": (
        lambda data: rewrite(data, lambda lines: [*lines[:5], "000004.jpg", *lines[6:]]),
        r"no `000001.jpg Some_Name` in line 6",
    ),
    "someone frequent without pictures": (
        lambda data: (data / "frequent_celebs.txt").write_text("Ada_Birch\nNobody_Atall\n"),
        "people without any picture in list_identity_celeba.txt: Nobody Atall",
    ),
    "too few pictures of the target": (
        lambda data: rewrite(data, lambda lines: [line for line in lines if "Elon" not in line or line < "000020"]),
        "Elon Musk has 2 pictures",
    ),
    "pictures missing": (
        lambda data: [file.unlink() for file in pictures_of(data, "Ada_Birch")[:2]],
        r"pictures are not in .*img_align_celeba: 000003.jpg",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_data_are_named(case, task, broken):
    spoil, sentence = WRONG[case]
    spoil(broken)
    with pytest.raises(UsageError, match=sentence):
        replace(task, data=str(broken)).fingerprint("Elon_Musk", 0)


def test_all_pictures_that_cannot_be_decoded_are_named_when_one_is_met(task, broken):
    spoilt = pictures_of(broken, "Elon_Musk")
    spoilt[2].write_bytes(spoilt[2].read_bytes()[:200])
    spoilt[6].write_text("<html>404</html>")
    with pytest.raises(UsageError, match="cannot be decoded") as raised:
        request = replace(task, data=str(broken)).build("Elon_Musk", 0).request
        list(request.forget.batches(4))
    assert {file.name in str(raised.value) for file in spoilt[:2]} == {False}
    assert any(spoilt[i].name in str(raised.value) for i in (2, 6))


def cut(data: Path, index: Any) -> str:
    """Cut a picture off halfway; its name."""
    file = data / "img_align_celeba" / f"{int(index) + 1:06d}.jpg"
    file.write_bytes(file.read_bytes()[:300])
    return file.name


@pytest.mark.parametrize("part", ["test", "validation"])
def test_a_retained_picture_that_cannot_be_decoded_is_named_before_any_method(part, task, broken):
    trial = task.build("Elon_Musk", 0)
    asked = trial.questions["index"][trial.questions["split"] == "retain"]
    index = asked[5] if part == "test" else next(trial.request.validation.retain.batches(8))["index"][5]
    name = cut(broken, index)
    with pytest.raises(MissingData, match=rf"1 of 30 pictures cannot be decoded: {name}; get them again"):
        replace(task, data=str(broken)).gates(["Elon_Musk"], [0])


def test_a_full_disk_is_told_while_pixels_are_kept_and_they_are_whole_afterwards(task, cache):
    gallery, preparation = celeba.known(task.data).gallery, _open_clip.original(task._weights).preparation
    rows = np.arange(len(gallery.names))
    kept, decoded = (gallery.pictures(preparation, keep=keep) for keep in (True, False))
    with files_no_longer_than(100_000), pytest.raises(DiskTrouble, match="cannot write to the cache in"):
        kept.batch(rows)  # 108 of 3 kB
    assert not list(cache.glob("pixels-*.npy"))
    assert np.array_equal(kept.batch(rows), decoded.batch(rows))
    assert len(list(cache.glob("pixels-*.npy"))) == 1


@pytest.mark.slow
def test_a_training_picture_that_cannot_be_decoded_ends_a_run_and_blames_no_method(task, broken, saved, tmp_path):
    name = cut(broken, next(task.build("Elon_Musk", 0).request.retain.batches(8))["index"][5])
    suite = tmp_path / "suite.toml"
    spec = f"celeba:data={broken},pretrained={saved['open_clip folder']}"
    suite.write_text(f'name = "mini"\ntasks = ["{spec}"]\nmethods = ["ft", "gaft"]\nrequests = 1\n')
    command = [sys.executable, "-m", "slugbench.bench", "run", str(suite), "--out", str(tmp_path / "out"), "--jobs", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 2 and "passed" in done.stdout, done.stderr
    assert f"task 'celeba' cannot run: 1 of 36 pictures cannot be decoded: {name}; get them again" in done.stderr, (
        done.stderr
    )
    assert not list((tmp_path / "out" / "cells").glob("[!.]*"))


def wide(folder: Path) -> str:
    import torch

    torch.save(miniature.model(f"{miniature.ARCHITECTURE}-wide").state_dict(), folder / "wide.pt")
    return str(folder / "wide.pt")


def no_weights(folder: Path) -> str:
    (folder / "page.pt").write_text("<html>404</html>")
    return str(folder / "page.pt")


class Runs:
    """Pickled it is a call of `Path.touch`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def a_program(folder: Path) -> str:
    import torch

    torch.save({"state_dict": {"logit_scale": Runs(folder / "it ran")}}, folder / "program.pt")
    return str(folder / "program.pt")


def other_type(folder: Path) -> str:
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    return str(folder)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (wide, "holds weights of another architecture than model=tiny-test"),
        (no_weights, "cannot be read as weights of model=tiny-test"),
        (a_program, "cannot be read as weights of model=tiny-test"),
        (other_type, "holds a model of type 'bert'"),
        (lambda folder: str(folder), "holds neither open_clip_config.json nor config.json"),
        (lambda folder: str(folder / "absent.pt"), "absent.pt does not exist"),
    ],
    ids=["another architecture", "no weights", "a pickle with code", "another type", "empty folder", "no file"],
)
def test_wrong_weights_are_named(make, sentence, task, tmp_path):
    with pytest.raises(UsageError, match=sentence):
        replace(task, pretrained=make(tmp_path)).build("Elon_Musk", 0)
    assert not (tmp_path / "it ran").exists()


def test_unknown_models_and_tags_are_told_from_known_ones():
    with pytest.raises(UsageError, match=r"no weights 'laion400m_e23' of ViT-B-32 \(did you mean 'laion400m_e32'\?\)"):
        _open_clip.tag("ViT-B-32", "laion400m_e23")
    with pytest.raises(UsageError, match=r"no model 'ViT-B/33'"):
        _open_clip.tag("ViT-B/33", "openai")


@pytest.fixture
def no_weights_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """An empty cache of the hub, and whatever would be downloaded: what it is asked for, answered as without a network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    ask, asked = _open_clip._ask_open_clip, list[tuple[str, ...]]()

    def answer(code: str, *arguments: str, **how: Any) -> Any:
        if code != _open_clip._DOWNLOAD:
            return ask(code, *arguments, **how)
        asked.append(arguments)
        return {"error": "Failed to download file (w.bin) for r. Last error: Nobody answers at the hub. Please check."}

    monkeypatch.setattr(_open_clip, "_ask_open_clip", answer)
    return asked


def test_weights_that_are_not_here_are_named_and_never_fetched_by_surprise(task, no_weights_here):
    absent = replace(task, model="ViT-B-32", pretrained="laion400m_e32")
    with pytest.raises(NotFetched, match=r"not on this machine; `slugbench run` fetches them, about 0.61 GB") as raised:
        absent.fingerprint("Elon_Musk", 0)
    weights = next(wanted for wanted in absent.wanted() if "ViT-B-32" in wanted.note)
    assert not weights.found and weights.path.name == "models--timm--vit_base_patch32_clip_224.laion400m_e32"
    assert "licence at https://huggingface.co/timm/vit_base_patch32_clip_224.laion400m_e32;" in weights.note
    assert not no_weights_here
    with pytest.raises(UsageError, match=r"cannot be downloaded from https\S+ \(Nobody answers at the hub\); run this once"):
        raised.value.fetch()
    assert no_weights_here == [("ViT-B-32", "laion400m_e32")]


def test_where_the_hub_is_forbidden_nothing_is_tried(no_weights_here, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    weights = _open_clip.Weights("ViT-B-32", "laion400m_e32")
    for attempt in (weights.digest, weights.load):
        with pytest.raises(
            UsageError, match=r"are not in .*hub.*, and HF_HUB_OFFLINE is set, so that .*; unset it"
        ) as raised:
            attempt()
        assert not isinstance(raised.value, NotFetched)
    assert "HF_HUB_OFFLINE is set: nothing fetches them" in weights.wanted().note and not no_weights_here


def test_sizes_of_weights_are_those_of_their_parameters():
    import open_clip
    import torch

    config = open_clip.get_model_config("ViT-B-32")
    with torch.device("meta"):  # shapes without numbers
        model = open_clip.CLIP(**config)
    bytes_ = 4 * sum(parameter.numel() for parameter in model.parameters())
    assert pytest.approx(bytes_ / 1e9, abs=0.005) == _open_clip.GIGABYTES["ViT-B-32"]


def test_a_folder_called_like_a_tag_does_not_hide_it(tmp_path, monkeypatch):
    for name in ("openai", "mine"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    assert _open_clip.Weights("ViT-B-32", "openai").local is None
    for name in ("./openai", "mine"):
        assert _open_clip.Weights("ViT-B-32", name).local == Path(name)


def test_doctor_finds_only_what_can_be_used(data, tmp_path, capsys):
    empty = tmp_path / "empty"
    (empty / "img_align_celeba").mkdir(parents=True)
    for name in ("list_identity_celeba.txt", "frequent_celebs.txt"):
        (empty / name).touch()
    notes = [(wanted.found, wanted.note) for wanted in celeba.wanted(empty)]
    for (found, note), why in zip(notes, ("holds no .jpg", "no `000001.jpg Some_Name`", "holds no names"), strict=True):
        assert not found and why in note
    counted = [(wanted.found, wanted.note.split(";")[0]) for wanted in celeba.wanted(data)]
    n = len(miniature.PEOPLE)
    said = (f"{9 * n} pictures", f"{9 * n} pictures of {n} people", f"{len(miniature.FREQUENT)} names")
    assert counted == [(True, text) for text in said]
    assert main(["doctor", f"celeba:data={empty},forget_data={tmp_path}"]) == 2
    assert "MISSING" in (out := capsys.readouterr().out) and f"{tmp_path}/Elon_Musk.tar" in out


def test_doctor_counts_listed_pictures_that_are_not_there(broken):
    for file in pictures_of(broken, "Ada_Birch")[:2]:
        file.unlink()
    pictures = celeba.wanted(broken)[0]
    assert not pictures.found and "Of 108 pictures in list_identity_celeba.txt 2 are not there: 000003.jpg" in pictures.note


def test_a_plan_sends_to_doctor_with_the_data_that_were_given(tmp_path):
    with pytest.raises(UsageError, match=f"`slugbench doctor celeba:data={tmp_path}` says"):
        CelebA(str(tmp_path)).fingerprint("Elon_Musk", 0)


def test_doctor_lists_every_file_found_or_not(task, data, tmp_path):
    here = {wanted.path: wanted for wanted in task.wanted()}
    assert all(wanted.found for wanted in here.values()) and len(here) == 4
    absent = CelebA(str(tmp_path), forget_data=str(tmp_path), retain_data=str(tmp_path / "x"), imagenet=str(tmp_path))
    notes = [wanted.note for wanted in absent.wanted() if not wanted.found]
    assert len(notes) == 3 + 10 + 1 + 1 + 1 == len(absent.wanted())
    assert "given by CelebA's authors on request" in notes[1]


def test_everything_but_building_runs_without_torch(task):
    found = run_python(
        f"""
import sys
from slugbench.tasks.celeba import CelebA
task = CelebA({task.data!r}, {task.model!r}, {task.pretrained!r})
print(task.fingerprint("Elon_Musk", 0), len(task.wanted()), len(task.requests()), task.sizes("Elon_Musk")["forget"].images)
print("torch" in sys.modules)
"""
    )
    assert found.split() == [task.fingerprint("Elon_Musk", 0), "4", "11", "3", "False"]


# ---------------------------------------------------------------- as every task, and with a method


@pytest.mark.parametrize("law", laws.OF_CLASSES, ids=lambda law: law.__name__)
def test_what_is_promised_of_every_task_holds(law, task, monkeypatch):
    laws.holds(law, task, "concepts", monkeypatch, "Elon_Musk")


CELL = """
import json, sys
from pathlib import Path
from slugbench.bench import runner
from slugbench.bench.cell import measure
from slugbench.bench.isolate import Limits
from slugbench.bench.plan import expand, load_suite
from slugbench.bench.registry import load
load()
for cell in expand(load_suite({suite!r}), device="cpu"):
    scratch = Path({out!r}) / cell.method
    scratch.mkdir()
    measure(runner._payload(runner.Job(cell, cell.judges, scratch), runner.Settings(Limits(600, 8 << 30)), False))
"""


@pytest.mark.slow
def test_slug_runs_as_a_cell_and_every_metric_has_a_value_or_says_why_not(data, saved, tmp_path):
    suite = tmp_path / "suite.toml"
    spec = f"celeba:data={data},pretrained={saved['open_clip folder']}"
    suite.write_text(f'name = "mini"\ntasks = ["{spec}"]\nmethods = ["slug:batch=16", "original", "oracle"]\nrequests = 1\n')
    run_python(CELL.format(suite=str(suite), out=str(tmp_path)))
    results = {name: json.loads((tmp_path / name / "result.json").read_text()) for name in ("slug", "original", "oracle")}
    assert results["oracle"]["status"] == "skipped"  # there are none
    found = {}
    for name in ("slug", "original"):
        assert results[name]["status"] == "ok", results[name]["error"]
        rows = [row for rows in results[name]["values"].values() for row in rows]
        assert all(row["value"] is not None or row["note"] for row in rows)
        assert not [row for row in rows if "the metric raised" in (row["note"] or "")]
        found[name] = {row["metric"]: row["value"] for row in rows}
    assert found["original"]["fa@1"] == 1.0 and found["slug"]["fa@1"] <= 1 / 3
    assert found["slug"]["ra@1"] > 0.3
    sizes = {tensor.numel() * tensor.element_size() for tensor in miniature.model().parameters()}
    assert found["slug"]["bytes_delta"] in sizes  # one layer
    assert found["slug"]["ks_d"] is None and "no " in next(
        row["note"] for row in results["slug"]["values"]["ks_d"] if row["metric"] == "ks_d"
    )


# ---------------------------------------------------------------- memory


def test_whoever_edits_first_has_the_model_that_was_read_and_the_next_one_another(task, monkeypatch):
    """With two models at a time, methods that fit a CLIP of real size into memory would not."""
    read, load = [], _open_clip.Weights.load
    monkeypatch.setattr(_open_clip.Weights, "load", lambda weights: read.append(load(weights)) or read[-1])
    own = _open_clip.Original(task._weights)
    first = own.copy()
    assert len(read) == 1 and first is read[0].model
    for parameter in first.parameters():
        parameter.data.zero_()
    second = own.copy()
    assert len(read) == 2 and own.edited(first) != own.edited(second) == (False, False)


def test_weights_that_change_while_they_are_in_use_are_named(task, tmp_path):
    import torch

    file = Path(shutil.copy(task.pretrained, tmp_path / "weights.pt"))
    own = _open_clip.Original(replace(task, pretrained=str(file))._weights)
    own.copy()
    state = torch.load(file, weights_only=True)
    torch.save({name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in state.items()}, file)
    with pytest.raises(MissingData, match=r"weights\.pt has changed while it was in use"):
        own.copy()
    file.unlink()
    with pytest.raises(MissingData):
        own.copy()
